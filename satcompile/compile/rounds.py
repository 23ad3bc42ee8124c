"""One graph of Dynamo's, compiled as often as its plans ask for.

A first plan is made when Dynamo hands the graph over. Later ones are made while training goes
on, for sizes, gradients or neighbours that the first could not know: what surrounded the
graph in Dynamo is kept for that, its inputs as fake tensors.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import sympy
import torch
from torch import fx

from satcompile.compile.allocation import Figures, StepWalk, UnreadableCode, walk_step
from satcompile.compile.attempt import (
    BY_CODE,
    Attempt,
    CodeOnly,
    Known,
    OverLimit,
    graph_device,
    is_on_cpu,
)
from satcompile.compile.growth import GRIDS, grows_with_sizes, rounded_up
from satcompile.options import Options
from satcompile.planner.cost.device import device_of
from satcompile.sizes import format_bytes
from satcompile.solver.rungs import RUNG
from satcompile.torch_compat.dynamo import (
    CompilationContext,
    copy_of_captured,
    is_part_of_call,
    parameter_name,
)
from satcompile.torch_compat.symbols import planning_for, size_expression, size_hint

log = logging.getLogger("satcompile")

_ROUNDS = 5  # of tightening, before the plan with the lowest peak is taken
_MARGIN = 0.015  # of the first round's limit: the simulation is that close to generated code
_WALKS = 4  # kept per plan: their events are many
_MOST_FIGURES = 10_000  # kept per plan
_DEFAULT_MARGIN = 0.03  # by which the simulation of torch's own plan may be too high
# Where code may be lower than that of the lowest simulated peak.
_RUNGS_ABOVE_FLOOR, _LOW_WAYS = (1,), (1, 2)
_LOWEST_CODE = 0.75  # of the simulated peak, where small kernels are fused that it counts apart
AUTO_MARGIN = 0.08  # of free memory: context, fragmentation, other processes

Sizes = tuple[int, ...]


@dataclass
class Planned:
    """A compiled plan, and the sizes for which it holds.

    Attributes:
        attempt: what is known of it.
        compiled: what runs it.
        rounds: compilations until its code was within the limit.
        sizes: for which it was made, in the order of the graph's symbolic inputs.
        conditions: on symbols, which Dynamo does not check because they came up later.
        is_told: whether the log and torch's trace have it.
    """

    attempt: Attempt
    compiled: Any
    rounds: int
    sizes: Sizes
    conditions: Sequence[Any] = ()
    is_told: bool = False
    _walks: dict[Sizes, StepWalk | None] = field(default_factory=dict)
    _figures: dict[Sizes, Figures | None] = field(default_factory=dict)
    _bounds: dict[Sizes, Figures | None] = field(default_factory=dict)

    def bounds_at(self, symbols: Mapping[int, Any], sizes: Sizes) -> Iterator[Figures]:
        """Figures that are no less than ``figures_at``, from high to low, which are known again for
        sizes that come once: what the code takes at larger sizes on a grid. Without any where the
        code may shrink."""
        if not sizes or not self._grows or not self.holds_at(symbols, sizes):
            return
        for bits in GRIDS:
            larger = tuple([rounded_up(size, bits) for size in sizes])
            if larger not in self._bounds:
                if len(self._bounds) >= _MOST_FIGURES:
                    self._bounds.clear()
                walk = self._walk(dict(zip(symbols.values(), larger, strict=True)))
                self._bounds[larger] = None if walk is None else walk.figures
            found = self._bounds[larger]
            if found is not None:
                yield found

    @cached_property
    def _grows(self) -> bool:
        graphs = self.attempt.forward, self.attempt.backward
        return all(graph is not None and grows_with_sizes(graph) for graph in graphs)

    def figures_at(self, symbols: Mapping[int, Any], sizes: Sizes) -> Figures | None:
        """What ``walk_at`` comes to, known again for sizes that come again."""
        if sizes not in self._figures:
            if len(self._figures) >= _MOST_FIGURES:
                self._figures.clear()
            walk = self.walk_at(symbols, sizes)
            self._figures[sizes] = self._simulated_at(sizes) if walk is None else walk.figures
        return self._figures[sizes]

    def knows_figures_at(self, sizes: Sizes) -> bool:
        """Whether nothing has to be walked for ``figures_at``."""
        return sizes in self._figures

    def _simulated_at(self, sizes: Sizes) -> Figures | None:
        """Of code that cannot be followed, what is known at the sizes for which it was planned."""
        is_known = self.attempt.is_training and self.attempt.walk is None and sizes == self.sizes
        return self.attempt.figures if is_known else None

    def walk_at(self, symbols: Mapping[int, Any], sizes: Sizes) -> StepWalk | None:
        """The step's allocations at given sizes; None where the code cannot be followed or does
        not hold."""
        if not self.holds_at(symbols, sizes):
            return None
        if sizes == self.sizes:
            return self.attempt.walk
        if sizes not in self._walks:
            if len(self._walks) >= _WALKS:
                del self._walks[next(iter(self._walks))]
            values = dict(zip(symbols.values(), sizes, strict=True))
            self._walks[sizes] = self._walk(values)
        return self._walks[sizes]

    def holds_at(self, symbols: Mapping[int, Any], sizes: Sizes) -> bool:
        """Whether the conditions that Dynamo does not check are true at these sizes."""
        if not self.conditions:
            return True
        values = dict(zip(symbols.values(), sizes, strict=True))
        return all(bool(condition.subs(values) == sympy.true) for condition in self.conditions)

    def _walk(self, values: Mapping[Any, int]) -> StepWalk | None:
        attempt = self.attempt
        if attempt.walk is None:
            return None
        assert attempt.forward is not None and attempt.backward is not None
        try:
            return walk_step(
                attempt.forward.at_sizes(values),
                attempt.backward.at_sizes(values),
                attempt.num_outputs,
                attempt.transient_outputs,
                attempt.leaf_gradients,
            )
        except UnreadableCode:
            return None


class Compilation:
    """What is needed to plan one graph, now and later."""

    def __init__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> None:
        self.options = options
        self.symbols: dict[int, Any] = {
            position: size_expression(value)
            for position, value in enumerate(example_inputs)
            if isinstance(value, torch.SymInt)
        }
        self.first_sizes: Sizes = tuple(size_hint(example_inputs[i]) for i in self.symbols)
        self.device = graph_device(gm)
        self.others_may_follow = is_part_of_call(gm)
        self._leaves = frozenset(
            position
            for position, value in enumerate(example_inputs)
            if isinstance(value, torch.Tensor) and value.is_leaf and value.requires_grad
        )
        self._trained = frozenset(trained_positions(example_inputs))
        placeholders = gm.graph.find_nodes(op="placeholder")
        self._names = {i: parameter_name(placeholders[i]) for i in self._trained}
        # Compiling rewrites a graph: this one stays as it came, copies are compiled.
        self._gm = gm
        self._context = CompilationContext()
        self._inputs = self._context.fake_inputs(example_inputs)
        self.updates: frozenset[int] = frozenset()
        self._plain = self
        self._default: Planned | None = None
        self._known = Known()
        self._floors: dict[tuple[Sizes, frozenset[int]], Attempt] = {}
        self._default_saved: tuple[str, ...] = ()  # by name, once an attempt has found out

    def with_updates(self, updates: frozenset[int]) -> Compilation:
        """The same graph, whose backward hands the gradients of the inputs at ``updates`` to
        their optimizer. What torch's own plan takes is still that of the graph without."""
        variant = copy.copy(self._plain)
        variant.updates = updates
        return variant

    def named(self) -> AbstractContextManager[None]:
        """What torch logs and traces inside is said of this graph."""
        return self._context.named()

    # -- plans -----------------------------------------------------------------------------

    def without_budget(self, example_inputs: Sequence[Any] | None) -> Planned:
        """Torch's own plan; ``example_inputs`` are of Dynamo's call, None later."""
        attempt = self._attempt()
        if example_inputs is not None:
            compiled = self._try(attempt, example_inputs)
        else:
            assert self._inputs is not None
            with self._context.entered():
                compiled = self._try(attempt, self._inputs)
        return Planned(attempt, compiled, 1, ())

    def within(
        self,
        accept_bytes: int,
        sizes: Sizes,
        example_inputs: Sequence[Any] | None = None,
        saved_limit_bytes: int | None = None,
        lowest_may_exceed: bool = False,
    ) -> Planned:
        """Compile until what the generated code allocates is within ``accept_bytes``.

        Torch's own plan is tried where it may fit. Then each round tightens the limit of the
        simulated peak by what the code was over; at last the plan with the lowest peak is taken.

        Args:
            accept_bytes: for all that the graph's forward and backward allocate.
            sizes: of the graph's symbolic inputs.
            example_inputs: of Dynamo's call; None later, when the graph is planned anew.
            saved_limit_bytes: for what is kept from forward to backward; None for no limit.
            lowest_may_exceed: where no plan fits, return the lowest one instead of raising.

        Raises:
            FloorExceeded: no plan fits.
        """
        if example_inputs is not None:
            return self._rounds(
                accept_bytes, example_inputs, sizes, saved_limit_bytes, lowest_may_exceed
            )
        assert self._inputs is not None
        with self._context.entered() as conditions, planning_for(self.values(sizes)):
            planned = self._rounds(
                accept_bytes, self._inputs, sizes, saved_limit_bytes, lowest_may_exceed
            )
        planned.conditions = tuple(conditions)
        return planned

    @property
    def can_plan_again(self) -> bool:
        """Whether enough was kept of Dynamo's call."""
        return self._inputs is not None

    def _rounds(
        self,
        accept_bytes: int,
        inputs: Sequence[Any],
        sizes: Sizes,
        saved_limit_bytes: int | None,
        lowest_may_exceed: bool,
    ) -> Planned:
        limit, default_within_bytes = first_limits(accept_bytes)
        rounds = 0
        while limit > 0 and rounds < _ROUNDS:
            attempt = self._attempt(
                limit_bytes=limit,
                accept_bytes=accept_bytes,
                saved_limit_bytes=saved_limit_bytes,
                default_within_bytes=0 if rounds else default_within_bytes,
            )
            compiled = self._try(attempt, inputs)
            rounds += 1
            if compiled is not None and attempt.is_within(accept_bytes):
                return Planned(attempt, compiled, rounds, sizes)
            assert attempt.outcome is not None
            simulated_bytes = attempt.outcome.plan.profile.peak_bytes
            if simulated_bytes > max(limit, attempt.default_within_bytes):
                break  # no lower plan is known
            over = attempt.step_peak_bytes - accept_bytes
            log.debug("round %d: generated code is %s over", rounds, format_bytes(over))
            if simulated_bytes > limit:
                continue  # torch's own plan was tried all the same
            # By the ratio at which the code was over its simulation, and by a rung at least.
            limit = min(limit, simulated_bytes) * accept_bytes // attempt.step_peak_bytes
            limit = int(min(limit, simulated_bytes * RUNG))
        return self._at_floor(accept_bytes, inputs, sizes, rounds, lowest_may_exceed)

    def _at_floor(
        self,
        accept_bytes: int,
        inputs: Sequence[Any],
        sizes: Sizes,
        rounds: int,
        may_exceed: bool,
    ) -> Planned:
        """The plan of the lowest simulated peak, if its code is within the accepted bytes; else that
        of the floor, which more plans are generated to find, compiled.

        Raises:
            FloorExceeded: it is over the accepted bytes.
        """
        settings: dict[str, Any] = {"limit_bytes": 0, "lowest_peak": True}
        # On a CPU an attempt that is over compiles no kernel; elsewhere its forward's are.
        if is_on_cpu(self._gm) or self._generated(inputs, **settings).is_within(accept_bytes):
            lowest = self._attempt(**settings, accept_bytes=accept_bytes)
            compiled = self._try(lowest, inputs)
            if compiled is not None:
                return Planned(lowest, compiled, rounds + 1, sizes)
        floor = self._floor(inputs, sizes)
        if not floor.is_within(accept_bytes) and not may_exceed:
            raise FloorExceeded(floor)
        again = self._attempt(**floor.settings)
        compiled = self._try(again, inputs)
        if not again.is_within(accept_bytes) and not may_exceed:
            # A floor that was too low is not named again.
            self._floors[sizes, self.updates] = again
            raise FloorExceeded(again)
        return Planned(again, compiled, rounds + 1, sizes)

    def floor_bytes(self, sizes: Sizes, used: Attempt) -> int:
        """What the plan of the floor allocates: a step that is given that much has a plan. The one
        in use is all that is known where the graph cannot be compiled again."""
        if not self.can_plan_again:
            return used.step_peak_bytes
        assert self._inputs is not None
        with self._context.entered(), planning_for(self.values(sizes)):
            return self._floor(self._inputs, sizes).step_peak_bytes

    def low_plans(self, sizes: Sizes, peak_bytes: int, saved_bytes: int) -> list[Planned]:
        """For a step of several graphs, generated and not compiled: the plans among which the floor
        is, torch's own one of them, and one of so low a peak that saves so little. They follow from
        the graph and its sizes."""
        assert self._inputs is not None
        with self._context.entered() as conditions, planning_for(self.values(sizes)):
            saving = self._generated(  # limits are rounded down to a rung
                self._inputs, limit_bytes=int(peak_bytes / RUNG) + 1, saved_limit_bytes=saved_bytes
            )
            attempts = [*self._low_attempts(self._inputs), self._generated(self._inputs), saving]
        return [Planned(a, None, 1, sizes, tuple(conditions)) for a in attempts]

    def compiled_like(self, planned: Planned, sizes: Sizes) -> Planned:
        """A plan that was generated, compiled."""
        assert self._inputs is not None
        with self._context.entered() as conditions, planning_for(self.values(sizes)):
            attempt = self._attempt(**planned.attempt.settings)
            compiled = self._try(attempt, self._inputs)
        return Planned(attempt, compiled, 1, sizes, tuple(conditions))

    def _floor(self, inputs: Sequence[Any], sizes: Sizes) -> Attempt:
        """The plan whose generated code has the lowest peak, among torch's own, the one of the
        lowest simulated peak, those a little above it and the lowest of each way; generated, not
        compiled. These follow from the graph and its sizes, not from what was asked before."""
        key = (sizes, self.updates)
        if key not in self._floors:
            found = self._low_attempts(inputs)
            if len(found) > 1:  # else it may be a graph without a backward, which has no peak
                found.sort(key=lambda attempt: (attempt.step_peak_bytes, attempt.relative_time))
            self._floors[key] = found[0]
        return self._floors[key]

    def _low_attempts(self, inputs: Sequence[Any]) -> list[Attempt]:
        """Among them the floor, and torch's own plan, above whose peak no floor lies. Of the others,
        what comes to the same plan as another, or to one so much higher that its code cannot be lower,
        is left out."""
        lowest = self._generated(inputs, limit_bytes=0, lowest_peak=True)
        if not lowest.is_training:
            return [lowest]
        assert lowest.outcome is not None
        found, simulated_bytes = [lowest], lowest.outcome.plan.profile.peak_bytes
        # A little above the lowest, code is as far from the simulation; a plan of another kind may
        # be far below it.
        others: list[tuple[float, dict[str, Any]]] = [
            *((1.0, {"limit_bytes": int(simulated_bytes / RUNG**n)}) for n in _RUNGS_ABOVE_FLOOR),
            *(
                (_LOWEST_CODE, {"limit_bytes": 0, "lowest_peak": True, "low_way": way})
                for way in _LOW_WAYS
            ),
        ]
        plans = [lowest.outcome.plan]
        for part, settings in others:
            plan = lowest.decided(**settings).plan
            may_be_lower = part * plan.profile.peak_bytes < min(a.step_peak_bytes for a in found)
            if may_be_lower and not any(plan.is_like(other) for other in plans):
                plans.append(plan)
                found.append(self._generated(inputs, **settings))
        if not any(plan.is_default for plan in plans):
            found.append(self._generated(inputs))
        return found

    def _generated(self, inputs: Sequence[Any], **settings: Any) -> Attempt:
        attempt = self._attempt(dry=True, **settings)
        self._try(attempt, inputs)
        return attempt

    def _attempt(self, **settings: Any) -> Attempt:
        attempt = Attempt(
            settings.pop("options", self.options),
            leaf_gradients=self._leaves,
            trained=self._trained,
            names=self._names,
            known=self._known,
            updates=settings.pop("updates", self.updates),
            **settings,
        )
        if not attempt.takes_regions_as_advice:  # torch's own plan is of the graph with its regions
            attempt.default_saved = self._default_saved
        return attempt

    def _try(self, attempt: Attempt, inputs: Sequence[Any]) -> Any:
        """The compiled callable, or None where the attempt ended early."""
        try:
            return attempt.compile(copy_of_captured(self._gm), inputs)
        except (OverLimit, CodeOnly):
            return None
        finally:
            if attempt.outcome is not None and not attempt.takes_regions_as_advice:
                self._default_saved = attempt.outcome.plan.default_saved

    def values(self, sizes: Sizes) -> dict[Any, int]:
        """The graph's symbols at given sizes of its symbolic inputs."""
        pairs = zip(self.symbols.values(), sizes, strict=True)
        return {symbol: size for symbol, size in pairs if getattr(symbol, "is_Symbol", False)}

    # -- the default's own plan --------------------------------------------------------------

    def default_peak_bytes(self, sizes: Sizes, attempt: Attempt) -> tuple[int, str]:
        """What a step of torch's own plan allocates at its peak, and how that is known."""
        assert attempt.outcome is not None
        walk = self.default_walk(sizes, attempt)
        if walk is not None:
            return walk.peak_bytes, BY_CODE
        default = self._plain._default
        if default is not None and default.attempt.is_training:
            return default.attempt.step_peak_bytes, default.attempt.prediction
        return attempt.outcome.plan.default_profile.peak_bytes, "simulation"

    def default_walk(self, sizes: Sizes, attempt: Attempt) -> StepWalk | None:
        """Allocations of torch's own plan, whose code is generated for that and not compiled
        (unless ``attempt`` is that plan); None where that code cannot be had."""
        assert attempt.outcome is not None
        is_as_torch_has_it = (
            attempt.outcome.plan.is_default
            and not attempt.updates
            and attempt.sparse is None
            and not attempt.regions_forgotten
        )
        if is_as_torch_has_it:
            return Planned(attempt, None, 1, self.first_sizes).walk_at(self.symbols, sizes)
        if self._plain._default is None and not self.can_plan_again:
            return None
        return self._plain._code_of_default().walk_at(self.symbols, sizes)

    def _code_of_default(self, example_inputs: Sequence[Any] | None = None) -> Planned:
        if self._default is None:
            attempt = self._attempt(
                dry=True,
                updates=frozenset(),
                options=self.options.model_copy(update={"sparsity": None}),
            )
            self._default = Planned(attempt, None, 1, self.first_sizes)
            if example_inputs is not None:
                self._try(attempt, example_inputs)
            else:
                assert self._inputs is not None
                with self._context.entered():
                    self._try(attempt, self._inputs)
        return self._default

    # -- the budget --------------------------------------------------------------------------

    def budget_bytes(
        self, resident_bytes: int, sizes: Sizes, example_inputs: Sequence[Any] | None
    ) -> int | None:
        """The budget as a number, for a step that is about to run; None for a share of the
        default's peak where there is no backward to plan. With "auto", ``resident_bytes`` are
        there already."""
        asked = self.options.memory_budget
        assert asked is not None
        if asked.num_bytes is not None:
            return asked.num_bytes
        if asked.auto:
            left_bytes = max(0, _free_bytes(self.device) - _segment_bytes(self.device))
            return resident_bytes + int(left_bytes * (1 - AUTO_MARGIN))
        assert asked.share is not None
        default = self._plain._code_of_default(example_inputs)
        if not default.attempt.is_training:
            return None
        walk = default.walk_at(self.symbols, sizes)
        peak_bytes = walk.peak_bytes if walk is not None else default.attempt.step_peak_bytes
        return int(asked.share * (resident_bytes + peak_bytes))


def trained_positions(inputs: Sequence[Any]) -> list[int]:
    """Which of a graph's inputs are parameters that get a gradient."""
    return [
        position
        for position, value in enumerate(inputs)
        if isinstance(value, torch.nn.Parameter) and value.requires_grad
    ]


class FloorExceeded(Exception):
    """No plan fits; carries the lowest one. The caller knows what surrounds it."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__()
        self.attempt = attempt


def _free_bytes(device: torch.device) -> int:
    """Free memory of the device. On the CPU, physical memory that is not in use at all."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _segment_bytes(device: torch.device) -> int:
    """What torch's allocator takes from a GPU's driver at a time for blocks of some MiB: in the last
    segment most may stay free. And a product's workspace, the largest block of many a small step: it
    comes and goes, and where it was, smaller blocks may lie when it comes again."""
    if device.type != "cuda":
        return 0
    return 20 * 2**20 + device_of(device).product_workspace_bytes


def first_limits(accept_bytes: int) -> tuple[int, int]:
    """For the first of the rounds: what the simulated peak is to stay within, and up to which
    simulated peak torch's own plan is tried, whose code may be lower than that."""
    return (
        accept_bytes - int(_MARGIN * max(accept_bytes, 0)),
        int(accept_bytes * (1 + _DEFAULT_MARGIN)),
    )
