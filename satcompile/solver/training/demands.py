"""The choices of a two-phase problem as arcs between demands.

The operations of the forward are looked at from the last to the first. All that matters of
the decisions taken so far is the *demand*: which values made further up are needed, by the
backward itself or by an operation that runs again. A demanded value is saved, or its
operation runs again and demands what it reads. In a network of layers the demand between two
operations is a subset of a handful of values, so that the choices are the paths of a small
graph, whose nodes are demands and whose arcs cost bytes and time. Its size is the number of
layers times a constant.

Not so for every graph: where many values stay in use over many operations (long skip
connections side by side), demands multiply, and ``expand`` gives up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from satcompile.solver.training.two_phase_problem import Problem

_MOST_ARCS = 500_000
_MOST_DEMANDS = 2_000  # at one operation
_TAIL = 10  # operations hanging off the forward that are looked at together with what they read
_TIME_BITS = 44  # resolution of times: 2**-44 of the sum of all

# A demand: 2 i where value i is needed, 2 i + 1 where it must be written to memory, too, for
# readers that cannot fuse it. What the backward itself demands is left out.
_Demand = frozenset[int]


class NoChoice(Exception):
    """Something that the backward needs can be neither saved nor computed again."""


class Arc(NamedTuple):
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


@dataclass(frozen=True)
class Demands:
    """All choices of a problem, given the values that must be saved.

    Attributes:
        levels: arcs from each level of demands to the next, from the one demand after the last
            operation to the one before the first. Demands are numbered from 0 in each level,
            and arcs leave every one but the last.
        unit_us: of the arcs' times.
        slack_us: how far a sum of the arcs' rounded times may be from the true one.
        saved_for_nothing: values that cost neither bytes nor time to save; no arc names them.
    """

    levels: list[list[Arc]]
    unit_us: float
    slack_us: float
    saved_for_nothing: tuple[int, ...]


def expand(problem: Problem, forced: Iterable[int]) -> Demands | None:
    """The choices of a problem as arcs; None where there would be too many.

    Args:
        problem: operations in an order in which each comes after what it reads.
        forced: values that are saved in any case; their bytes and times are the caller's to add.

    Raises:
        NoChoice: something needed can be neither saved nor computed again.
    """
    unit_us = _time_unit(problem)
    expansion = _Expansion(problem, frozenset(forced), unit_us)
    levels = expansion.levels()
    if levels is None:
        return None
    return Demands(
        _joined(_without_dead_ends(levels)),
        unit_us,
        # Each time was rounded by half a unit at most.
        unit_us * (len(problem.operations) + 2 * len(problem.values)),
        expansion.saved_for_nothing,
    )


def _time_unit(problem: Problem) -> float:
    """A power of two, in which sums of all times are whole numbers far from overflow."""
    total_us = sum(operation.time_us for operation in problem.operations)
    total_us += sum(v.save_time_us + v.materialize_time_us for v in problem.values)
    return 2.0 ** (math.frexp(total_us or 1.0)[1] - _TIME_BITS)


class _Way(NamedTuple):
    """One way to meet what is demanded of an operation's results.

    Attributes:
        runs: the operation runs again.
        num_bytes, time, saved: of the results that are saved, and of running.
    """

    runs: bool
    num_bytes: int
    time: int
    saved: tuple[int, ...]


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

    def levels(self) -> list[list[Arc]] | None:
        """Arcs level by level; None where there are too many."""
        demands: dict[_Demand, int] = {frozenset(): 0}
        levels, num_arcs = [], 0
        order = looking_order(self._problem)
        for position in range(len(order) - 1, -1, -1):
            following: dict[_Demand, int] = {}
            arcs = []
            for left, source, way in self._steps(order[position], demands):
                target = following.setdefault(left, len(following))
                lateness = way.num_bytes * position
                arcs.append(Arc(source, target, way.num_bytes, way.time, lateness, way.saved))
            num_arcs += len(arcs)
            if num_arcs > _MOST_ARCS or len(following) > _MOST_DEMANDS:
                return None
            levels.append(arcs)
            demands = following
        return levels

    def _steps(
        self, index: int, demands: dict[_Demand, int]
    ) -> Iterator[tuple[_Demand, int, _Way]]:
        """For each demand and each way to meet it, the demand that is left."""
        made = frozenset(code for i in self._results[index] for code in (2 * i, 2 * i + 1))
        reads = self._demand_of_running(index)
        ways: dict[_Demand, list[_Way]] = {}
        for demand, source in demands.items():
            met = demand & made
            if met not in ways:
                ways[met] = list(self._ways(index, met))
            left = demand - met
            for way in ways[met]:
                yield (left | reads if way.runs else left), source, way

    def _ways(self, index: int, demand: _Demand) -> Iterator[_Way]:
        """The ways in which an operation can meet a demand of its results: all that is demanded
        is saved, or it runs again."""
        values, operation = self._problem.values, self._problem.operations[index]
        wanted, written = [], []
        for i in self._results[index]:
            if i not in self._always_there and (values[i].needed or 2 * i in demand):
                wanted.append(i)
                if values[i].unfused_backward or 2 * i + 1 in demand:
                    written.append(i)
        if all(values[i].saveable for i in wanted):
            yield self._way(wanted)
        if not wanted or not operation.recomputable:
            return
        for chosen in self._saved_anyway(written):
            way = self._way(chosen)
            times = [values[i].materialize_time_us for i in written if i not in chosen]
            more = sum(self._units(time_us) for time_us in (operation.time_us, *times))
            yield way._replace(runs=True, time=way.time + more)

    def _way(self, saved: Sequence[int]) -> _Way:
        values = self._problem.values
        return _Way(
            False,
            sum(values[i].num_bytes for i in saved),
            sum(self._units(values[i].save_time_us) for i in saved),
            tuple(saved),
        )

    def _demand_of_running(self, index: int) -> _Demand:
        """What an operation reads, beyond what the backward demands anyway."""
        found: set[int] = set()
        for i in self._problem.operations[index].reads:
            value = self._problem.values[i]
            if i in self._always_there:
                continue
            if not value.needed:
                found.add(2 * i)
            unfused = index in self._unfused[i] and value.materialize_time_us > 0
            if unfused and not (value.needed and value.unfused_backward):
                found.add(2 * i + 1)
        return frozenset(found)

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


def _without_dead_ends(levels: Sequence[Sequence[Arc]]) -> list[Sequence[Arc]]:
    """Without arcs into demands that nothing can meet.

    Raises:
        NoChoice: nothing is left.
    """
    kept: list[Sequence[Arc]] = []
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
        raise NoChoice
    kept.reverse()
    return kept


def _joined(levels: Sequence[Sequence[Arc]]) -> list[list[Arc]]:
    """Fewer levels: neighbours become one where that does not make more arcs of them."""
    joined = [undominated_arcs(levels[0])] if levels else []
    for arcs in levels[1:]:
        following = undominated_arcs(arcs)
        while joined and (both := _join(joined[-1], following)) is not None:
            joined.pop()
            following = both
        joined.append(following)
    return joined


def _join(first: Sequence[Arc], second: Sequence[Arc]) -> list[Arc] | None:
    leaving: dict[int, list[Arc]] = {}
    for arc in second:
        leaving.setdefault(arc.source, []).append(arc)
    most = len(first) + len(second)
    if sum(len(leaving[arc.target]) for arc in first) > 2 * most:
        return None
    both = undominated_arcs(
        [
            Arc(
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


def undominated_arcs(arcs: Sequence[Arc]) -> list[Arc]:
    """The arcs between the same demands that no other matches in bytes and time."""
    kept: list[Arc] = []
    for arc in sorted(arcs, key=lambda a: (a[0], a[1], a[2], a[3], -a[4])):
        last = kept[-1] if kept else None
        same = last is not None and (last.source, last.target) == (arc.source, arc.target)
        if last is None or not same or arc.time < last.time:
            kept.append(arc)
    return kept


def values_in(saved: Any) -> Iterator[int]:
    """The values in an arc's nested pairs."""
    stack = [saved]
    while stack:
        part = stack.pop()
        if isinstance(part, tuple):
            stack.extend(part)
        else:
            yield part
