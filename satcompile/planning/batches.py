"""The largest batch that fits, from one trace whose batch size is a symbol.

Every size in the graph is an expression of the batch. A plan is a choice and two orders, which hold
for all batches; so its peak at another batch is a replay with other sizes, and the largest batch is
found by bisection. The lowest plan is made at the traced batch and again at the one found.

Not exact: another plan might be lower at some batch in between. A vocabulary is not taken in chunks
here, as chunks need sizes that are numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import sympy
import torch

from satcompile.capture import Capture
from satcompile.options import Options
from satcompile.passes.recompute import Recompute, budget_search
from satcompile.planning.trace import SymbolicStep
from satcompile.planning_problem import PlanningProblem
from satcompile.residency import Residency
from satcompile.solver.search import Candidate
from satcompile.solver.step import Step, simulate_orders
from satcompile.torch_compat import planning_for, size_expression

_MOST = 1 << 24  # samples; nothing asks for more


@dataclass(frozen=True)
class LargestBatch:
    """What fits into so many bytes.

    Attributes:
        within_bytes: for everything alive during a step.
        default: the largest batch by torch.compile's own plan; None where not even one sample fits.
        planned: the largest batch for which a plan was found.
        added_share: of the forward's time that this plan adds there.
        peak_of_default: bytes at torch's own plan's peak as an expression of the batch ``b``: the
            resident ones and those saved for the backward.
        why_not: why none of this is known; "" where it is.
    """

    within_bytes: int
    default: int | None = None
    planned: int | None = None
    added_share: float = 0.0
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
    sizes = _Sizes(problem_of(step.capture), step, residency_of)
    plans = _Plans(sizes.problem, options.solver_effort)
    default = sizes.largest(plans.default, within_bytes)
    lowest = plans.lowest
    planned = sizes.largest(lowest, within_bytes)
    if planned is not None:
        with planning_for({step.symbol: planned}):
            there = _Plans(problem_of(step.capture), options.solver_effort).lowest
        other = sizes.largest(there, within_bytes)
        if other is not None and other > planned:
            planned, lowest = other, there
    if default is not None and (planned is None or default >= planned):
        planned, lowest = default, plans.default
    return LargestBatch(
        within_bytes,
        default,
        planned,
        lowest.solution.time_us / max(sizes.problem.forward_time_us, 1e-9) if planned else 0.0,
        str(sizes.expression_of(plans.default)),
    )


class _Plans:
    """The two ends of what can be decided for a problem."""

    def __init__(self, problem: PlanningProblem, effort: int) -> None:
        search = budget_search(problem, effort)
        own = Recompute(None, effort=effort).run(problem)
        self.default = search.candidate(own.saved)
        self.lowest: Candidate = search.floor(self.default.solution.saved_bytes)


class _Sizes:
    """Bytes of one step at any batch."""

    def __init__(
        self,
        problem: PlanningProblem,
        step: SymbolicStep,
        residency_of: Callable[[Capture], Residency],
    ) -> None:
        self.problem, self._symbolic, self._residency_of = problem, step, residency_of
        self._expressions = [
            _bytes_expression(node.meta["val"]) if num_bytes else sympy.Integer(0)
            for node, num_bytes in zip(problem.storages, problem.step.storage_bytes, strict=True)
        ]
        self._known: dict[int, tuple[Step, int]] = {}

    def largest(self, plan: Candidate, within_bytes: int) -> int | None:
        """The largest batch at which the plan's peak is within so many bytes."""
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
        """Resident and saved bytes, of the batch ``b``."""
        step, symbol = self.problem.step, self._symbolic.symbol
        saved = sum((self._expressions[s] for s in plan.saved - step.outputs), sympy.Integer(0))
        resident = self._at(2)[1], self._at(3)[1]
        grows = resident[1] - resident[0]
        batch = sympy.Symbol("b", positive=True, integer=True)
        return sympy.expand(saved.subs(symbol, batch) + resident[0] - 2 * grows + grows * batch)

    def _peak_bytes(self, plan: Candidate, batch: int) -> int:
        step, resident_bytes = self._at(batch)
        profile = simulate_orders(step, plan.forward_order, plan.backward_order, plan.saved)
        return resident_bytes + profile.peak_bytes

    def _at(self, batch: int) -> tuple[Step, int]:
        if batch not in self._known:
            values = {e: int(e.subs(self._symbolic.symbol, batch)) for e in set(self._expressions)}
            with planning_for({self._symbolic.symbol: batch}):
                constant_bytes = self.problem.layout_copies_bytes()
                resident_bytes = self._residency_of(self._symbolic.capture).total_bytes
            step = replace(
                self.problem.step,
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
