"""The least-time choice within a limit on bytes: a shortest path under a resource constraint.

The paths are those of ``satcompile.solver.training.demands``. *Identical layers fold* on them: partial
plans that lead to the same demand and spend the same bytes differ in their time at most, and
the fastest of them stands for all. Which of forty layers save a value and which recompute it
is then one partial plan instead of forty choose so many. Of plans that are equal in bytes and
time, the one is kept that saves in later layers, which the backward frees first.

The method for such paths (Handler and Zang, A dual algorithm for the constrained shortest
path problem, Networks 10, 1980): a price per byte turns the constraint into a cost; the price
at which the shortest path's bytes pass the limit (found as by Juettner et al., Lagrange
relaxation based method for the QoS routing problem, INFOCOM 2001) proves a lower bound, the
one of the mixed-integer program's linear relaxation. Two shortest paths at that price, one
within the limit and one beyond, are spliced into a first plan. Where the gap is still open,
partial plans are extended level by level, and those are dropped that the bound rules out.

Exact, with whole numbers of bytes and time, as long as the partial plans of a level are not
more than the effort allows; else almost equal ones are merged, and the bound is lower by what
that may have lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from satcompile.solver.training.demands import Arc, Demands, values_in

# Searches of partial plans, one after the other while the gap is open: the share of the gap in
# which bounds are looked at, and of the partial plans kept. The first mostly finds a plan near
# the bound; the others raise the bound.
_SEARCHES = ((1.0, 1 / 25), (1 / 16, 1.0), (1 / 4, 1.0), (1.0, 1.0))
_TOLERATED = 0.5  # of the gap, spent on treating almost equal partial plans as equal
_THINNED_EVERY = 8  # levels; partial plans that are equal but for trifles are many otherwise


class NoPath(Exception):
    """No choice keeps the saved bytes within the limit."""


@dataclass(frozen=True)
class Choice:
    """A plan found.

    Attributes:
        saved: indices of saved values.
        bound_us: proven lower bound of the time of any plan within the limit.
        partial_plans: how many were looked at; 0 where the splice was good enough.
    """

    saved: tuple[int, ...]
    bound_us: float
    partial_plans: int


class _Level:
    """Arcs between two neighbouring levels of demands, as arrays sorted by source."""

    def __init__(self, arcs: Sequence[Arc]) -> None:
        arcs = sorted(arcs, key=lambda arc: arc.source)
        self.saved = [arc.saved for arc in arcs]
        self.targets = np.array([arc.target for arc in arcs])
        self.num_bytes = np.array([arc.num_bytes for arc in arcs], dtype=np.int64)
        self.times = np.array([arc.time for arc in arcs], dtype=np.int64)
        self.lateness = np.array([arc.lateness for arc in arcs], dtype=np.int64)
        sources = np.array([arc.source for arc in arcs])
        num_sources = int(sources[-1]) + 1
        self.first = np.searchsorted(sources, np.arange(num_sources))
        self.count = np.bincount(sources, minlength=num_sources)

    def cheapest(self, time_price: float, byte_price: float, after: np.ndarray) -> np.ndarray:
        """Cost of the cheapest way from each source to the end, given those from the targets."""
        costs = time_price * self.times + byte_price * self.num_bytes + after[self.targets]
        return np.minimum.reduceat(costs, self.first)


@dataclass(frozen=True)
class _Path:
    """A whole plan: the arc taken at each level, and what they add up to."""

    arcs: tuple[int, ...]
    num_bytes: int
    time: int


@dataclass(frozen=True)
class _Relaxation:
    """What a price per byte proves.

    Attributes:
        price: time units per byte.
        bound: of the time of any path within the limit.
        rounding: more than the error of any sum at this price, in time units.
        to_end: for each level, the least cost from each of its demands to the end.
        within, beyond: two paths that are cheapest at this price, one within the limit.
    """

    price: float
    bound: float
    rounding: float
    to_end: list[np.ndarray]
    within: _Path
    beyond: _Path


class DemandGraph:
    """All choices of a problem, given the values that must be saved; serves every limit."""

    def __init__(self, demands: Demands) -> None:
        self._levels = [_Level(arcs) for arcs in demands.levels]
        self._saved_for_nothing = demands.saved_for_nothing
        self._unit_us, self._slack_us = demands.unit_us, demands.slack_us
        self._smallest = self._cheapest_path(0.0, 1.0)
        self._fastest = self._cheapest_path(1.0, 0.0)
        self._least_bytes = self._costs_to_end(0.0, 1.0)

    def solve(self, limit_bytes: int, gap_us: float, most_partial_plans: int) -> Choice:
        """Least time within the limit, proven up to the gap.

        Args:
            limit_bytes: for all that is saved beyond what must be.
            gap_us: how far from the optimum the plan may be.
            most_partial_plans: kept at one level, beside one for each demand; where there are
                more, almost equal ones are merged, and the bound accounts for it.

        Raises:
            NoPath: the limit is below what any choice must save.
        """
        if self._smallest.num_bytes > limit_bytes:
            raise NoPath
        if self._fastest.num_bytes <= limit_bytes:
            return self._choice(self._fastest, float(self._fastest.time), 0)
        relaxed = self._relax(limit_bytes)
        best, bound = self._splice(relaxed, limit_bytes), relaxed.bound
        # What rounding may add to the gap is taken off; below that, nothing can be proven.
        gap = (gap_us - self._slack_us) / self._unit_us - relaxed.rounding
        gap = max(2 * relaxed.rounding, gap)
        tolerance = gap * _TOLERATED
        looked_at = 0
        for share, effort in _SEARCHES:
            if best.time - bound <= gap:
                break
            ceiling = bound + (best.time - gap + tolerance - bound) * share
            most = math.ceil(most_partial_plans * effort)
            found, proven, count = self._search(limit_bytes, relaxed, ceiling, tolerance, most)
            looked_at += count
            if found is not None and found.time < best.time:
                best = found
            bound = max(bound, min(proven, float(best.time)))
        return self._choice(best, bound, looked_at)

    def _choice(self, path: _Path, bound: float, partial_plans: int) -> Choice:
        saved = list(self._saved_for_nothing)
        for level, arc in zip(self._levels, path.arcs, strict=True):
            saved.extend(values_in(level.saved[arc]))
        bound_us = max(0.0, bound * self._unit_us - self._slack_us)
        return Choice(tuple(sorted(saved)), bound_us, partial_plans)

    # -- paths at a price per byte -----------------------------------------------------------

    def _costs_to_end(self, time_price: float, byte_price: float) -> list[np.ndarray]:
        """For each level, the cost of the cheapest way from each of its demands to the end."""
        costs = [np.zeros(1)]
        for level in reversed(self._levels):
            costs.append(level.cheapest(time_price, byte_price, costs[-1]))
        costs.reverse()
        return costs

    def _cheapest_path(self, time_price: float, byte_price: float) -> _Path:
        return self._follow(time_price, byte_price, self._costs_to_end(time_price, byte_price))

    def _follow(self, time_price: float, byte_price: float, to_end: list[np.ndarray]) -> _Path:
        state, arcs = 0, []
        for level, after in zip(self._levels, to_end[1:], strict=True):
            out = slice(level.first[state], level.first[state] + level.count[state])
            costs = time_price * level.times[out] + byte_price * level.num_bytes[out]
            arc = int(level.first[state] + np.argmin(costs + after[level.targets[out]]))
            arcs.append(arc)
            state = int(level.targets[arc])
        return self._path(arcs)

    def _path(self, arcs: Sequence[int]) -> _Path:
        taken = list(zip(self._levels, arcs, strict=True))
        return _Path(
            tuple(arcs),
            sum(int(level.num_bytes[arc]) for level, arc in taken),
            sum(int(level.times[arc]) for level, arc in taken),
        )

    def _relax(self, limit_bytes: int) -> _Relaxation:
        """The price with the highest lower bound: from the two extremes, the price at which two
        paths cost the same, until no third is cheaper at it."""
        within, beyond = self._smallest, self._fastest
        while True:
            price = (within.time - beyond.time) / (beyond.num_bytes - within.num_bytes)
            cost = within.time + price * within.num_bytes
            to_end = self._costs_to_end(1.0, price)
            found = self._follow(1.0, price, to_end)
            # Of sums of floating-point numbers as large as these.
            largest = cost + price * limit_bytes
            rounding = max(1.0, largest * 2.0**-52 * (len(self._levels) + 2))
            if found.time + price * found.num_bytes >= cost - rounding:
                bound = float(to_end[0][0]) - price * limit_bytes - rounding
                return _Relaxation(price, bound, rounding, to_end, within, beyond)
            if found.num_bytes <= limit_bytes:
                within = found
            else:
                beyond = found

    def _splice(self, relaxed: _Relaxation, limit_bytes: int) -> _Path:
        """The fastest path within the limit that is one of two up to a demand that both have,
        and the other from there. The path beyond the limit, which saves more, comes first, for
        the later layers, where that is as good."""
        within, beyond = relaxed.within, relaxed.beyond
        best = within
        shared = self._shared_levels(within, beyond)
        for first, second in ((beyond, within), (within, beyond)):
            joined = (first.arcs[:level] + second.arcs[level:] for level in reversed(shared))
            for path in map(self._path, joined):
                if path.num_bytes <= limit_bytes and path.time < best.time:
                    best = path
        return best

    def _shared_levels(self, first: _Path, second: _Path) -> list[int]:
        """Levels before which two paths stand at one demand, where they are not the same."""
        shared = []
        for index, level in enumerate(self._levels):
            one, other = first.arcs[index], second.arcs[index]
            if one != other and level.targets[one] == level.targets[other]:
                shared.append(index + 1)
        return shared

    # -- partial plans -------------------------------------------------------------------------

    def _search(
        self,
        limit_bytes: int,
        relaxed: _Relaxation,
        ceiling: float,
        tolerance: float,
        most_partial_plans: int,
    ) -> tuple[_Path | None, float, int]:
        """The fastest plan among those whose bound at this price is below the ceiling, or one
        that takes no longer than it and the tolerance.

        Returns:
            The plan, if there is one; a time that no plan within the limit beats, unless it is
            the plan found; the number of partial plans kept.
        """
        price, to_end = relaxed.price, relaxed.to_end
        plans = _PartialPlans.start()
        steps: list[_PartialPlans] = []
        lost, looked_at = relaxed.rounding, 0
        planned = int(tolerance / (len(self._levels) // _THINNED_EVERY + 1)) or 1
        for number, (level, after, least) in enumerate(
            zip(self._levels, to_end[1:], self._least_bytes[1:], strict=True)
        ):
            plans = plans.extended(level)
            bounds = plans.times + price * (plans.num_bytes - limit_bytes) + after[plans.demands]
            fits = plans.num_bytes + least[plans.demands] <= limit_bytes
            plans = plans.only(np.flatnonzero(fits & (bounds < ceiling)))
            grain = 1 if number % _THINNED_EVERY else planned
            plans = plans.undominated(grain)
            # In grains longer than all times, one plan is left for each demand, and no fewer.
            while len(plans.times) > most_partial_plans and grain <= int(plans.times.max()):
                grain = 2 * max(grain, int(np.ptp(plans.times)) // most_partial_plans)
                plans = plans.undominated(grain)
            lost += grain - 1
            looked_at += len(plans.times)
            steps.append(plans)
        if not len(plans.times):
            return None, ceiling - lost, looked_at
        found = self._traced(steps)
        return found, min(ceiling, found.time) - lost, looked_at

    def _traced(self, steps: Sequence[_PartialPlans]) -> _Path:
        index, arcs = int(np.argmin(steps[-1].times)), []
        for plans in reversed(steps):
            arcs.append(int(plans.arcs[index]))
            index = int(plans.parents[index])
        return self._path(arcs[::-1])


@dataclass(frozen=True)
class _PartialPlans:
    """Plans for the operations looked at so far, one per position in arrays of one length.

    Attributes:
        demands: what each still demands, as its number in the level.
        num_bytes, times, lateness: summed over the arcs taken.
        parents: positions among the partial plans of the level before.
        arcs: the last arc taken.
    """

    demands: np.ndarray
    num_bytes: np.ndarray
    times: np.ndarray
    lateness: np.ndarray
    parents: np.ndarray
    arcs: np.ndarray

    @classmethod
    def start(cls) -> _PartialPlans:
        zero = np.zeros(1, dtype=np.int64)
        return cls(zero, zero, zero, zero, zero, zero)

    def extended(self, level: _Level) -> _PartialPlans:
        """Every plan by every arc that leaves its demand."""
        counts = level.count[self.demands]
        parents = np.repeat(np.arange(len(self.demands)), counts)
        nth = np.arange(len(parents)) - np.repeat(np.cumsum(counts) - counts, counts)
        arcs = level.first[self.demands][parents] + nth
        return _PartialPlans(
            level.targets[arcs],
            self.num_bytes[parents] + level.num_bytes[arcs],
            self.times[parents] + level.times[arcs],
            self.lateness[parents] + level.lateness[arcs],
            parents,
            arcs,
        )

    def only(self, kept: np.ndarray) -> _PartialPlans:
        return _PartialPlans(
            self.demands[kept],
            self.num_bytes[kept],
            self.times[kept],
            self.lateness[kept],
            self.parents[kept],
            self.arcs[kept],
        )

    def undominated(self, grain: int) -> _PartialPlans:
        """Without plans that another with the same demand matches in bytes and time, where
        times are counted in grains: less than one grain is lost by each. Of equals, the one
        that saves later stays."""
        if not len(self.times):
            return self
        times = self.times // grain
        order = np.lexsort((-self.lateness, self.times, self.num_bytes, self.demands))
        # Times, shifted so that all of one demand are above all of the next.
        above = int(times.max()) + 1
        shifted = times[order] + (int(self.demands.max()) - self.demands[order]) * above
        least = np.minimum.accumulate(shifted)
        better = np.ones(len(order), dtype=bool)
        better[1:] = shifted[1:] < least[:-1]
        return self.only(order[better])
