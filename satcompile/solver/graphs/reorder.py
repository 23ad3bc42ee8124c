"""Schedules whose first computations may change their order, too.

First the order, without recomputation: annealing over topological orders (one node at a time moves
within its room between what it reads and what reads it) brings down the bytes over the budget. Where
none are left, nothing has to be recomputed. Otherwise the order found is the problem's new order,
and is solved as such.

Not optimal, and without a bound: the order is chosen before it is known what recomputing costs. (An
annealing over orders and recomputation at once is FastSA's; Gagrani et al. reorder by learning.)
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from satcompile.solver.base.arrays import rows
from satcompile.solver.base.jit import compiled
from satcompile.solver.graphs.problem import Infeasible, Problem, peak_bytes
from satcompile.solver.graphs.race import Race
from satcompile.solver.graphs.schedule import Schedule

BOUND_KIND = "none: the order of first computations is free"
_SHARE = 0.4  # of the time, for the order
_CHUNK_S = 0.25
_MOST_TRIES = 20
_NODES_A_SECOND = 60  # what a try is given
_SEEDS = 1_000  # between tries
_TRIAL = 500  # moves, to see how fast they are
_HOT, _COLD = 0.03, 1e-5  # of the budget times positions


def reordered(problem: Problem, budget_bytes: int, time_limit_s: float, seed: int) -> Schedule:
    """As ``solve``, with ``free_order``.

    Raises:
        Infeasible: no schedule was found.
    """
    started = time.monotonic()
    tries = _tries(len(problem), time_limit_s)
    best: Schedule | None = None
    infeasible: Infeasible | None = None
    for turn in range(tries):
        left_s = time_limit_s - (time.monotonic() - started)
        if turn > 0 and left_s < 0.5 * time_limit_s / tries:
            break
        try_s = left_s / (tries - turn)
        try:
            found = _try(problem, budget_bytes, try_s, seed + turn * _SEEDS)
        except Infeasible as error:
            infeasible = error
            if error.proven:  # for any order
                raise
            continue
        if best is None or found.extra_time < best.extra_time:
            best = found
        if best.proven:
            break
    if best is None:
        assert infeasible is not None
        raise infeasible
    return replace(best, time_s=time.monotonic() - started)


def _tries(nodes: int, time_limit_s: float) -> int:
    """Several orders where one is soon found and solved, as the best order is not the one that
    needs the fewest bytes."""
    return max(1, min(_MOST_TRIES, int(time_limit_s * _NODES_A_SECOND / nodes)))


def _try(problem: Problem, budget_bytes: int, try_s: float, seed: int) -> Schedule:
    order = _order(problem, budget_bytes, try_s * _SHARE, seed)
    other = permuted(problem, order)
    found = Race(other, budget_bytes, max(0.5, try_s * (1 - _SHARE)), seed).run()
    sequence = tuple(order[node] for node in found.sequence)
    return Schedule(
        problem, budget_bytes, sequence, 0.0, BOUND_KIND, proven=len(sequence) == len(problem)
    )


def permuted(problem: Problem, order: list[int]) -> Problem:
    """The same nodes, in another order of first computations."""
    position = {node: i for i, node in enumerate(order)}
    return Problem(
        problem.name,
        tuple(problem.times[node] for node in order),
        tuple(problem.num_bytes[node] for node in order),
        tuple(tuple(sorted(position[i] for i in problem.inputs[node])) for node in order),
        problem.fixed_bytes,
    )


def _order(problem: Problem, budget_bytes: int, time_limit_s: float, seed: int) -> list[int]:
    """A topological order with few bytes over the budget."""
    read_start, reads = rows(problem.inputs, np.int32)
    readers: list[list[int]] = [[] for _ in problem.times]
    for node, inputs in enumerate(problem.inputs):
        for i in inputs:
            readers[i].append(node)
    reader_start, read_by = rows(readers, np.int32)
    sizes = np.array(problem.num_bytes, np.int64)
    order = np.arange(len(problem), dtype=np.int32)
    best, state = order.copy(), np.array([math.inf, math.inf])
    graph = (read_start, reads, reader_start, read_by, sizes)

    def run(moves: int, hot: float, cold: float, turn: int) -> None:
        _anneal(*graph, order, best, state, budget_bytes, moves, hot, cold, seed + turn)

    run(2, _HOT, _COLD, 0)  # compiled now, if it was not
    started = time.monotonic()
    run(_TRIAL, _HOT, _HOT, 1)
    per_second = _TRIAL / (time.monotonic() - started)
    chunks = max(2, int(time_limit_s / _CHUNK_S))
    for turn in range(chunks):
        if state[1] == 0 or time.monotonic() - started > time_limit_s:
            break
        hot, cold = (_HOT * (_COLD / _HOT) ** (t / chunks) for t in (turn, turn + 1))
        run(max(1, int(per_second * _CHUNK_S)), hot, cold, 2 + turn)
    found = [int(node) for node in best]
    assert peak_bytes(problem, found) >= 0  # replays: raises where it is no order
    return found


@compiled
def _anneal(  # type: ignore[no-untyped-def]
    read_start, reads, reader_start, read_by, sizes, order, best, state, budget_bytes, moves,
    hot, cold, seed,
):  # fmt: skip
    """Move one node at a time; ``order`` goes on from where it was, ``best`` is the lowest met.
    ``state``: bytes over the budget, summed over positions, of either."""
    np.random.seed(seed)
    count = len(order)
    position = np.empty(count, np.int32)
    for p in range(count):
        position[order[p]] = p
    freed = np.zeros(count, np.int64)
    unit = float(max(budget_bytes, 1))
    here = _over(read_start, reads, sizes, order, position, freed, budget_bytes) / unit
    if here < state[1]:
        state[1] = here
        best[:] = order
    for move in range(moves):
        if state[1] == 0.0:
            break
        temperature = hot * (cold / hot) ** (move / moves)
        node = np.random.randint(count)
        low, high = 0, count - 1
        for r in range(read_start[node], read_start[node + 1]):
            low = max(low, position[reads[r]] + 1)
        for r in range(reader_start[node], reader_start[node + 1]):
            high = min(high, position[read_by[r]] - 1)
        at = position[node]
        to = np.random.randint(low, high + 1)
        if to == at:
            continue
        _move(order, position, at, to)
        there = _over(read_start, reads, sizes, order, position, freed, budget_bytes) / unit
        worse = there - here
        if worse <= 0 or np.random.random() < np.exp(-worse / temperature):
            here = there
            if here < state[1]:
                state[1] = here
                best[:] = order
        else:
            _move(order, position, to, at)
    state[0] = here


@compiled
def _move(order, position, at, to):  # type: ignore[no-untyped-def]
    node, step = order[at], 1 if to > at else -1
    p = at
    while p != to:
        order[p] = order[p + step]
        position[order[p]] = p
        p += step
    order[to] = node
    position[node] = to


@compiled
def _over(read_start, reads, sizes, order, position, freed, budget_bytes):  # type: ignore[no-untyped-def]
    """Bytes over the budget, summed over positions."""
    count = len(order)
    last = np.arange(count).astype(np.int32)
    freed[:] = 0
    for p in range(count):
        node = order[p]
        for r in range(read_start[node], read_start[node + 1]):
            last[position[reads[r]]] = p
    for p in range(count):
        freed[last[p]] += sizes[order[p]]
    alive, over = 0, 0
    for p in range(count):
        alive += sizes[order[p]]
        over += max(0, alive - budget_bytes)
        alive -= freed[p]
    return float(over)
