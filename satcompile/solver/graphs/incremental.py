"""A plan that is changed one computation at a time, with bytes at every step kept up to date.

A plan is a set of recomputations, each a *key*: ``stage * n + node``, node runs again right before
the first computation of ``stage``. First computations are keys as well (``node * n + node``), so
that keys in ascending order are the sequence. Every set is a valid plan but for its memory: what is
read and was not computed again is kept from its latest copy on.

A recomputation shortens the life of the node's earlier copy to its last reader before it, and
stretches the lives of its inputs up to it. ``load``, the bytes alive at each position, changes in
these ranges only: microseconds, where a replay of everything takes a hundred times as long on large
graphs. All functions are compiled; arrays are taken out of their tuples once a function, because
numba counts references at every use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from satcompile.solver.base.arrays import rows
from satcompile.solver.base.jit import compiled
from satcompile.solver.graphs.problem import Problem, loads
from satcompile.solver.graphs.schedule import sequence_of

LENGTH, AGAIN, OVER, CHANGES = 0, 1, 2, 3  # in ``Plan.numbers``
_MOST_AGAIN = 8  # recomputations of one node
_MOST_CHANGES = 4_096  # of one move
_NEVER = 1 << 60


class Graph(NamedTuple):
    """The problem: lists as one array, and where each begins in it.

    Attributes:
        inputs, readers: of each node, from ``input_start[i]`` and ``reader_start[i]`` on.
        again: time of computing each node again.
        limit_bytes: of the peak.
    """

    input_start: NDArray[np.int32]
    inputs: NDArray[np.int32]
    reader_start: NDArray[np.int32]
    readers: NDArray[np.int32]
    num_bytes: NDArray[np.int64]
    again: NDArray[np.float64]
    limit_bytes: int


class Plan(NamedTuple):
    """
    Attributes:
        key, load: by position: what is computed, and the bytes alive meanwhile.
        often, stages: of each node, how many times and in which stages it is computed again.
        place: of each of these, where its key stands in ``again``.
        again: keys of all recomputations, in no order.
        numbers: positions, recomputations, bytes over the limit summed over positions, changes.
        changes: of the latest move: keys added as they are, keys dropped as ``-1 - key``.
    """

    key: NDArray[np.int64]
    load: NDArray[np.int64]
    often: NDArray[np.int32]
    stages: NDArray[np.int32]
    place: NDArray[np.int32]
    again: NDArray[np.int64]
    numbers: NDArray[np.int64]
    changes: NDArray[np.int64]


def graph_of(problem: Problem, limit_bytes: int) -> Graph:
    readers: list[list[int]] = [[] for _ in range(len(problem))]
    for node, inputs in enumerate(problem.inputs):
        for i in inputs:
            readers[i].append(node)
    input_start, inputs_of = rows(problem.inputs, np.int32)
    reader_start, readers_of = rows(readers, np.int32)
    sizes = np.array(problem.num_bytes, np.int64)
    return Graph(
        input_start,
        inputs_of,
        reader_start,
        readers_of,
        sizes,
        np.array(problem.times),
        limit_bytes,
    )


def empty_plan(problem: Problem) -> Plan:
    """Room for a plan; ``fill`` makes it one."""
    nodes = len(problem)
    most = 3 * nodes + 1_000  # recomputations
    per_node = (nodes, _MOST_AGAIN + 1)
    return Plan(
        np.zeros(nodes + most, np.int64), np.zeros(nodes + most, np.int64),
        np.zeros(nodes, np.int32), np.zeros(per_node, np.int32), np.zeros(per_node, np.int32),
        np.zeros(most, np.int64), np.zeros(4, np.int64), np.zeros(_MOST_CHANGES, np.int64),
    )  # fmt: skip


def fill(plan: Plan, problem: Problem, limit_bytes: int, keys: Sequence[tuple[int, int]]) -> bool:
    """Make ``plan`` the one with these recomputations ``(stage, node)``; whether there is room."""
    count = len(problem)
    ordered = sorted(keys)
    often = np.bincount([node for _, node in ordered], minlength=count)
    if len(ordered) >= len(plan.again) - 1 or often.max(initial=0) > _MOST_AGAIN:
        return False
    steps = sorted([*ordered, *((node, node) for node in range(count))])
    found = loads(problem, sequence_of(problem, ordered))
    plan.key[: len(steps)] = [stage * count + node for stage, node in steps]
    plan.load[: len(steps)] = found
    plan.often[:] = 0
    for number, (stage, node) in enumerate(ordered):
        j = plan.often[node]
        plan.stages[node, j], plan.place[node, j] = stage, number
        plan.often[node] += 1
        plan.again[number] = stage * count + node
    over = sum(max(0, num_bytes - limit_bytes) for num_bytes in found)
    plan.numbers[:] = (len(steps), len(ordered), over, 0)
    return True


# -- what there is -------------------------------------------------------------------------


@compiled
def position_of(key, length, wanted):  # type: ignore[no-untyped-def]
    """The first position whose key is not below ``wanted``."""
    low, high = 0, length
    while low < high:
        middle = (low + high) >> 1
        if key[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def copies_around(count, stages, n, node, at):  # type: ignore[no-untyped-def]
    """Keys of a node's latest copy before ``at``, and of its next from there on."""
    before, after = np.int64(node) * n + node, np.int64(_NEVER)
    for j in range(count[node]):
        key = np.int64(stages[node, j]) * n + node
        if key < at:
            before = key
        else:
            after = key
            break
    return before, after


@compiled
def reads_within(reader_start, readers, count, stages, n, node, begin, end, at):  # type: ignore[no-untyped-def]
    """The keys between ``begin`` and ``end`` that read a node: the last, or ``begin``; the first behind
    ``at``, or ``end``; whether ``at`` is one."""
    last, following, here = begin, end, False
    for r in range(reader_start[node], reader_start[node + 1]):
        reader = readers[r]
        for j in range(-1, count[reader]):
            key = np.int64(reader if j < 0 else stages[reader, j]) * n + reader
            if begin < key < end:
                last = max(last, key)
                if key > at:
                    following = min(following, key)
                here = here or key == at
    return last, following, here


@compiled
def last_read(reader_start, readers, count, stages, n, node, begin, end):  # type: ignore[no-untyped-def]
    """The last key between two at which a node is read; the first of the two where there is none."""
    last = begin
    for r in range(reader_start[node], reader_start[node + 1]):
        reader = readers[r]
        key = np.int64(reader) * n + reader
        if last < key < end:
            last = key
        for j in range(count[reader]):
            key = np.int64(stages[reader, j]) * n + reader
            if last < key < end:
                last = key
    return last


@compiled
def latest_again(count, stages, n, node, at):  # type: ignore[no-untyped-def]
    """Stage of a node's latest recomputation before ``at``; -1 where it has none."""
    found = -1
    for j in range(count[node]):
        if np.int64(stages[node, j]) * n + node < at:
            found = stages[node, j]
    return found


@compiled
def is_unread(reader_start, readers, count, stages, n, node, stage):  # type: ignore[no-untyped-def]
    """Whether nothing reads what a recomputation makes."""
    at = np.int64(stage) * n + node
    _, after = copies_around(count, stages, n, node, at + 1)
    return last_read(reader_start, readers, count, stages, n, node, at, after) == at


# -- changes -------------------------------------------------------------------------------


@compiled
def _shift(load, begin, end, num_bytes, limit_bytes):  # type: ignore[no-untyped-def]
    """Add bytes in a range of positions; what that adds to the bytes over the limit."""
    over = 0
    for position in range(begin, end):
        old = load[position]
        new = old + num_bytes
        load[position] = new
        over += max(0, new - limit_bytes) - max(0, old - limit_bytes)
    return over


@compiled
def _add(graph, plan, n, node, stage, unread_too):  # type: ignore[no-untyped-def]
    """Compute a node again in a stage. False where it is, or may not be any more often, or
    nothing would read it (unless ``unread_too``)."""
    count, stages, key, load, numbers = plan.often, plan.stages, plan.key, plan.load, plan.numbers
    reader_start, readers, num_bytes = graph.reader_start, graph.readers, graph.num_bytes
    inputs, input_start, limit_bytes = graph.inputs, graph.input_start, graph.limit_bytes
    length, over = numbers[LENGTH], numbers[OVER]
    if (
        count[node] >= _MOST_AGAIN
        or length + 1 >= len(key)
        or numbers[AGAIN] + 1 >= len(plan.again)
    ):
        return False
    at = np.int64(stage) * n + node
    before, after = copies_around(count, stages, n, node, at)
    if after == at:
        return False
    unread = last_read(reader_start, readers, count, stages, n, node, before, after) < at
    if unread and not unread_too:
        return False
    here = position_of(key, length, at)
    carried = load[here] - num_bytes[key[here] % n]  # into the position that will come next
    if unread:
        carried += num_bytes[node]
    else:  # the new copy stands in for the old one, which is not needed any more
        until = last_read(reader_start, readers, count, stages, n, node, before, at)
        begin = position_of(key, length, until) + 1
        over += _shift(load, begin, here, -num_bytes[node], limit_bytes)
    for r in range(input_start[node], input_start[node + 1]):
        i = inputs[r]
        first, end = copies_around(count, stages, n, i, at)
        until = last_read(reader_start, readers, count, stages, n, i, first, end)
        if until < at:
            begin = position_of(key, length, until) + 1
            over += _shift(load, begin, here, num_bytes[i], limit_bytes)
            carried += num_bytes[i]
    for position in range(length, here, -1):
        key[position] = key[position - 1]
        load[position] = load[position - 1]
    key[here], load[here] = at, carried
    numbers[LENGTH], numbers[OVER] = length + 1, over + max(0, carried - limit_bytes)
    _enlist(plan, node, stage, at)
    return True


@compiled
def _enlist(plan, node, stage, key):  # type: ignore[no-untyped-def]
    stages, place, again, numbers = plan.stages, plan.place, plan.again, plan.numbers
    j = plan.often[node]
    while j > 0 and stages[node, j - 1] > stage:
        stages[node, j], place[node, j] = stages[node, j - 1], place[node, j - 1]
        j -= 1
    stages[node, j], place[node, j] = stage, numbers[AGAIN]
    again[numbers[AGAIN]] = key
    numbers[AGAIN] += 1
    plan.often[node] += 1


@compiled
def _strike(plan, n, node, stage):  # type: ignore[no-untyped-def]
    count, stages, place, again = plan.often, plan.stages, plan.place, plan.again
    j = 0
    while stages[node, j] != stage:
        j += 1
    end = plan.numbers[AGAIN] - 1
    moved, free = again[end], place[node, j]
    if free != end:
        again[free] = moved
        i = 0
        while stages[moved % n, i] != moved // n:
            i += 1
        place[moved % n, i] = free
    plan.numbers[AGAIN] = end
    for i in range(j, count[node] - 1):
        stages[node, i], place[node, i] = stages[node, i + 1], place[node, i + 1]
    count[node] -= 1


@compiled
def _drop(graph, plan, n, node, stage):  # type: ignore[no-untyped-def]
    """Do not compute a node again in a stage in which it is."""
    count, stages, key, load, numbers = plan.often, plan.stages, plan.key, plan.load, plan.numbers
    reader_start, readers, num_bytes = graph.reader_start, graph.readers, graph.num_bytes
    inputs, input_start, limit_bytes = graph.inputs, graph.input_start, graph.limit_bytes
    at = np.int64(stage) * n + node
    _strike(plan, n, node, stage)
    length, over = numbers[LENGTH] - 1, numbers[OVER]
    here = position_of(key, length + 1, at)
    over -= max(0, load[here] - limit_bytes)
    for position in range(here, length):
        key[position] = key[position + 1]
        load[position] = load[position + 1]
    before, after = copies_around(count, stages, n, node, at)
    if last_read(reader_start, readers, count, stages, n, node, before, after) > at:
        until = last_read(reader_start, readers, count, stages, n, node, before, at)
        begin = position_of(key, length, until) + 1
        over += _shift(load, begin, here, num_bytes[node], limit_bytes)
    for r in range(input_start[node], input_start[node + 1]):
        i = inputs[r]
        first, end = copies_around(count, stages, n, i, at)
        until = last_read(reader_start, readers, count, stages, n, i, first, end)
        if until < at:
            begin = position_of(key, length, until) + 1
            over += _shift(load, begin, here, -num_bytes[i], limit_bytes)
    numbers[LENGTH], numbers[OVER] = length, over


# -- moves: changes that can be taken back ---------------------------------------------------


@compiled
def put(graph, plan, n, node, stage):  # type: ignore[no-untyped-def]
    """Add a recomputation that something reads; whether that could be done."""
    numbers = plan.numbers
    if numbers[CHANGES] >= _MOST_CHANGES or not _add(graph, plan, n, node, stage, False):
        return False
    plan.changes[numbers[CHANGES]] = np.int64(stage) * n + node
    numbers[CHANGES] += 1
    return True


@compiled
def take(graph, plan, n, node, stage):  # type: ignore[no-untyped-def]
    """Drop a recomputation; whether that could be done."""
    numbers = plan.numbers
    if numbers[CHANGES] >= _MOST_CHANGES:
        return False
    _drop(graph, plan, n, node, stage)
    plan.changes[numbers[CHANGES]] = -1 - (np.int64(stage) * n + node)
    numbers[CHANGES] += 1
    return True


@compiled
def take_back(graph, plan, n):  # type: ignore[no-untyped-def]
    """Undo the changes of the latest move."""
    numbers, changes = plan.numbers, plan.changes
    while numbers[CHANGES] > 0:
        numbers[CHANGES] -= 1
        key = changes[numbers[CHANGES]]
        if key >= 0:
            _drop(graph, plan, n, key % n, key // n)
        else:
            key = -1 - key
            _add(graph, plan, n, key % n, key // n, True)


@compiled
def time_of_changes(graph, plan, n):  # type: ignore[no-untyped-def]
    """Time that the latest move adds."""
    again, changes, time = graph.again, plan.changes, 0.0
    for c in range(plan.numbers[CHANGES]):
        key = changes[c]
        time += again[key % n] if key >= 0 else -again[(-1 - key) % n]
    return time
