"""Compiles one of Dynamo's graphs, as often as its plans need.

The first plan is made when Dynamo hands the graph over. Later plans are made while training goes
on, for sizes, gradients or neighbouring graphs that the first plan could not know. For this, a
``Compilation`` keeps what surrounded the graph in Dynamo, and its inputs as fake tensors.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import sympy
import torch
from torch import fx

from satcompile.compile.allocation import Figures, StepWalk
from satcompile.compile.code import BY_CODE
from satcompile.compile.generation import Generated, Known, generate
from satcompile.compile.growth import GRIDS, grows_with_sizes, rounded_up
from satcompile.graph.devices import graph_device, is_on_cpu
from satcompile.options import Options
from satcompile.planner.cost.device import device_of
from satcompile.planner.request import Request, Subject
from satcompile.sizes import format_bytes
from satcompile.solver.training.rungs import RUNG
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
_WALKS = 4  # kept per plan: each has many events
_MOST_FIGURES = 10_000  # kept per plan
_DEFAULT_MARGIN = 0.03  # by which the simulation of torch's own plan may be too high
# Plans whose code may be lower than that of the plan with the lowest simulated peak.
_RUNGS_ABOVE_FLOOR, _LOW_WAYS = (1,), (1, 2)
_LOWEST_CODE = 0.75  # of the simulated peak, which counts small kernels apart that Inductor fuses
AUTO_MARGIN = 0.08  # of free memory: context, fragmentation, other processes

Sizes = tuple[int, ...]


@dataclass
class Planned:
    """A plan with its code, and the sizes for which it holds.

    Attributes:
        generated: the plan, its code, and what runs it.
        rounds: compilations until its code was within the limit.
        sizes: sizes for which the plan was made, in the order of the graph's symbolic inputs.
        conditions: conditions on symbols that Dynamo does not check, because they came up later.
    """

    generated: Generated
    rounds: int
    sizes: Sizes
    conditions: Sequence[Any] = ()
    _walks: dict[Sizes, StepWalk | None] = field(default_factory=dict)
    _figures: dict[Sizes, Figures | None] = field(default_factory=dict)
    _bounds: dict[Sizes, Figures | None] = field(default_factory=dict)

    def bounds_at(self, symbols: Mapping[int, Any], sizes: Sizes) -> Iterator[Figures]:
        """Upper bounds of ``figures_at``, from high to low: figures at larger sizes on a grid. They
        are kept for other sizes that come once. There are none where the code may shrink."""
        if not sizes or not self._grows or not self.holds_at(symbols, sizes):
            return
        for bits in GRIDS:
            larger = tuple([rounded_up(size, bits) for size in sizes])
            if larger not in self._bounds:
                if len(self._bounds) >= _MOST_FIGURES:
                    self._bounds.clear()
                walk = self._walked(dict(zip(symbols.values(), larger, strict=True)))
                self._bounds[larger] = None if walk is None else walk.figures
            found = self._bounds[larger]
            if found is not None:
                yield found

    @cached_property
    def _grows(self) -> bool:
        code = self.generated.code
        graphs = () if code is None else (code.forward, code.backward)
        return bool(graphs) and all(g is not None and grows_with_sizes(g) for g in graphs)

    def figures_at(self, symbols: Mapping[int, Any], sizes: Sizes) -> Figures | None:
        """The figures of ``walk_at``, kept for sizes that come again."""
        if sizes not in self._figures:
            if len(self._figures) >= _MOST_FIGURES:
                self._figures.clear()
            walk = self.walk_at(symbols, sizes)
            self._figures[sizes] = self._simulated_at(sizes) if walk is None else walk.figures
        return self._figures[sizes]

    def knows_figures_at(self, sizes: Sizes) -> bool:
        """Whether ``figures_at`` needs no walk at these sizes."""
        return sizes in self._figures

    def _simulated_at(self, sizes: Sizes) -> Figures | None:
        """Figures of code that cannot be followed, only at the sizes for which it was planned."""
        made = self.generated
        is_known = made.is_training and made.walk is None and sizes == self.sizes
        return made.figures if is_known else None

    def walk_at(self, symbols: Mapping[int, Any], sizes: Sizes) -> StepWalk | None:
        """The step's allocations at given sizes; None where the code cannot be followed or the plan
        does not hold."""
        if not self.holds_at(symbols, sizes):
            return None
        if sizes == self.sizes:
            return self.generated.walk
        if sizes not in self._walks:
            if len(self._walks) >= _WALKS:
                del self._walks[next(iter(self._walks))]
            values = dict(zip(symbols.values(), sizes, strict=True))
            self._walks[sizes] = self._walked(values)
        return self._walks[sizes]

    def holds_at(self, symbols: Mapping[int, Any], sizes: Sizes) -> bool:
        """Whether the conditions that Dynamo does not check are true at these sizes."""
        if not self.conditions:
            return True
        values = dict(zip(symbols.values(), sizes, strict=True))
        return all(bool(condition.subs(values) == sympy.true) for condition in self.conditions)

    def _walked(self, values: Mapping[Any, int]) -> StepWalk | None:
        code = self.generated.code
        return None if code is None else code.walk_at(values)


@dataclass(frozen=True)
class OverLimit:
    """No plan fits; ``lowest`` is the plan of the floor."""

    lowest: Generated


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
        leaves = frozenset(
            position
            for position, value in enumerate(example_inputs)
            if isinstance(value, torch.Tensor) and value.is_leaf and value.requires_grad
        )
        trained = frozenset(trained_positions(example_inputs))
        placeholders = gm.graph.find_nodes(op="placeholder")
        names = {i: parameter_name(placeholders[i]) for i in trained}
        self._subject = Subject(len(example_inputs), leaves, trained, names)
        # Compiling rewrites a graph. This one stays as it came; copies are compiled.
        self._gm = gm
        self._context = CompilationContext()
        self._inputs = self._context.fake_inputs(example_inputs)
        self.updates: frozenset[int] = frozenset()
        self._plain = self
        self._default: Planned | None = None
        self._known = Known()
        self._floors: dict[tuple[Sizes, frozenset[int]], Generated] = {}

    def with_updates(self, updates: frozenset[int]) -> Compilation:
        """The same graph, whose backward hands the gradients of the inputs at ``updates`` to their
        optimizer. Figures of torch's own plan are still those of the graph without updates."""
        variant = copy.copy(self._plain)
        variant.updates = updates
        return variant

    def named(self) -> AbstractContextManager[None]:
        """A context in which torch's logs and traces name this graph."""
        return self._context.named()

    # -- plans -----------------------------------------------------------------------------

    def without_budget(self, example_inputs: Sequence[Any] | None) -> Planned:
        """Torch's own plan; ``example_inputs`` are those of Dynamo's call, None later."""
        if example_inputs is not None:
            made = self._generate(self._request(), example_inputs)
        else:
            assert self._inputs is not None
            with self._context.entered():
                made = self._generate(self._request(), self._inputs)
        return Planned(made, 1, ())

    def within(
        self,
        accept_bytes: int,
        sizes: Sizes,
        example_inputs: Sequence[Any] | None = None,
        saved_limit_bytes: int | None = None,
        lowest_may_exceed: bool = False,
    ) -> Planned | OverLimit:
        """Compile until what the generated code allocates is within ``accept_bytes``.

        Torch's own plan is tried where it may fit. Then each round tightens the limit on the
        simulated peak by as much as the code was over. At last, the lowest plan is taken.

        Args:
            accept_bytes: limit on all that the graph's forward and backward allocate.
            sizes: sizes of the graph's symbolic inputs.
            example_inputs: inputs of Dynamo's call; None later, when the graph is planned again.
            saved_limit_bytes: limit on what is kept from forward to backward; None for no limit.
            lowest_may_exceed: where no plan fits, take the lowest one.

        Returns:
            The compiled plan; or, if none fits, how far over the lowest one is.
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
        if isinstance(planned, Planned):
            planned.conditions = tuple(conditions)
        return planned

    @property
    def can_plan_again(self) -> bool:
        """Whether the inputs of Dynamo's call were kept."""
        return self._inputs is not None

    def _rounds(
        self,
        accept_bytes: int,
        inputs: Sequence[Any],
        sizes: Sizes,
        saved_limit_bytes: int | None,
        lowest_may_exceed: bool,
    ) -> Planned | OverLimit:
        limit, default_within_bytes = first_limits(accept_bytes)
        rounds = 0
        while limit > 0 and rounds < _ROUNDS:
            request = self._request(
                limit_bytes=limit,
                accept_bytes=accept_bytes,
                saved_limit_bytes=saved_limit_bytes,
                default_within_bytes=0 if rounds else default_within_bytes,
            )
            made = self._generate(request, inputs)
            rounds += 1
            if made.compiled is not None and made.is_within(accept_bytes):
                return Planned(made, rounds, sizes)
            plan = made.graphs.plan
            simulated_bytes = plan.profile.peak_bytes
            tried_within = request.default_within_bytes if plan.is_default else 0
            if simulated_bytes > max(limit, tried_within):
                break  # no lower plan is known
            over = made.step_peak_bytes - accept_bytes
            log.debug("round %d: generated code is %s over", rounds, format_bytes(over))
            if simulated_bytes > limit:
                continue  # torch's own plan was tried all the same
            # By the ratio at which the code was over its simulation, and by at least one rung.
            limit = min(limit, simulated_bytes) * accept_bytes // made.step_peak_bytes
            limit = int(min(limit, simulated_bytes * RUNG))
        return self._at_floor(accept_bytes, inputs, sizes, rounds, lowest_may_exceed)

    def _at_floor(
        self,
        accept_bytes: int,
        inputs: Sequence[Any],
        sizes: Sizes,
        rounds: int,
        may_exceed: bool,
    ) -> Planned | OverLimit:
        """The plan with the lowest simulated peak, if its code is within ``accept_bytes``; else the
        plan of the floor, compiled if it is within. More plans are generated to find the floor."""
        request = self._request(limit_bytes=0, lowest_peak=True)
        # A generation that is over compiles no kernel on a CPU; elsewhere it compiles the forward.
        if is_on_cpu(self._gm) or self._code_of(request, inputs).is_within(accept_bytes):
            lowest = self._generate(replace(request, accept_bytes=accept_bytes), inputs)
            if lowest.compiled is not None:
                return Planned(lowest, rounds + 1, sizes)
        floor = self._floor(inputs, sizes)
        if not floor.is_within(accept_bytes) and not may_exceed:
            return OverLimit(floor)
        again = self._generate(floor.request, inputs)
        if not again.is_within(accept_bytes) and not may_exceed:
            # A floor that was too low is not named again.
            self._floors[sizes, self.updates] = again
            return OverLimit(again)
        return Planned(again, rounds + 1, sizes)

    def floor_bytes(self, sizes: Sizes, used: Generated) -> int:
        """Bytes that the plan of the floor allocates: a step that is given so many has a plan. Only
        the bytes of the plan in use are known where the graph cannot be compiled again."""
        if not self.can_plan_again:
            return used.step_peak_bytes
        assert self._inputs is not None
        with self._context.entered(), planning_for(self.values(sizes)):
            return self._floor(self._inputs, sizes).step_peak_bytes

    def low_plans(self, sizes: Sizes, peak_bytes: int, saved_bytes: int) -> list[Planned]:
        """Plans for a step of several graphs, generated and not compiled: the candidates for the
        floor, torch's own plan among them, and one limited to ``peak_bytes`` and ``saved_bytes``.
        They follow from the graph and its sizes."""
        assert self._inputs is not None
        with self._context.entered() as conditions, planning_for(self.values(sizes)):
            saving = self._request(  # limits are rounded down to a rung
                limit_bytes=int(peak_bytes / RUNG) + 1, saved_limit_bytes=saved_bytes
            )
            found = [
                self._code_of(saving, self._inputs),
                *self._low_plans(self._inputs),
                self._code_of(self._request(), self._inputs),
            ]
        return [Planned(made, 1, sizes, tuple(conditions)) for made in (*found[1:], found[0])]

    def compiled_like(self, planned: Planned, sizes: Sizes) -> Planned:
        """Compile a plan that was only generated."""
        assert self._inputs is not None
        with self._context.entered() as conditions, planning_for(self.values(sizes)):
            made = self._generate(planned.generated.request, self._inputs)
        return Planned(made, 1, sizes, tuple(conditions))

    def _floor(self, inputs: Sequence[Any], sizes: Sizes) -> Generated:
        """The plan whose generated code has the lowest peak; generated, not compiled. Candidates:
        torch's own plan, the plan with the lowest simulated peak, those a little above it, and the
        lowest of each way. They follow from the graph and its sizes, not from earlier requests."""
        key = (sizes, self.updates)
        if key not in self._floors:
            found = self._low_plans(inputs)
            if len(found) > 1:  # else it may be a graph without a backward, which has no peak
                found.sort(key=lambda made: (made.step_peak_bytes, made.relative_time))
            self._floors[key] = found[0]
        return self._floors[key]

    def _low_plans(self, inputs: Sequence[Any]) -> list[Generated]:
        """The candidates for the floor. Torch's own plan is one: no floor is above its peak. Others
        are left out if they equal a candidate, or are too high for their code to be lower."""
        lowest = self._code_of(self._request(limit_bytes=0, lowest_peak=True), inputs)
        if not lowest.is_training:
            return [lowest]
        found, simulated_bytes = [lowest], lowest.graphs.plan.profile.peak_bytes
        # For plans a little above the lowest, code is as far from the simulation. The code of a
        # plan of another kind may be far below its simulation.
        others: list[tuple[float, Request]] = [
            *(
                (1.0, self._request(limit_bytes=int(simulated_bytes / RUNG**n)))
                for n in _RUNGS_ABOVE_FLOOR
            ),
            *(
                (_LOWEST_CODE, self._request(limit_bytes=0, lowest_peak=True, low_way=way))
                for way in _LOW_WAYS
            ),
        ]
        plans = [lowest.graphs.plan]
        for part, request in others:
            plan = lowest.decided(request).plan
            may_be_lower = part * plan.profile.peak_bytes < min(m.step_peak_bytes for m in found)
            if may_be_lower and not any(plan.is_like(other) for other in plans):
                plans.append(plan)
                found.append(self._code_of(request, inputs))
        if not any(plan.is_default for plan in plans):
            found.append(self._code_of(self._request(), inputs))
        return found

    def _request(self, **settings: Any) -> Request:
        return Request(self.options, self._subject, updates=self.updates, **settings)

    def _code_of(self, request: Request, inputs: Sequence[Any]) -> Generated:
        """The result of a request, without compiling its code."""
        return self._generate(request, inputs, code_only=True)

    def _generate(
        self, request: Request, inputs: Sequence[Any], code_only: bool = False
    ) -> Generated:
        return generate(copy_of_captured(self._gm), inputs, request, self._known, code_only)

    def values(self, sizes: Sizes) -> dict[Any, int]:
        """Values of the graph's symbols at given sizes of its symbolic inputs."""
        pairs = zip(self.symbols.values(), sizes, strict=True)
        return {symbol: size for symbol, size in pairs if getattr(symbol, "is_Symbol", False)}

    # -- the default's own plan --------------------------------------------------------------

    def default_peak_bytes(self, sizes: Sizes, used: Generated) -> tuple[int, str]:
        """Peak bytes of a step with torch's own plan, and how they are known."""
        walk = self.default_walk(sizes, used)
        if walk is not None:
            return walk.peak_bytes, BY_CODE
        default = self._plain._default
        if default is not None and default.generated.is_training:
            return default.generated.step_peak_bytes, default.generated.prediction
        return used.graphs.plan.default_profile.peak_bytes, "simulation"

    def default_walk(self, sizes: Sizes, used: Generated) -> StepWalk | None:
        """Allocations of torch's own plan; None where its code cannot be had. Unless ``used`` is
        that plan, its code is generated for the walk only, and not compiled."""
        is_as_torch_has_it = (
            used.graphs.plan.is_default
            and not used.request.updates
            and used.graphs.sparse is None
            and not used.graphs.regions_forgotten
        )
        if is_as_torch_has_it:
            return Planned(used, 1, self.first_sizes).walk_at(self.symbols, sizes)
        if self._plain._default is None and not self.can_plan_again:
            return None
        return self._plain._code_of_default().walk_at(self.symbols, sizes)

    def _code_of_default(self, example_inputs: Sequence[Any] | None = None) -> Planned:
        if self._default is None:
            dense = self.options.model_copy(update={"sparsity": None})
            request = Request(dense, self._subject)
            if example_inputs is not None:
                made = self._code_of(request, example_inputs)
            else:
                assert self._inputs is not None
                with self._context.entered():
                    made = self._code_of(request, self._inputs)
            self._default = Planned(made, 1, self.first_sizes)
        return self._default

    # -- the budget --------------------------------------------------------------------------

    def budget_bytes(
        self, resident_bytes: int, sizes: Sizes, example_inputs: Sequence[Any] | None
    ) -> int | None:
        """The budget in bytes, for a step that is about to run; None for a share of the default's
        peak where there is no backward to plan. With "auto", ``resident_bytes`` are already
        allocated."""
        asked = self.options.memory_budget
        assert asked is not None
        if asked.num_bytes is not None:
            return asked.num_bytes
        if asked.auto:
            left_bytes = max(0, _free_bytes(self.device) - _segment_bytes(self.device))
            return resident_bytes + int(left_bytes * (1 - AUTO_MARGIN))
        assert asked.share is not None
        default = self._plain._code_of_default(example_inputs)
        if not default.generated.is_training:
            return None
        walk = default.walk_at(self.symbols, sizes)
        peak_bytes = walk.peak_bytes if walk is not None else default.generated.step_peak_bytes
        return int(asked.share * (resident_bytes + peak_bytes))


def trained_positions(inputs: Sequence[Any]) -> list[int]:
    """Which of a graph's inputs are parameters that get a gradient."""
    return [
        position
        for position, value in enumerate(inputs)
        if isinstance(value, torch.nn.Parameter) and value.requires_grad
    ]


def _free_bytes(device: torch.device) -> int:
    """Free memory of the device. On the CPU, physical memory that is not in use at all."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _segment_bytes(device: torch.device) -> int:
    """Bytes that the allocator of a GPU may hold beyond a step's blocks: a segment and a workspace.

    Torch takes memory for blocks of some MiB from the driver in segments, and most of the last one
    may stay free. A product's workspace is the largest block of many small steps. It comes and
    goes, and smaller blocks may lie in its place when it comes again.
    """
    if device.type != "cuda":
        return 0
    return 20 * 2**20 + device_of(device).product_workspace_bytes


def first_limits(accept_bytes: int) -> tuple[int, int]:
    """Limits on the simulated peak for the first round: one for a plan, and one up to which torch's
    own plan is tried, because its code may be lower than its simulated peak."""
    return (
        accept_bytes - int(_MARGIN * max(accept_bytes, 0)),
        int(accept_bytes * (1 + _DEFAULT_MARGIN)),
    )
