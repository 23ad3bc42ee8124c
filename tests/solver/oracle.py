"""The solver's model written down a second time, as plainly as possible, and without its code.

Replays of a schedule, by sets; least times and peaks by searching through all states (how many
nodes were computed for the first time, which results are resident). Only for small problems.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from satcompile.solver import Problem


@dataclass(frozen=True)
class Replay:
    """What a schedule takes."""

    peak_bytes: int
    time: float
    extra_time: float


def replay_sequence(problem: Problem, sequence: Sequence[int]) -> Replay:
    """Replay computations alone: a copy is there from where it is made to where it is last read.

    Looks at every position for every copy.
    """

    def is_read_from(now: int, node: int, made: int) -> bool:
        for position in range(made + 1, len(sequence)):
            if sequence[position] == node:
                return False  # readers behind it read the newer copy
            if position >= now and node in problem.inputs[sequence[position]]:
                return True
        return False

    peak = 0
    for now, computed in enumerate(sequence):
        for i in problem.inputs[computed]:
            assert i in sequence[:now], f"{computed} is computed before {i}, which it reads"
        alive = [
            node
            for made, node in enumerate(sequence[: now + 1])
            if made == now or is_read_from(now, node, made)
        ]
        peak = max(peak, sum(problem.num_bytes[node] for node in alive))
    return Replay(peak, *_times(problem, sequence))


def replay_steps(problem: Problem, steps: Iterable[tuple[str, int]]) -> Replay:
    """Replay computations and evictions: what is read is resident, what is evicted was."""
    resident: set[int] = set()
    computed: list[int] = []
    peak = 0
    for what, node in steps:
        if what == "evict":
            resident.remove(node)
            continue
        assert what == "compute"
        assert set(problem.inputs[node]) <= resident
        assert node not in resident
        resident.add(node)
        computed.append(node)
        peak = max(peak, sum(problem.num_bytes[i] for i in resident))
    assert not resident
    return Replay(peak, *_times(problem, computed))


def _times(problem: Problem, sequence: Sequence[int]) -> tuple[float, float]:
    time = sum(problem.times[node] for node in sequence)
    return time, time - sum(problem.times[node] for node in set(sequence))


def first_computations(sequence: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(sequence))


# -- all schedules ---------------------------------------------------------------------------

# Nodes as bits of a number. A move: what it costs, bytes alive during it, the state behind it.
Move = tuple[float, int, Hashable]


def least_extra_time(problem: Problem, budget_bytes: int) -> float | None:
    """The least of all schedules with the problem's order of first computations, with any number of
    copies; None where none fits."""

    def moves(state: tuple[int, int]) -> Iterator[Move]:
        first, resident = state
        for after in _evictions(resident):
            yield 0, 0, (first, after)
        for node in _computable(problem, resident, range(first + 1)):
            cost = 0 if node == first else problem.times[node]
            behind = first + (node == first), resident | 1 << node
            yield cost, _bytes(problem, resident | 1 << node), behind

    return _least_cost((0, 0), moves, lambda state: state[0] == len(problem), budget_bytes)


def least_extra_time_in_order(problem: Problem, budget_bytes: int) -> float | None:
    """The least of those that, between two first computations, recompute in the order of the nodes, each
    at most once (Checkmate's class)."""

    def moves(state: tuple[int, int, int]) -> Iterator[Move]:
        first, begin, resident = state
        for after in _evictions(resident):
            yield 0, 0, (first, begin, after)
        for node in _computable(problem, resident, range(begin, first + 1)):
            alive = resident | 1 << node
            if node == first:
                yield 0, _bytes(problem, alive), (first + 1, 0, alive)
            else:
                yield problem.times[node], _bytes(problem, alive), (first, node + 1, alive)

    return _least_cost((0, 0, 0), moves, lambda state: state[0] == len(problem), budget_bytes)


def lowest_peak(problem: Problem, free_order: bool = False) -> int:
    """The lowest peak of all schedules, at any cost."""
    everything = (1 << len(problem)) - 1

    def moves(state: tuple[int, int]) -> Iterator[Move]:
        computed, resident = state
        for after in _evictions(resident):
            yield 0, 0, (computed, after)
        nodes = range(len(problem) if free_order else computed.bit_count() + 1)
        for node in _computable(problem, resident, nodes):
            alive = resident | 1 << node
            yield 0, _bytes(problem, alive), (computed | 1 << node, alive)

    return _lowest((0, 0), moves, lambda state: state[0] == everything)


def _evictions(resident: int) -> Iterator[int]:
    left = resident
    while left:
        lowest = left & -left
        yield resident & ~lowest
        left ^= lowest


def _computable(problem: Problem, resident: int, nodes: Iterable[int]) -> Iterator[int]:
    for node in nodes:
        if node == len(problem) or resident >> node & 1:
            continue
        if all(resident >> i & 1 for i in problem.inputs[node]):
            yield node


def _bytes(problem: Problem, resident: int) -> int:
    return sum(size for node, size in enumerate(problem.num_bytes) if resident >> node & 1)


def _least_cost(
    start: Hashable,
    moves: Callable[..., Iterator[Move]],
    is_end: Callable[..., bool],
    budget_bytes: int,
) -> float | None:
    """Dijkstra's algorithm over moves that keep to the budget."""
    queue: list[tuple[float, Hashable]] = [(0, start)]
    best: dict[Hashable, float] = {start: 0}
    while queue:
        cost, state = heapq.heappop(queue)
        if cost > best[state]:
            continue
        if is_end(state):
            return cost
        for more, num_bytes, behind in moves(state):
            if num_bytes <= budget_bytes and cost + more < best.get(behind, float("inf")):
                best[behind] = cost + more
                heapq.heappush(queue, (cost + more, behind))
    return None


def _lowest(
    start: Hashable, moves: Callable[..., Iterator[Move]], is_end: Callable[..., bool]
) -> int:
    """The same for the path whose highest point is lowest."""
    queue: list[tuple[int, Hashable]] = [(0, start)]
    done: set[Hashable] = set()
    while queue:
        peak, state = heapq.heappop(queue)
        if is_end(state):
            return peak
        if state in done:
            continue
        done.add(state)
        for _, num_bytes, behind in moves(state):
            if behind not in done:
                heapq.heappush(queue, (max(peak, num_bytes), behind))
    raise AssertionError("every problem has a schedule")
