"""The largest batch that fits, from one trace whose batch size is a symbol.

Every size in the graph is an expression of the batch. A plan is a choice and two orders, which hold
for all batches. So its peak at another batch is a replay with other sizes, and bisection finds the
largest batch. Low plans are made at the traced batch and again at the batch found, until no plan
has room for more. For large graphs, which take long, low plans are made only once, at the batch for
which a plan of checkpoints alone has room.

The lowest plan may add many times the forward's time. So a third batch is found: the largest with a
plan that adds no more than half the forward. Bisection of the limit finds the lowest such plan.

The result is not exact: another plan might be lower at some batch in between. A vocabulary is not
split into chunks here, as chunks need sizes that are numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import sympy
import torch

from satcompile.commands.forecast.trace import SymbolicStep
from satcompile.graph.capture import Capture
from satcompile.options import Options
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.recompute import Recompute
from satcompile.planner.searches import Searches, default_saved_nodes
from satcompile.runtime.residency import Residency
from satcompile.solver.training.fast_replay import simulate_orders
from satcompile.solver.training.search import Candidate
from satcompile.solver.training.step import Step
from satcompile.torch_compat.symbols import planning_for, size_expression

_MOST = 1 << 24  # samples; nothing asks for more
_HALF, _NEARLY_HALF = 0.5, 0.45  # of the forward
_SOLVES, _SOLVES_OF_LARGE = 5, 4  # at most, in search of the plan at half the forward
_ROUNDS, _ROUNDS_OF_LARGE = 3, 1  # of planning at the largest batch that was found
_LARGE = 2_000  # operations: for larger graphs, the lowest plan is made once, at a batch for which
# a plan of checkpoints alone has room


@dataclass(frozen=True)
class LargestBatch:
    """The largest batches that fit into a number of bytes.

    Attributes:
        within_bytes: for everything alive during a step.
        default: the largest batch by torch.compile's own plan; None if not even one sample fits.
        planned: the largest batch for which a plan was found.
        added_share: share of the forward's time that this plan adds there.
        at_half: the largest batch for which a plan was found that adds no more than half the
            forward's time.
        at_half_share: share of the forward's time that this plan adds.
        peak_of_default: bytes at torch's own plan's peak as an expression of the batch ``b``:
            resident bytes and bytes saved for the backward.
        why_not: why none of this is known; "" if it is known.
    """

    within_bytes: int
    default: int | None = None
    planned: int | None = None
    added_share: float = 0.0
    at_half: int | None = None
    at_half_share: float = 0.0
    peak_of_default: str = ""
    why_not: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def largest_batch(
    step: SymbolicStep | str,
    problem_of: Callable[[Capture], PlanningProblem],
    residency_of: Callable[[Capture], Residency],
    within_bytes: int,
    options: Options,
) -> LargestBatch:
    """Args:
    step: traced with a symbol for its batch, or why it was not.
    problem_of, residency_of: of a captured step, at the sizes that are being planned for.
    within_bytes: for everything alive during a step.
    """
    if isinstance(step, str):
        return LargestBatch(within_bytes, why_not=step)
    problem = problem_of(step.capture)
    plans = _Plans(problem, options.solver_effort)
    sizes = _Sizes(problem, step, residency_of, plans.default)
    default = sizes.largest(plans.default, within_bytes)
    is_large = len(sizes.problem.operations) > _LARGE
    first = plans.checkpointed() if is_large else plans.lowest
    lowest, half = _Fit.of(sizes, first, plans, within_bytes), None
    if lowest is None and is_large:
        lowest = _Fit.of(sizes, plans.lowest, plans, within_bytes)
    if lowest is not None:
        for _ in range(_ROUNDS_OF_LARGE if is_large else _ROUNDS):
            with planning_for({step.symbol: lowest.batch}):
                there = _Plans(problem_of(step.capture), options.solver_effort)
            fits = [_Fit.of(sizes, plan, there, within_bytes) for plan in there.lows]
            before, lowest = lowest, _largest(lowest, fits)
            if lowest.batch == before.batch:
                break
        half = _Fit.of(sizes, there.at_half(), there, within_bytes)
    own = None if default is None else _Fit.of(sizes, plans.default, plans, within_bytes)
    half = _larger(own, half)
    lowest = _larger(half, lowest)
    return LargestBatch(
        within_bytes,
        default,
        lowest.batch if lowest else None,
        lowest.added_share if lowest else 0.0,
        half.batch if half else None,
        half.added_share if half else 0.0,
        str(sizes.expression_of(plans.default)),
    )


@dataclass(frozen=True)
class _Fit:
    """The largest batch with one plan, and the share of the forward that the plan adds."""

    batch: int
    added_share: float

    @classmethod
    def of(
        cls, sizes: _Sizes, plan: Candidate | None, plans: _Plans, within_bytes: int
    ) -> _Fit | None:
        batch = None if plan is None else sizes.largest(plan, within_bytes)
        return None if plan is None or batch is None else cls(batch, plans.share_of(plan))


def _larger(one: _Fit | None, other: _Fit | None) -> _Fit | None:
    """The fit with the larger batch; at equal batches, the fit that adds less."""
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda fit: (fit.batch, -fit.added_share))


def _largest(one: _Fit, others: Iterable[_Fit | None]) -> _Fit:
    for other in others:
        one = _larger(one, other) or one
    return one


class _Plans:
    """Plans of a problem: the two extremes, and one plan between them."""

    def __init__(self, problem: PlanningProblem, effort: int) -> None:
        searches = Searches()
        own = Recompute(None, effort=effort, searches=searches).run(problem)
        saved = default_saved_nodes(problem, own.default_saved)
        self._problem, self._search = problem, searches.of(problem, effort, saved)
        self.default = self._search.default

    @cached_property
    def lowest(self) -> Candidate:
        return self._search.floor()

    @property
    def lows(self) -> list[Candidate]:
        """The lowest plan, and plans of low peaks that are made the same way at every batch."""
        return [self.lowest, *self._search.lows]

    def checkpointed(self) -> Candidate | None:
        """A low plan that is quick to make."""
        return self._search.checkpointed()

    def share_of(self, plan: Candidate) -> float:
        """The time that a plan adds, as a share of the forward's time."""
        return plan.solution.time_us / max(self._problem.forward_time_us, 1e-9)

    def at_half(self) -> Candidate | None:
        """The lowest plan found that adds no more than half the forward's time."""
        if self.share_of(self.lowest) <= _HALF:
            return self.lowest
        best = None
        low_bytes, high_bytes = self.lowest.profile.peak_bytes, self.default.profile.peak_bytes
        is_large = len(self._problem.operations) > _LARGE
        for _ in range(_SOLVES_OF_LARGE if is_large else _SOLVES):
            middle_bytes = (low_bytes + high_bytes) // 2
            found = self._search.within(middle_bytes, by_rounds=not is_large)
            if found is not None and self.share_of(found) <= _HALF:
                best, high_bytes = found, middle_bytes
                if self.share_of(found) >= _NEARLY_HALF:
                    break
            else:
                low_bytes = middle_bytes
        return best


class _Sizes:
    """Bytes of one step at any batch."""

    def __init__(
        self,
        problem: PlanningProblem,
        step: SymbolicStep,
        residency_of: Callable[[Capture], Residency],
        default: Candidate,
    ) -> None:
        self.problem, self._symbolic, self._residency_of = problem, step, residency_of
        self._default = default
        self._expressions = [
            _bytes_expression(node.meta["val"]) if num_bytes else sympy.Integer(0)
            for node, num_bytes in zip(problem.storages, problem.step.storage_bytes, strict=True)
        ]
        self._known: dict[int, tuple[Step, int]] = {}

    def largest(self, plan: Candidate, within_bytes: int) -> int | None:
        """The largest batch at which the plan's peak is within ``within_bytes``."""
        if self._peak_bytes(plan, 1) > within_bytes:
            return None
        fits, too_large = 1, 2
        while too_large < _MOST and self._peak_bytes(plan, too_large) <= within_bytes:
            fits, too_large = too_large, too_large * 2
        while too_large - fits > 1:
            middle = (fits + too_large) // 2
            if self._peak_bytes(plan, middle) <= within_bytes:
                fits = middle
            else:
                too_large = middle
        return fits

    def expression_of(self, plan: Candidate) -> sympy.Expr:
        """Resident and saved bytes, as an expression of the batch ``b``."""
        step, symbol = self.problem.step, self._symbolic.symbol
        saved = sum((self._expressions[s] for s in plan.saved - step.outputs), sympy.Integer(0))
        resident = self._at(2)[1], self._at(3)[1]
        grows = resident[1] - resident[0]
        batch = sympy.Symbol("b", positive=True, integer=True)
        return sympy.expand(saved.subs(symbol, batch) + resident[0] - 2 * grows + grows * batch)

    def _peak_bytes(self, plan: Candidate, batch: int) -> int:
        step, resident_bytes = self._at(batch)
        if plan is not self._default:
            step = replace(step, constant_bytes=0)
        profile = simulate_orders(step, plan.forward_order, plan.backward_order, plan.saved)
        return resident_bytes + profile.peak_bytes

    def _at(self, batch: int) -> tuple[Step, int]:
        if batch not in self._known:
            values = {e: int(e.subs(self._symbolic.symbol, batch)) for e in set(self._expressions)}
            with planning_for({self._symbolic.symbol: batch}):
                constant_bytes = self.problem.layout_copies_bytes()
                workspaces_bytes = self.problem.workspaces_bytes
                resident_bytes = self._residency_of(self._symbolic.capture).total_bytes
            more_batches = batch - self._symbolic.batch
            resident_bytes += more_batches * self._symbolic.batched_bytes // self._symbolic.batch
            operations = zip(self.problem.step.operations, workspaces_bytes, strict=True)
            step = replace(
                self.problem.step,
                operations=[replace(each, workspace_bytes=b) for each, b in operations],
                storage_bytes=[values[expression] for expression in self._expressions],
                constant_bytes=constant_bytes,
            )
            self._known[batch] = step, resident_bytes
        return self._known[batch]


def _bytes_expression(value: torch.Tensor) -> sympy.Expr:
    """``training_graph.storage_bytes`` with symbols: the span of the strides."""
    span = sympy.Integer(1)
    for extent, stride in zip(value.shape, value.stride(), strict=True):
        span += (size_expression(extent) - 1) * size_expression(stride)
    return sympy.expand(span * value.dtype.itemsize)
