"""Several graphs under one budget: how much each may keep for its backward.

Each graph keeps the same share of what it could save, between its lowest plan and torch's
own, and the share is the largest at which the whole step fits by simulation; generated code
has the last word.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from satcompile.compilation import FloorExceeded, Planned
from satcompile.residency import Residency
from satcompile.steps import Room, Share, step_peak_bytes, stretch_of

_LADDER = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05, 0.0)
_TRIES = 3  # of compilations, before the lowest plans are taken
_LOW_PLANS = 3  # of each graph, as ``Compilation.low_plans`` has them
_MARGIN = 0.02  # the simulation is that close to generated code


@dataclass(frozen=True)
class Together:
    """Plans made for a step, as the shares of its calls."""

    shares: list[Share]

    @property
    def peak_bytes(self) -> int:
        return step_peak_bytes(self.shares)


def plan_together(
    graphs: Sequence[Any],
    sizes: Sequence[tuple[int, ...]],
    residencies: Sequence[Residency],
    limit_bytes: int,
) -> Together:
    """Give every graph a plan, so that the step of these calls fits ``limit_bytes``.

    Args:
        graphs: ``BoundGraph`` of each call, in the order of their forwards; one may stand
            several times, and has one plan for all of its calls.
        sizes, residencies: of each call.
        limit_bytes: for the whole step, with what is resident.

    Returns:
        The shares as generated; those of the lowest step found, which is not compiled, where
        nothing fits.
    """
    simulated = {
        share_of_room: [
            _simulated(graph, residency, share_of_room)
            for graph, residency in zip(graphs, residencies, strict=True)
        ]
        for share_of_room in _LADDER
    }
    peaks = {rung: step_peak_bytes(shares) for rung, shares in simulated.items()}
    fitting = [rung for rung in _LADDER if peaks[rung] <= limit_bytes * (1 - _MARGIN)]
    for rung in fitting[:_TRIES]:
        try:
            found = _generate(graphs, sizes, residencies, simulated[rung], limit_bytes, rung)
        except FloorExceeded:
            continue
        if found.peak_bytes <= limit_bytes:
            return found
    least_rung = min(_LADDER, key=lambda rung: peaks[rung])
    return _floor(graphs, sizes, residencies, limit_bytes, least_rung)


def _floor(
    graphs: Sequence[Any],
    sizes: Sequence[tuple[int, ...]],
    residencies: Sequence[Residency],
    limit_bytes: int,
    rung: float,
) -> Together:
    """The lowest of a few ways to plan the step, which do not depend on the limit: every graph by
    its own floor, by torch's own plan, or saving little. It is compiled if it fits."""
    distinct = {
        id(graph): (graph, of) for graph, of in reversed(list(zip(graphs, sizes, strict=True)))
    }
    low = {
        key: graph.compilation.low_plans(of, _saved_limit(graph, rung))
        for key, (graph, of) in distinct.items()
    }
    ways: list[tuple[list[Planned], Together]] = []
    for number in range(_LOW_PLANS):
        plans = [low[id(graph)][number] for graph in graphs]
        with suppress(FloorExceeded):
            ways.append((plans, _together(graphs, plans, sizes, residencies)))
    assert ways, "the code of no plan could be followed"
    plans, found = min(ways, key=lambda way: way[1].peak_bytes)
    if found.peak_bytes > limit_bytes:
        return found
    chosen = {id(graph): plan for graph, plan in zip(graphs, plans, strict=True)}
    compiled = {
        key: graph.compilation.compiled_like(chosen[key], of)
        for key, (graph, of) in distinct.items()
    }
    return _in_use(graphs, [compiled[id(graph)] for graph in graphs], sizes, residencies)


def _together(
    graphs: Sequence[Any],
    plans: Sequence[Planned],
    sizes: Sequence[tuple[int, ...]],
    residencies: Sequence[Residency],
) -> Together:
    shares = []
    for graph, planned, of, residency in zip(graphs, plans, sizes, residencies, strict=True):
        figures = planned.figures_at(graph.compilation.symbols, of)
        if figures is None:
            raise FloorExceeded(planned.attempt)
        shares.append(Share(residency, figures))
    return Together(shares)


def _in_use(
    graphs: Sequence[Any],
    plans: Sequence[Planned],
    sizes: Sequence[tuple[int, ...]],
    residencies: Sequence[Residency],
) -> Together:
    found = _together(graphs, plans, sizes, residencies)
    for graph, planned in zip(graphs, plans, strict=True):
        graph.replace_plans(planned)
    return found


def _generate(
    graphs: Sequence[Any],
    sizes: Sequence[tuple[int, ...]],
    residencies: Sequence[Residency],
    simulated: Sequence[Share],
    limit_bytes: int,
    share_of_room: float,
) -> Together:
    plans: dict[int, Planned] = {}
    for position, graph in enumerate(graphs):
        if id(graph) in plans:
            continue
        left_bytes = min(
            Room(
                stretch_of(simulated[:k]), stretch_of(simulated[k + 1 :]), residencies[k],
                limit_bytes, 0,
            ).left_bytes
            for k, other in enumerate(graphs)
            if other is graph
        )  # fmt: skip
        plans[id(graph)] = graph.compilation.within(
            left_bytes,
            sizes[position],
            saved_limit_bytes=_saved_limit(graph, share_of_room),
        )
    return _in_use(graphs, [plans[id(graph)] for graph in graphs], sizes, residencies)


def _saved_limit(graph: Any, share_of_room: float) -> int:
    """Bytes that a graph may save at a share of its room."""
    attempt = graph.plans[0].attempt
    most_bytes = attempt.outcome.plan.default_profile.saved_bytes
    least_bytes = attempt.search.least_saved().profile.saved_bytes
    return least_bytes + int(share_of_room * max(0, most_bytes - least_bytes))


def _simulated(graph: Any, residency: Residency, share_of_room: float) -> Share:
    attempt = graph.plans[0].attempt
    found = attempt.search.at_saved_bytes(_saved_limit(graph, share_of_room))
    profile = attempt.outcome.plan.default_profile if found is None else found.profile
    simulated = replace(
        attempt.walk.figures,
        forward_bytes=profile.forward.peak_bytes,
        backward_bytes=profile.backward.peak_bytes,
        held_bytes=profile.forward.end_bytes,
    )
    return Share(residency, simulated)
