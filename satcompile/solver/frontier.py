"""Exact two-phase plans by dynamic programming over what the backward still lacks.

The operations of the forward are looked at from the last to the first. All that matters of
the decisions taken so far is the *demand*: which values made further up are needed, by the
backward itself or by an operation that runs again. A demanded value is saved, or its
operation runs again and demands what it reads. In a network of layers the demand between two
operations is a subset of a handful of values, so that the choices are the paths of a small
graph, whose nodes are demands and whose arcs cost bytes and time: the least time within a
limit on bytes is a shortest path under a resource constraint.

*Identical layers fold.* Partial plans that lead to the same demand and spend the same bytes
differ in their time at most, and the fastest of them stands for all: which of forty layers
save a value and which recompute it is one partial plan instead of forty choose so many. Of
plans that are equal in bytes and time, the one is kept that saves in later layers, which the
backward frees first.

The method for such paths (Handler and Zang, A dual algorithm for the constrained shortest
path problem, Networks 10, 1980): a price per byte turns the constraint into a cost; the price
at which the shortest path's bytes pass the limit (found as by Jüttner et al., Lagrange
relaxation based method for the QoS routing problem, INFOCOM 2001) proves a lower bound, the
one of the mixed-integer program's linear relaxation. Two shortest paths at that price, one
within the limit and one beyond, are spliced into a first plan. Where the gap is still open,
partial plans are extended level by level, and those are dropped that the bound rules out.

Exact, with whole numbers of bytes and time. Not for every graph: where many values stay in
use over many operations (long skip connections side by side), demands multiply, and ``build``
gives up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from satcompile.solver.two_phase import Problem

_MOST_ARCS = 200_000
_MOST_DEMANDS = 2_000  # at one operation
_TAIL = 10  # operations hanging off the forward that are looked at together with what they read
# Searches of partial plans, one after the other while the gap is open: the share of the gap in
# which bounds are looked at, and of the partial plans kept. The first mostly finds a plan near
# the bound; the others raise the bound.
_SEARCHES = ((1.0, 1 / 50), (1 / 16, 1.0), (1 / 4, 1.0), (1.0, 1.0))
_TOLERATED = 0.5  # of the gap, spent on treating almost equal partial plans as equal
_THINNED_EVERY = 8  # levels; partial plans that are equal but for trifles are many otherwise
_TIME_BITS = 44  # resolution of times: 2**-44 of the sum of all

# A demand: the values needed, and whether each must be written to memory for its readers.
_Demand = frozenset[tuple[int, bool]]


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


class _Arc(NamedTuple):
    """A way to meet, at one operation or several, one demand, which leaves another.

    Attributes:
        source, target: numbers of the demands, each in its own level.
        num_bytes, time: what it saves and spends; time in the graph's units.
        lateness: sum of saved bytes, each times the position of its operation.
        saved: values, in nested pairs as arcs were joined.
    """

    source: int
    target: int
    num_bytes: int
    time: int
    lateness: int
    saved: Any


class _Level:
    """Arcs between two neighbouring levels of demands, as arrays sorted by source."""

    def __init__(self, arcs: Sequence[_Arc]) -> None:
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


class DemandGraph:
    """All choices of a problem, given the values that must be saved."""

    def __init__(
        self,
        levels: list[_Level],
        unit_us: float,
        slack_us: float,
        saved_for_nothing: tuple[int, ...],
    ) -> None:
        self._levels, self._saved_for_nothing = levels, saved_for_nothing
        self._unit_us, self._slack_us = unit_us, slack_us
        self._smallest = self._cheapest_path(0.0, 1.0)
        self._fastest = self._cheapest_path(1.0, 0.0)
        self._least_bytes = self._costs_to_end(0.0, 1.0)

    def solve(self, limit_bytes: int, gap_us: float, most_partial_plans: int) -> Choice:
        """Least time within the limit, proven up to the gap.

        Args:
            limit_bytes: for all that is saved beyond what must be.
            gap_us: how far from the optimum the plan may be.
            most_partial_plans: kept at one level; where there are more, the least promising
                are dropped, and the bound accounts for them.

        Raises:
            NoPath: the limit is below what any choice must save.
        """
        if self._smallest.num_bytes > limit_bytes:
            raise NoPath
        if self._fastest.num_bytes <= limit_bytes:
            return self._choice(self._fastest, float(self._fastest.time), 0)
        price, bound, within, beyond = self._price_of_bytes(limit_bytes)
        best = self._splice(within, beyond, limit_bytes)
        # What rounding may add to the gap is taken off; below that, nothing can be proven.
        gap = max(2.0, (gap_us - self._slack_us) / self._unit_us - 2.0)
        tolerance = gap * _TOLERATED
        looked_at = 0
        for share, effort in _SEARCHES:
            if best.time - bound <= gap:
                break
            ceiling = bound + (best.time - gap + tolerance - bound) * share
            found, proven, count = self._search(
                limit_bytes, price, ceiling, tolerance, math.ceil(most_partial_plans * effort)
            )
            looked_at += count
            if found is not None and found.time < best.time:
                best = found
            bound = max(bound, min(proven, float(best.time)))
        return self._choice(best, bound, looked_at)

    def _choice(self, path: _Path, bound: float, partial_plans: int) -> Choice:
        saved = list(self._saved_for_nothing)
        for level, arc in zip(self._levels, path.arcs, strict=True):
            saved.extend(_flat(level.saved[arc]))
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

    def _price_of_bytes(self, limit_bytes: int) -> tuple[float, float, _Path, _Path]:
        """The price with the highest lower bound.

        Returns:
            The price, the bound, and two paths that are cheapest at it (within rounding): one
            within the limit, one beyond.
        """
        within, beyond = self._smallest, self._fastest
        while True:
            price = (within.time - beyond.time) / (beyond.num_bytes - within.num_bytes)
            to_end = self._costs_to_end(1.0, price)
            found = self._follow(1.0, price, to_end)
            bound = float(to_end[0][0]) - price * limit_bytes
            if found.time + price * found.num_bytes >= within.time + price * within.num_bytes - 1:
                return price, bound - 1, within, beyond
            if found.num_bytes <= limit_bytes:
                within = found
            else:
                beyond = found

    def _splice(self, within: _Path, beyond: _Path, limit_bytes: int) -> _Path:
        """The fastest path within the limit that is the one up to a demand that both have, and
        the other from there. The path beyond the limit, which saves more, comes first, for
        the later layers, where that is as good."""
        best = within
        shared = self._shared_levels(within, beyond)
        for first, second in ((beyond, within), (within, beyond)):
            joined = (first.arcs[:level] + second.arcs[level:] for level in reversed(shared))
            fitting = (self._path(arcs) for arcs in joined)
            fastest = min(
                (path for path in fitting if path.num_bytes <= limit_bytes),
                key=lambda path: path.time,
                default=best,
            )
            best = fastest if fastest.time < best.time else best
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
        price: float,
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
        to_end = self._costs_to_end(1.0, price)
        plans = _PartialPlans.start()
        steps: list[_PartialPlans] = []
        lost, looked_at = 1, 0
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
            while len(plans.times) > most_partial_plans:
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


# -- from a problem to its graph ---------------------------------------------------------------


def build(problem: Problem, forced: Iterable[int]) -> DemandGraph | None:
    """The graph of a problem's choices; None where it would be too large.

    Args:
        problem: operations in an order in which each comes after what it reads.
        forced: values that are saved in any case; their bytes and times are the caller's to add.

    Raises:
        NoPath: something needed can be neither saved nor computed again.
    """
    unit_us = _time_unit(problem)
    expansion = _Expansion(problem, frozenset(forced), unit_us)
    arcs = expansion.levels()
    if arcs is None:
        return None
    levels = [_Level(joined) for joined in _joined(_without_dead_ends(arcs))]
    # Each time was rounded by half a unit at most.
    slack_us = unit_us * (len(problem.operations) + 2 * len(problem.values))
    return DemandGraph(levels, unit_us, slack_us, expansion.saved_for_nothing)


def _time_unit(problem: Problem) -> float:
    """A power of two, in which sums of all times are whole numbers far from overflow."""
    total_us = sum(operation.time_us for operation in problem.operations)
    total_us += sum(v.save_time_us + v.materialize_time_us for v in problem.values)
    return 2.0 ** (math.frexp(total_us or 1.0)[1] - _TIME_BITS)


class _Expansion:
    """Demands and arcs, operation by operation from the last to the first."""

    def __init__(self, problem: Problem, forced: frozenset[int], unit_us: float) -> None:
        self._problem, self._unit_us = problem, unit_us
        self._results = _results(problem)
        self._unfused = [frozenset(value.unfused_readers) for value in problem.values]
        self.saved_for_nothing = tuple(
            i
            for i, value in enumerate(problem.values)
            if value.saveable and not value.num_bytes and not value.save_time_us
        )
        self._always_there = self._find_always_there({*forced, *self.saved_for_nothing})

    def _units(self, time_us: float) -> int:
        return round(time_us / self._unit_us)

    def _find_always_there(self, saved: set[int]) -> frozenset[int]:
        """Values that never need a decision: saved in any case, or made of such in no time."""
        found = set(saved)
        for index, operation in enumerate(self._problem.operations):
            free = operation.recomputable and not operation.time_us
            if free and found.issuperset(operation.reads):
                found.update(
                    i
                    for i in self._results[index]
                    if not self._problem.values[i].materialize_time_us
                )
        return frozenset(found)

    def levels(self) -> list[list[_Arc]] | None:
        """Arcs level by level; None where there are too many."""
        demands: dict[_Demand, int] = {frozenset(): 0}
        levels, num_arcs = [], 0
        order = looking_order(self._problem)
        for position in range(len(order) - 1, -1, -1):
            following: dict[_Demand, int] = {}
            arcs = []
            for demand, source in demands.items():
                for left, num_bytes, time, saved in self._ways(order[position], demand):
                    target = following.setdefault(left, len(following))
                    lateness = num_bytes * position
                    arcs.append(_Arc(source, target, num_bytes, time, lateness, saved))
            num_arcs += len(arcs)
            if num_arcs > _MOST_ARCS or len(following) > _MOST_DEMANDS:
                return None
            levels.append(arcs)
            demands = following
        return levels

    def _ways(
        self, index: int, demand: _Demand
    ) -> Iterator[tuple[_Demand, int, int, tuple[int, ...]]]:
        """The ways in which an operation can meet a demand, with what it leaves, the bytes,
        the time and the values saved: its demanded results are all saved, or it runs again."""
        values = self._problem.values
        left = dict(demand)
        wanted = {i: left.pop(i, False) for i in self._results[index] if i in left}
        for i in self._results[index]:
            if values[i].needed and i not in self._always_there:
                wanted[i] = wanted.get(i, False) or values[i].unfused_backward
        if not wanted:
            yield demand, 0, 0, ()
            return
        saved = tuple(sorted(wanted))
        if all(values[i].saveable for i in saved):
            yield frozenset(left.items()), *self._spent(saved)
        operation = self._problem.operations[index]
        if not operation.recomputable:
            return
        for reading in operation.reads:
            if reading not in self._always_there:
                self._demand(left, reading, index)
        written = [i for i in saved if wanted[i] and values[i].materialize_time_us]
        for chosen in self._saved_anyway(written):
            _, num_bytes, time, _ = (None, *self._spent(chosen))
            time += self._units(operation.time_us)
            time += sum(
                self._units(values[i].materialize_time_us) for i in written if i not in chosen
            )
            yield frozenset(left.items()), num_bytes, time, chosen

    def _spent(self, saved: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        values = self._problem.values
        num_bytes = sum(values[i].num_bytes for i in saved)
        return num_bytes, sum(self._units(values[i].save_time_us) for i in saved), saved

    def _demand(self, demand: dict[int, bool], i: int, reader: int) -> None:
        """Add a value that ``reader`` reads; what the backward needs anyway is left out."""
        value = self._problem.values[i]
        written = reader in self._unfused[i] and value.materialize_time_us > 0
        if value.needed and (value.unfused_backward or not written):
            return
        demand[i] = demand.get(i, False) or written

    def _saved_anyway(self, written: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Results of an operation that runs again may still be saved, where the write for
        readers that cannot fuse costs more than the one for saving."""
        values = self._problem.values
        worth = [
            i
            for i in written
            if values[i].saveable and values[i].save_time_us < values[i].materialize_time_us
        ]
        for mask in range(1 << len(worth)):
            yield tuple(i for bit, i in enumerate(worth) if mask >> bit & 1)


def _results(problem: Problem) -> list[list[int]]:
    results: list[list[int]] = [[] for _ in problem.operations]
    for i, value in enumerate(problem.values):
        results[value.producer].append(i)
    return results


def looking_order(problem: Problem) -> list[int]:
    """An order of the operations that keeps demands small: what only a few others hang off
    (the backward's own preparations, which the joint graph lists long after what they read)
    comes right after what it reads, and what reads nothing right before its first reader."""
    operations, values = problem.operations, problem.values
    results = _results(problem)
    reads = [[values[i].producer for i in operation.reads] for operation in operations]
    readers: list[list[int]] = [[] for _ in operations]
    for index, producers in enumerate(reads):
        for producer in dict.fromkeys(producers):
            readers[producer].append(index)
    hangs_off = _with_few_descendants(readers)
    missing = [len(set(producers)) for producers in reads]
    placed = [False] * len(operations)
    order: list[int] = []
    used = [bool(readers[index]) or not results[index] for index in range(len(operations))]
    starts = [i for i in range(len(operations)) if reads[i] or not used[i]]
    for start in (*starts, *range(len(operations))):
        stack = [start]
        while stack:
            index = stack.pop()
            if placed[index]:
                continue
            pending = [producer for producer in reads[index] if not placed[producer]]
            if pending:
                stack += [index, *reversed(pending)]
                continue
            placed[index] = True
            order.append(index)
            for reader in readers[index]:
                missing[reader] -= 1
            stack += [r for r in reversed(readers[index]) if hangs_off[r] and not missing[r]]
    return order


def _with_few_descendants(readers: Sequence[Sequence[int]]) -> list[bool]:
    """Whether at most ``_TAIL`` operations read, directly or not, each operation's results."""
    descendants: list[set[int] | None] = [None] * len(readers)
    for index in range(len(readers) - 1, -1, -1):
        found: set[int] | None = set()
        for reader in readers[index]:
            further = descendants[reader]
            if found is None or further is None or len(found) > _TAIL:
                found = None
                break
            found |= further | {reader}
        descendants[index] = found if found is not None and len(found) <= _TAIL else None
    return [found is not None for found in descendants]


def _without_dead_ends(levels: Sequence[Sequence[_Arc]]) -> list[Sequence[_Arc]]:
    """Without arcs into demands that nothing can meet.

    Raises:
        NoPath: nothing is left.
    """
    kept: list[Sequence[_Arc]] = []
    numbers = {0: 0}  # of the demands that can be met, by their old numbers
    for arcs in reversed(levels):
        going = [arc for arc in arcs if arc.target in numbers]
        met = sorted({arc.source for arc in going})
        before = {old: new for new, old in enumerate(met)}
        if any(new != old for renumbered in (numbers, before) for old, new in renumbered.items()):
            going = [a._replace(source=before[a.source], target=numbers[a.target]) for a in going]
        kept.append(going)
        numbers = before
    if not numbers:
        raise NoPath
    kept.reverse()
    return kept


def _joined(levels: Sequence[Sequence[_Arc]]) -> list[list[_Arc]]:
    """Fewer levels: neighbours become one where that does not make more arcs of them."""
    joined = [_undominated(levels[0])] if levels else []
    for arcs in levels[1:]:
        following = _undominated(arcs)
        while joined and (both := _join(joined[-1], following)) is not None:
            joined.pop()
            following = both
        joined.append(following)
    return joined


def _join(first: Sequence[_Arc], second: Sequence[_Arc]) -> list[_Arc] | None:
    leaving: dict[int, list[_Arc]] = {}
    for arc in second:
        leaving.setdefault(arc.source, []).append(arc)
    most = len(first) + len(second)
    if sum(len(leaving[arc.target]) for arc in first) > 2 * most:
        return None
    both = _undominated(
        [
            _Arc(
                one.source,
                other.target,
                one.num_bytes + other.num_bytes,
                one.time + other.time,
                one.lateness + other.lateness,
                (one.saved, other.saved) if one.saved and other.saved else one.saved or other.saved,
            )
            for one in first
            for other in leaving[one.target]
        ]
    )
    return both if len(both) <= most else None


def _undominated(arcs: Sequence[_Arc]) -> list[_Arc]:
    """Of the arcs between the same demands, those that no other matches in bytes and time."""
    kept: list[_Arc] = []
    for arc in sorted(arcs, key=lambda a: (a[0], a[1], a[2], a[3], -a[4])):
        last = kept[-1] if kept else None
        same = last is not None and (last.source, last.target) == (arc.source, arc.target)
        if last is None or not same or arc.time < last.time:
            kept.append(arc)
    return kept


def _flat(saved: Any) -> Iterator[int]:
    """The values in nested pairs."""
    stack = [saved]
    while stack:
        part = stack.pop()
        if isinstance(part, tuple):
            stack.extend(part)
        else:
            yield part
