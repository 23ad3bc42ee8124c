"""A compiled graph as Dynamo calls it: with each call's tensors, within the budget.

The conditions that a plan was made for may change during training: sizes grow, gradients stay
set, an optimizer appears, other graphs hold memory. The graph checks each call before the call
allocates anything. While nothing has changed, the check is a lookup. Otherwise the graph takes
another plan that fits, makes a new one, or raises a ``BudgetError``.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any
from weakref import ref

import torch

from satcompile.compile.allocation import Figures
from satcompile.compile.code import BY_CODE
from satcompile.compile.rounds import (
    Compilation,
    OverLimit,
    Planned,
    Sizes,
    trained_positions,
)
from satcompile.errors import BudgetError
from satcompile.report.data import GraphReport
from satcompile.runtime import balance, journal
from satcompile.runtime.graph_report import graph_report
from satcompile.runtime.known_optimizers import OPTIMIZERS
from satcompile.runtime.outside import comes_from_eager
from satcompile.runtime.plan_in_use import PlanInUse, plans_by_speed
from satcompile.runtime.refusal import over_budget
from satcompile.runtime.registry import GraphRecord, most_granted_bytes
from satcompile.runtime.residency import (
    KINDS,
    Residency,
    gradient_bytes,
    is_lasting,
    measure_residency,
)
from satcompile.runtime.shares import (
    NO_CALLS,
    Room,
    Share,
    Stretch,
    resident_bytes,
    step_peak_bytes,
)
from satcompile.runtime.steps import STEPS, Alone, Beside, Call, Step, StepGraph
from satcompile.sizes import format_bytes
from satcompile.torch_compat.symbols import planning_for
from satcompile.torch_compat.tensors import storage_address
from satcompile.updates.optimizers.in_backward import BACKWARD_UPDATES
from satcompile.updates.sparsity.scores import map_bytes

log = logging.getLogger("satcompile")

_MOST_CHOICES = 1_000  # entries kept; sizes that never recur would pile up


@dataclass
class _Choice:
    """The decision for a call, reused while nothing has changed."""

    plan: PlanInUse
    figures: Callable[[], Figures | None] | None = None
    residency: Residency | None = None
    make_report: Callable[[_Choice], GraphReport] | None = None
    _share: Share | None = None

    @cached_property
    def report(self) -> GraphReport | None:
        """The report, made on demand: there may be thousands of choices."""
        return None if self.make_report is None else self.make_report(self)

    def share(self) -> Share | None:
        """The call's share of its step, made on demand: a step with other calls needs it."""
        if self._share is None and self.figures is not None and self.residency is not None:
            figures = self.figures()
            self._share = None if figures is None else Share(self.residency, figures)
        return self._share


@dataclass
class _Place:
    """A graph's place in a step, with the surroundings that stay the same from step to step.

    Attributes:
        residency: memory that is resident there, without the inputs.
        counted: storages and parameters that ``residency`` counts.
        latest: the key and the choice of the latest decision here.
    """

    residency: Residency
    counted: frozenset[int]
    latest: tuple[Any, _Choice] | None = None


_numbers = itertools.count()


class UnlimitedGraph:
    """A graph without a budget: torch's own plan, with the updates that its parameters ask for."""

    def __init__(
        self, compilation: Compilation, inputs: Sequence[Any], record: GraphRecord
    ) -> None:
        self._compilation, self._record = compilation, record
        self._trained = trained_positions(inputs)
        self._choices: dict[frozenset[int], _Choice] = {}

    def first_plan(self, inputs: Sequence[Any]) -> PlanInUse:
        """Plan for the call that Dynamo compiles for."""
        self._record.know(inputs)
        return self._choice(inputs, inputs).plan

    def __call__(self, *args: Any) -> Any:
        choice = self._choice(args)
        self._record.decided = choice
        self._record.observe(args)
        results = choice.plan.forward(*args)
        BACKWARD_UPDATES.forward_ran(args, self._trained, results)
        return results

    def _choice(self, args: Sequence[Any], example_inputs: Sequence[Any] | None = None) -> _Choice:
        offer = BACKWARD_UPDATES.offer(args, self._trained)
        self._record.withheld, updates = offer.withheld, offer.positions
        if updates not in self._choices:
            if example_inputs is None and not self._compilation.can_plan_again:
                log.warning(
                    "%s cannot be compiled again (tensors made of tensors among its inputs), so "
                    "in_backward=True keeps to what its optimizer said at the first call.",
                    self._record.name,
                )
                self._choices[updates] = self._choices[min(self._choices, key=len)]
                return self._choices[updates]  # exact: other gradients are returned
            compilation = self._compilation.with_updates(updates)
            plan = PlanInUse(compilation.without_budget(example_inputs))
            self._choices[updates] = choice = _Choice(plan)
            if plan.generated.is_training:
                make = self._report_maker(plan, measure_residency(args))
                choice.make_report = lambda _: make()
                journal.tell(plan, compilation, make)
        return self._choices[updates]

    def _report_maker(self, plan: PlanInUse, residency: Residency) -> Callable[[], GraphReport]:
        made = plan.generated
        compilation = self._compilation.with_updates(made.request.updates)

        def default() -> tuple[int, str]:
            return compilation.default_peak_bytes(compilation.first_sizes, made)

        return partial(
            graph_report,
            self._record.name, plan, made.walk, residency, None, default,
            partial(compilation.floor_bytes, compilation.first_sizes, made), self._record.latest_call,
        )  # fmt: skip


class BoundGraph:
    """A graph under a budget, with the plans that were made for it."""

    def __init__(
        self, compilation: Compilation, inputs: Sequence[Any], record: GraphRecord
    ) -> None:
        assert compilation.options.memory_budget is not None
        self.compilation, self.record = compilation, record
        self._variants = {compilation.updates: compilation}
        self._asked = compilation.options.memory_budget
        self.plans: list[PlanInUse] = []
        self.last_step: Step | None = None
        self._choices: dict[Any, _Choice] = {}
        self._places: dict[Any, _Place] = {}
        self._budgets: dict[Sizes, int | None] = {}
        self._number = next(_numbers)
        self._told_of_eager = False
        self._trained = trained_positions(inputs)
        self._passing = [
            position
            for position, value in enumerate(inputs)
            if isinstance(value, torch.Tensor) and not is_lasting(value)
        ]
        OPTIMIZERS.watch()

    def is_counted_with(self, other: StepGraph) -> bool:
        """Whether both graphs are under one budget: they are of one code, or have the same budget
        for one device. A model with a budget of its own is part of another's ``reserve``."""
        if self is other:
            return True
        ours, theirs = self.compilation, other.compilation
        is_same_budget = self._asked == theirs.options.memory_budget
        if is_same_budget and ours.device == theirs.device:
            return True
        code = other.record.code
        return code is not None and self.record.is_of(code)

    # -- a call ----------------------------------------------------------------------------

    def first_plan(self, inputs: Sequence[Any]) -> PlanInUse:
        """Plan for the call that Dynamo compiles for."""
        self.record.know(inputs)
        trained = [inputs[position] for position in self._trained]
        call = STEPS.begin(self, inputs, self._instance(trained))
        call.sizes = self.compilation.first_sizes
        try:
            residency = measure_residency(inputs, call.step.counted) + self._maps_of(trained)
            self._offered(inputs)
            before, after = call.before(), call.after()
            return self._choose(call, inputs, residency, before, after, inputs).plan
        finally:
            STEPS.failed(call)  # the call runs, and is counted, when Dynamo calls us

    def __call__(self, *args: Any) -> Any:
        trained = [args[position] for position in self._trained]
        who = self._instance(trained)
        alone = self._alone_as_before(args, trained, who)
        if alone is not None:
            self.record.decided = alone.decided
            self.record.observe(args)
            results = alone.decided.plan.forward(*args)
            STEPS.opened_alone(alone, results)
            BACKWARD_UPDATES.forward_ran(args, self._trained, results)
            return results
        call = STEPS.begin(self, args, who)
        try:
            choice = self._choice(call, args, trained)
            call.share = choice.share
            self.record.decided = choice
            self.record.observe(args)
            results = choice.plan.forward(*args)
        except BaseException:  # after an interrupt, too, this call holds nothing
            STEPS.failed(call)
            raise
        STEPS.opened(call, results)
        BACKWARD_UPDATES.forward_ran(args, self._trained, results)
        return results

    def _instance(self, trained: Sequence[torch.Tensor]) -> tuple[int, ...]:
        """Key of the instance that is called: its first and last parameter tell instances apart."""
        return (self._number, id(trained[0]), id(trained[-1])) if trained else (self._number,)

    def _alone_as_before(
        self, args: Sequence[Any], trained: Sequence[torch.Tensor], who: tuple[int, ...]
    ) -> Alone | None:
        """The call, if no other is under way and an earlier decision applies to it; else None. Most
        calls take this way, in a third of the time."""
        if not STEPS.is_idle() or self.last_step is not None:
            return None
        place = self._places.get((who, 0, gradient_bytes(trained), OPTIMIZERS.version))
        if place is None:
            return None
        symbols = self.compilation.symbols
        sizes = tuple([int(args[position]) for position in symbols]) if symbols else ()
        inputs = [args[position] for position in self._passing]
        if comes_from_eager(inputs):
            return None
        storages = [tensor.untyped_storage() for tensor in inputs]
        addresses = {storage_address(storage) for storage in storages}
        if len(addresses) < len(inputs) or not place.counted.isdisjoint(addresses):
            return None  # some share memory
        input_bytes = sum([storage.nbytes() for storage in storages])
        key = (sizes, input_bytes, place.residency, NO_CALLS, NO_CALLS, self._offered(args))
        if place.latest is not None and place.latest[0] == key:
            choice = place.latest[1]
        elif key in self._choices:
            choice = self._choices[key]
            place.latest = key, choice
        else:
            return None
        return Alone(self, who, sizes, place, choice, [ref(tensor) for tensor in inputs])

    def _choice(self, call: Call, args: Sequence[Any], trained: Sequence[torch.Tensor]) -> _Choice:
        step, symbols = call.step, self.compilation.symbols
        call.sizes = tuple([int(args[position]) for position in symbols]) if symbols else ()
        gradients = gradient_bytes(trained)
        place = self._places.get((call.who, call.trail, gradients, OPTIMIZERS.version))
        if place is None:
            place = self._new_place(call, args, gradients)
        step.count(call, place.counted)
        call.lasting = place.residency
        if call.is_repeated and gradients:
            counted_bytes = step.gradient_bytes_of(call.who)  # this one's, too
            call.lasting += Residency(gradients=max(0, gradients - counted_bytes))
        borrowed_bytes = step.borrowed_bytes
        inputs = [args[position] for position in self._passing]
        input_bytes = sum([step.new_bytes(tensor) for tensor in inputs])
        call.borrowed_bytes = step.borrowed_bytes - borrowed_bytes
        lasting = call.lasting
        # A share is of each graph's own default, which does not depend on other graphs.
        if self._asked.share is None and comes_from_eager(inputs):
            outside = step.outside_of(inputs)
            input_bytes += outside.inputs
            lasting += outside.with_inputs(0)
            self._tell_of_eager(outside)
        updates = self._offered(args)
        before, after = call.before(), call.after()
        # Lasting memory enters the key by its bytes: another call with the same bytes is as good.
        key = (call.sizes, input_bytes, lasting, before, after, updates)
        if place.latest is not None and place.latest[0] == key:  # cheaper than a hash
            return place.latest[1]
        if key not in self._choices:
            if len(self._choices) >= _MOST_CHOICES:
                self._choices.clear()
            residency = lasting.with_inputs(input_bytes)
            self._choices[key] = self._choose(call, args, residency, before, after)
        place.latest = key, self._choices[key]
        return self._choices[key]

    def _tell_of_eager(self, outside: Residency) -> None:
        """Warn, once per graph, of memory that eager code holds: no plan controls it."""
        if self._told_of_eager or not outside.total_bytes:
            return
        self._told_of_eager = True
        log.warning(
            "%s: code that Dynamo did not compile (graph breaks; torch._dynamo.explain says why) ran "
            "before this graph. It holds %s for its backward, and %s of parameters, gradients and "
            "optimizer state. The plans leave room for these; for what it allocates for a moment, "
            "keep room with the option 'reserve'.",
            self.name,
            format_bytes(outside.inputs),
            format_bytes(outside.total_bytes - outside.inputs),
        )

    def _new_place(self, call: Call, args: Sequence[Any], gradients: int) -> _Place:
        """Make a place with what is resident there, which stays the same until the key changes."""
        if len(self._places) >= _MOST_CHOICES:
            self._places.clear()
        counted = call.step.counted
        known = set(counted)
        stays = [a for i, a in enumerate(args) if i not in set(self._passing)]
        found = measure_residency(stays, known)
        # Torch marks lasting tensors when it compiles, in the instance that it compiles for.
        residency = replace(found, parameters=found.parameters + found.inputs, inputs=0)
        if not call.is_repeated:
            residency += self._maps_of([args[position] for position in self._trained])
        place = _Place(residency, frozenset(known - counted))
        self._places[call.who, call.trail, gradients, OPTIMIZERS.version] = place
        return place

    def _maps_of(self, trained: Sequence[torch.Tensor]) -> Residency:
        """Memory that sparse training keeps besides the optimizer's own state."""
        sparsity = self.compilation.options.sparsity
        if sparsity is None:
            return Residency()
        return Residency(optimizer_state=map_bytes(sparsity.score, trained, sparsity.block))

    def _offered(self, args: Sequence[Any]) -> frozenset[int]:
        """Inputs whose gradients the backward may hand over; plan for these from now on."""
        offer = BACKWARD_UPDATES.offer(args, self._trained)
        self.record.withheld = offer.withheld
        if offer.positions != self.compilation.updates:
            self._switch_to(offer.positions)
        return offer.positions

    def _switch_to(self, updates: frozenset[int]) -> None:
        """Plan from now on for backwards that hand over the gradients of these inputs."""
        if updates not in self._variants:
            self._variants[updates] = self.compilation.with_updates(updates)
        self.compilation = self._variants[updates]

    # -- a decision ------------------------------------------------------------------------

    def _choose(
        self,
        call: Call,
        args: Sequence[Any],
        residency: Residency,
        before: Stretch,
        after: Stretch,
        example_inputs: Sequence[Any] | None = None,
    ) -> _Choice:
        budget_bytes = self._budget(call.sizes, args, residency, example_inputs)
        if budget_bytes is None:  # a share of the default's peak, where there is no backward
            return _Choice(PlanInUse(self.compilation.without_budget(args)))
        beside = call.beside()
        if self._asked.share is not None:
            before = after = NO_CALLS  # each graph has its own default
            beside = Beside()
        room = Room(before, after, residency, budget_bytes, self.compilation.options.reserve)
        plan = self._plan_that_holds(room, call.sizes)
        if plan is None:
            with journal.refusals(self.compilation):
                plan, room, beside = self._another_plan(call, room, beside, example_inputs)
        if self._asked.share is not None:
            known_bytes = self.record.granted.get(self._asked.share, 0)
            self.record.granted[self._asked.share] = max(known_bytes, budget_bytes)
        figures = partial(plan.planned.figures_at, self.compilation.symbols, call.sizes)
        choice = _Choice(plan, figures, residency)
        if plan.generated.is_training:
            choice.make_report = partial(self._report, call, room, beside)
            if not plan.is_told:
                self.record.decided = choice
                journal.tell(plan, self.compilation, partial(choice.make_report, choice))
        return choice

    def _plan_that_holds(self, room: Room, sizes: Sizes) -> PlanInUse | None:
        """The fastest plan that holds; None if none does."""
        return next((p for p in self.plans if self._holds(p, room, sizes)), None)

    def _holds(self, plan: PlanInUse, room: Room, sizes: Sizes) -> bool:
        planned = plan.planned
        if planned.generated.request.updates != self.compilation.updates:
            return False
        if not planned.knows_figures_at(sizes):
            bounds = planned.bounds_at(self.compilation.symbols, sizes)
            if any(room.peak_bytes_with(bound) <= room.limit_bytes for bound in bounds):
                return True
        figures = planned.figures_at(self.compilation.symbols, sizes)
        return figures is not None and room.peak_bytes_with(figures) <= room.limit_bytes

    def _budget(
        self,
        sizes: Sizes,
        args: Sequence[Any],
        residency: Residency,
        example_inputs: Sequence[Any] | None,
    ) -> int | None:
        # Free memory is read once, before we take it. A share is of the default's peak at these
        # sizes.
        key = sizes if self._asked.share is not None else ()
        if key not in self._budgets:
            if self._asked.auto:
                # Resident memory that does not exist yet must fit into the free memory.
                trained = [args[position] for position in self._trained]
                state_bytes = OPTIMIZERS.existing_bytes(trained)
                residency = replace(residency, optimizer_state=state_bytes, workspaces=0)
            self._budgets[key] = self.compilation.budget_bytes(
                residency.total_bytes, sizes, example_inputs
            )
        return self._budgets[key]

    def _another_plan(
        self, call: Call, room: Room, beside: Beside, example_inputs: Sequence[Any] | None
    ) -> tuple[PlanInUse, Room, Beside]:
        """A plan for a call that no known plan fits, and the room with it. For a small batch, whose
        peak is its gradients, there may be no plan within a share of the default's peak. It then
        gets what a larger one was granted, so that no run ends at the last batch of its data."""
        try:
            return self._plan(call, room, beside, example_inputs)
        except BudgetError:
            share = self._asked.share
            granted_bytes = 0 if share is None else most_granted_bytes(self.record, share)
            if granted_bytes <= room.budget_bytes:
                raise
        room = replace(room, budget_bytes=granted_bytes)
        self._budgets[call.sizes] = granted_bytes
        plan = self._plan_that_holds(room, call.sizes)
        if plan is not None:
            return plan, room, beside
        return self._plan(call, room, beside, example_inputs)

    def _plan(
        self, call: Call, room: Room, beside: Beside, example_inputs: Sequence[Any] | None
    ) -> tuple[PlanInUse, Room, Beside]:
        """Make another plan; return it with the room and the other calls as they then are."""
        if example_inputs is None:
            self._announce(call, room)
        if beside.later and call.position == 0:
            return self._plan_whole_step(call, room, beside)
        found = self.compilation.within(
            room.left_bytes, call.sizes, example_inputs, lowest_may_exceed=call.is_provisional
        )
        if isinstance(found, OverLimit):
            raise over_budget(
                found.lowest, room.residency, room.outside_bytes, self.compilation.options,
                room.budget_bytes, self._situation(call, room),
                self.compilation.others_may_follow and call.last_step is None,
            )  # fmt: skip
        if not found.holds_at(self.compilation.symbols, call.sizes):
            raise self._no_other_plan(call, room)
        plan = self._add(found)
        self._check_whole_step(call, room, found)
        return plan, room, beside

    def _check_whole_step(self, call: Call, room: Room, planned: Planned) -> None:
        """Check calls that are planned already. They may not fit beside the new plan although it
        fits beside them: their backwards run while its gradients exist."""
        figures = planned.figures_at(self.compilation.symbols, call.sizes)
        if figures is None:
            return
        peak_bytes = room.peak_bytes_with(figures)
        if peak_bytes <= room.limit_bytes:
            return
        if not call.is_provisional:
            raise self._below_floor_of_step(room, peak_bytes, call.position + 1)
        log.warning(
            "%s: beside what earlier graphs of this step hold, no plan is within the "
            "memory_budget. The first step may exceed it; from the second on all graphs are "
            "planned together.",
            self.name,
        )

    def _plan_whole_step(
        self, call: Call, room: Room, beside: Beside
    ) -> tuple[PlanInUse, Room, Beside]:
        """Plan all graphs of the step that this call begins, so that the whole step fits."""
        last = call.last_step
        assert last is not None
        graphs = [call.graph, *(other.graph for other in last.calls[1:])]
        sizes = [call.sizes, *(other.sizes for other in last.calls[1:])]
        residencies = [room.residency, *(share.residency for share in beside.later)]
        found = balance.plan_together(graphs, sizes, residencies, room.limit_bytes)
        if found.peak_bytes > room.limit_bytes:
            raise self._below_floor_of_step(room, found.peak_bytes, len(graphs))
        for other, share in zip(last.calls, found.shares, strict=True):
            other.share = share
        last.changed()
        room = replace(room, later=last.suffix(1))
        updates = self.compilation.updates
        plan = next(p for p in self.plans if p.generated.request.updates == updates)
        return plan, room, Beside(later_calls=last.calls[1:])

    def _below_floor_of_step(self, room: Room, peak_bytes: int, num_graphs: int) -> BudgetError:
        floor_bytes = peak_bytes + room.reserve_bytes
        return BudgetError(
            f"memory_budget {self._asked.text!r} "
            f"({format_bytes(room.budget_bytes)}) is below the floor of "
            f"{format_bytes(floor_bytes)} ({floor_bytes} bytes) of a step of {num_graphs} "
            "compiled graphs (graph breaks). Raise the budget to the floor or above, lower the "
            "batch size or sequence length, or remove the graph breaks, so that one plan "
            "covers the whole step.",
            budget_bytes=room.budget_bytes, floor_bytes=floor_bytes, floor_op=self.name,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return self.record.name

    def _situation(self, call: Call, room: Room) -> str:
        found = f" at sizes {call.sizes}" if call.sizes and self.plans else ""
        if room.residency.gradients:
            found += ", with gradients that are still set"
        return found

    def _announce(self, call: Call, room: Room) -> None:
        if not self.compilation.can_plan_again:
            raise self._no_other_plan(call, room)
        log.info("planning anew for %s", self._describe(call, room))

    def _describe(self, call: Call, room: Room) -> str:
        return (
            f"{self.name} at sizes {call.sizes}, {format_bytes(room.residency.total_bytes)} "
            f"resident, {format_bytes(room.outside_bytes)} of other graphs"
        )

    def _no_other_plan(self, call: Call, room: Room) -> BudgetError:
        return BudgetError(
            f"No plan was made for {self._describe(call, room)}, and code generated for other "
            "sizes cannot be used for these. Compile with dynamic=False to have a plan for each "
            "size, or call torch.compiler.reset() and begin with the largest inputs and after the "
            "optimizer is made.",
            budget_bytes=room.budget_bytes, floor_bytes=room.budget_bytes, floor_op="",
        )  # fmt: skip

    def _add(self, planned: Planned) -> PlanInUse:
        """Add a plan to choose from; calls take the fastest that fits."""
        plan = PlanInUse(planned, partial(STEPS.backward_begins, self))
        self.plans = plans_by_speed([*self.plans, plan])
        return plan

    def replace_plans(self, planned: Planned) -> None:
        """Make ``planned`` the only plan from now on."""
        self.plans = []
        self._choices.clear()
        self._places.clear()
        self._add(planned)

    # -- the report ------------------------------------------------------------------------

    def _report(self, call: Call, room: Room, beside: Beside, choice: _Choice) -> GraphReport:
        compilation, sizes, share = self.compilation, call.sizes, choice.share()
        plan = choice.plan
        shares = [*beside.earlier, *([share] if share else []), *beside.later]
        several = len(shares) > 1

        def default() -> tuple[int, str]:
            if several:
                return _default_of_whole_step(call, room.residency, beside)
            return compilation.default_peak_bytes(sizes, plan.generated)

        with planning_for(compilation.values(sizes)):  # shapes as they are now
            report = graph_report(
                self.name, plan, plan.planned.walk_at(compilation.symbols, sizes),
                room.residency, room.budget_bytes, default,
                partial(compilation.floor_bytes, sizes, plan.generated), self.record.latest_call,
            )  # fmt: skip
        if several:
            _count_whole_step(report, shares, len(beside.earlier))
        return report

    def default_share(self, sizes: Sizes, residency: Residency) -> Share | None:
        """The share that a call would add to its step with torch's own plan."""
        walk = self.compilation.default_walk(sizes, self.plans[0].generated)
        return None if walk is None else Share(residency, walk.figures)


def _default_of_whole_step(call: Call, residency: Residency, beside: Beside) -> tuple[int, str]:
    """Bytes allocated at the peak of a step whose graphs all have torch's own plan."""
    last = call.last_step
    calls = [*call.step.calls[: call.position], call]
    calls += last.calls[call.position + 1 :] if last is not None else []
    residencies = [s.residency for s in beside.earlier]
    residencies += [residency, *(s.residency for s in beside.later)]
    shares = [
        other.graph.default_share(other.sizes, alive)
        for other, alive in zip(calls, residencies, strict=False)
    ]
    known = [share for share in shares if share is not None]
    how = BY_CODE if len(known) == len(shares) else "simulation"
    return step_peak_bytes(known) - resident_bytes(known), how


def _count_whole_step(report: GraphReport, shares: Sequence[Share], position: int) -> None:
    """Make the report of one of several graphs describe the whole step."""
    own_bytes = report.predicted_peak_bytes - report.resident_bytes
    report.resident = {
        kind: sum(getattr(share.residency, kind) for share in shares)
        for kind in KINDS
        if kind != "inputs"
    } | {"inputs": shares[0].residency.inputs}
    report.predicted_peak_bytes = step_peak_bytes(shares)
    report._simulated_default_bytes = None  # it covers this graph alone
    report.beside_bytes = max(0, report.predicted_peak_bytes - report.resident_bytes - own_bytes)
    report.notes.append(
        f"graph {position + 1} of a step of {len(shares)} compiled graphs (graph breaks): resident, "
        "predicted and default bytes are the whole step's; the budget holds for the whole from the "
        "second step on"
    )
