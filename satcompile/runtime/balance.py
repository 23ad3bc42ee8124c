"""Several graphs under one budget: how much each may keep for its backward.

Each graph keeps the same share of what it could save, between the least that it can save and what
torch's own plan saves. At each share there are two plans to choose from: the fastest one, whose
backward may be the peak of the step, and the one with the lowest peak. ``plan_together`` takes the
largest share at which the whole step fits by simulation, and generated code decides.

The floor of a step is not the sum of its graphs' floors: memory that a graph keeps is alive while
others run. So each graph offers several low plans, and a mix with a low step peak is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from satcompile.compile.allocation import Figures
from satcompile.compile.generation import Generated
from satcompile.compile.rounds import OverLimit, Planned, Sizes
from satcompile.errors import UnsupportedError
from satcompile.runtime.residency import Residency
from satcompile.runtime.shares import Room, Share, step_peak_bytes, stretch_of
from satcompile.runtime.steps import StepGraph
from satcompile.solver.training.step import StepProfile

_LADDER = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05, 0.0)
_TRIES = 3  # compilations before the lowest plans are taken
_MARGIN = 0.02  # how close the simulation is to generated code
_BEYOND = 1 << 60  # the peak of a plan whose code cannot be followed
_UNKNOWN = Figures(_BEYOND, _BEYOND, _BEYOND, 0, 0)

_T = TypeVar("_T")
_Choice = dict[int, int]  # the number of the plan that a graph takes, by its identity


@dataclass(frozen=True)
class Together:
    """Plans made for a step, as the shares of its calls."""

    shares: list[Share]

    @property
    def peak_bytes(self) -> int:
        return step_peak_bytes(self.shares)


def plan_together(
    graphs: Sequence[StepGraph],
    sizes: Sequence[Sizes],
    residencies: Sequence[Residency],
    limit_bytes: int,
) -> Together:
    """Give every graph a plan, so that the step of these calls fits ``limit_bytes``.

    Args:
        graphs: the graph of each call, in the order of their forwards; a graph may occur
            several times, and has one plan for all of its calls.
        sizes, residencies: those of each call.
        limit_bytes: limit of the whole step, resident bytes included.

    Returns:
        The shares by generated code. If nothing fits, those of the lowest step found, which is
        not compiled.

    Raises:
        UnsupportedError: the code of a graph cannot be followed.
    """
    _refuse_unreadable(graphs)
    calls = _Calls(graphs, sizes, residencies)
    ways = sorted(_ways(calls), key=lambda way: way.time_us)
    fitting = [way for way in ways if way.peak_bytes <= limit_bytes * (1 - _MARGIN)]
    for way in fitting[:_TRIES]:
        found = _generate(calls, way, limit_bytes)
        if found is not None and found.peak_bytes <= limit_bytes:
            return found
    return _floor(calls, min(ways, key=lambda way: way.peak_bytes), limit_bytes)


def _refuse_unreadable(graphs: Sequence[StepGraph]) -> None:
    """Refuse unreadable code: only code says what a graph holds while the others run."""
    for graph in graphs:
        made = graph.plans[0].generated
        if made.walk is None:
            raise UnsupportedError(
                f"A step of {len(graphs)} compiled graphs (graph breaks) does not fit its "
                "memory_budget by the plans that its graphs have, and cannot be planned as a whole: "
                f"the generated code of {graph.name} cannot be followed ({made.unreadable}). "
                "Raise the budget, or remove the graph breaks, so that one plan covers the step."
            )


@dataclass(frozen=True)
class _Calls:
    """The calls of a step, in the order of their forwards."""

    graphs: Sequence[StepGraph]
    sizes: Sequence[Sizes]
    residencies: Sequence[Residency]

    @cached_property
    def distinct(self) -> dict[int, int]:
        """The position of each graph's first call, by the graph's identity."""
        return {id(graph): k for k, graph in reversed(list(enumerate(self.graphs)))}

    def together(self, figures: Sequence[Figures]) -> Together:
        return Together([Share(r, each) for r, each in zip(self.residencies, figures, strict=True)])

    def chosen(self, choice: _Choice, offers: Sequence[Sequence[_T]]) -> list[_T]:
        """The offer that each call takes, by the choice of its graph."""
        return [offer[choice[id(graph)]] for graph, offer in zip(self.graphs, offers, strict=True)]

    def lowest_mix(self, offers: Sequence[Sequence[Figures]]) -> _Choice:
        """A choice with a low step peak. From the best choice in which all graphs take the plan of
        the same number, each graph in turn takes what lowers the peak most, until none does.

        Args:
            offers: for each call, its figures with each of its graph's plans.
        """

        def lowness(choice: _Choice) -> tuple[int, int]:
            figures = self.chosen(choice, offers)
            peak_bytes = self.together(figures).peak_bytes
            return peak_bytes, sum(each.held_bytes for each in figures)

        numbers = range(len(offers[0]))
        best = min((dict.fromkeys(self.distinct, number) for number in numbers), key=lowness)
        while True:
            before = lowness(best)
            for key in self.distinct:
                best = min((best, *({**best, key: number} for number in numbers)), key=lowness)
            if lowness(best) == before:
                return best


@dataclass(frozen=True)
class _Way:
    """A possible plan of a step, simulated: a plan for each of its calls.

    Attributes:
        together: the step.
        profiles: profiles of the calls' plans.
        time_us: time that the plans add.
    """

    together: Together
    profiles: list[StepProfile]
    time_us: float

    @property
    def peak_bytes(self) -> int:
        return self.together.peak_bytes


def _ways(calls: _Calls) -> Iterator[_Way]:
    """Ways with all graphs at the same share and the same kind of plan, then the lowest mix."""
    kinds = [(share, is_low) for share in _LADDER for is_low in (False, True)]
    all_made = [graph.plans[0].generated for graph in calls.graphs]
    plans = [[_at_share(made, *kind) for kind in kinds] for made in all_made]
    offers = [
        [_figures(made, profile) for profile, _ in found]
        for made, found in zip(all_made, plans, strict=True)
    ]
    uniform: list[_Choice] = [dict.fromkeys(calls.distinct, k) for k in range(len(kinds))]
    for choice in (*uniform, calls.lowest_mix(offers)):
        profiles, times = zip(*calls.chosen(choice, plans), strict=True)
        together = calls.together(calls.chosen(choice, offers))
        yield _Way(together, list(profiles), sum(times))


def _at_share(made: Generated, share_of_room: float, is_low: bool) -> tuple[StepProfile, float]:
    """Profile and added time of the plan at a share of what can be saved."""
    default, search = made.graphs.plan.default_profile, made.search
    least_bytes = search.least_saved().profile.saved_bytes
    limit_bytes = least_bytes + int(share_of_room * max(0, default.saved_bytes - least_bytes))
    find = search.lowest_saving if is_low else search.at_saved_bytes
    found = find(limit_bytes)
    if found is None:
        return default, 0.0
    return found.profile, found.solution.time_us


def _figures(made: Generated, profile: StepProfile) -> Figures:
    """A call's figures by simulation."""
    assert made.walk is not None
    return replace(
        made.walk.figures,
        forward_bytes=profile.forward.peak_bytes,
        backward_bytes=profile.backward.peak_bytes,
        held_bytes=profile.forward.end_bytes,
    )


def _generate(calls: _Calls, way: _Way, limit_bytes: int) -> Together | None:
    """Compile a plan for each graph, within the room that the way leaves it; None if the code of
    one does not fit."""
    plans: dict[int, Planned] = {}
    for key, position in calls.distinct.items():
        graph = calls.graphs[position]
        left_bytes = min(
            _room_beside(calls, way, k, limit_bytes).left_bytes
            for k, other in enumerate(calls.graphs)
            if other is graph
        )
        found = graph.compilation.within(
            left_bytes,
            calls.sizes[position],
            saved_limit_bytes=way.profiles[position].saved_bytes,
        )
        if isinstance(found, OverLimit):
            return None
        plans[key] = found
    return _in_use(calls, plans)


def _room_beside(calls: _Calls, way: _Way, position: int, limit_bytes: int) -> Room:
    shares = way.together.shares
    before, after = stretch_of(shares[:position]), stretch_of(shares[position + 1 :])
    return Room(before, after, calls.residencies[position], limit_bytes, 0)


def _floor(calls: _Calls, lowest: _Way, limit_bytes: int) -> Together:
    """The lowest step found by generated code, from low plans of each graph. These do not depend on
    the limit. The step is compiled if it fits.

    Args:
        lowest: the lowest of the simulated ways.
    """
    low: dict[int, list[Planned]] = {}
    for key, k in calls.distinct.items():
        profile = lowest.profiles[k]
        low[key] = calls.graphs[k].compilation.low_plans(
            calls.sizes[k], profile.peak_bytes, profile.saved_bytes
        )
    # The lists differ in length: the last plan fills the shorter ones.
    most = max(len(plans) for plans in low.values())
    low = {key: [*plans, *([plans[-1]] * (most - len(plans)))] for key, plans in low.items()}
    offers = [
        [
            planned.figures_at(graph.compilation.symbols, of) or _UNKNOWN
            for planned in low[id(graph)]
        ]
        for graph, of in zip(calls.graphs, calls.sizes, strict=True)
    ]
    choice = calls.lowest_mix(offers)
    found = calls.together(calls.chosen(choice, offers))
    assert found.peak_bytes < _BEYOND, "the code of no plan could be followed"
    if found.peak_bytes > limit_bytes:
        return found
    compiled = {
        key: calls.graphs[k].compilation.compiled_like(low[key][choice[key]], calls.sizes[k])
        for key, k in calls.distinct.items()
    }
    together = _in_use(calls, compiled)
    assert together is not None, "the code of these plans was followed before"
    return together


def _in_use(calls: _Calls, plans: dict[int, Planned]) -> Together | None:
    """Make every graph run its plan; None if one's code cannot be followed at a call's sizes."""
    figures = []
    for graph, of in zip(calls.graphs, calls.sizes, strict=True):
        found = plans[id(graph)].figures_at(graph.compilation.symbols, of)
        if found is None:
            return None
        figures.append(found)
    for graph in calls.graphs:
        graph.replace_plans(plans[id(graph)])
    return calls.together(figures)
