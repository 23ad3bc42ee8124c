"""A proven floor: bytes that every schedule needs, whatever it recomputes and in any order.

Backwards from one node: while it is computed, the results that it reads are there. One of them was
made last; while that one was made, the others were there already, with what it reads itself; and
so on. Which one was made last is not known, so all are looked at, the least bytes first (a search
for the path whose highest point is lowest). What is reached when the search is given up, or when
nothing is left to be there, bounds the peak from below.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from satcompile.solver.graphs.problem import Problem

_NODES = 60  # that are looked into: those with the most bytes around them
_EXPANSIONS = 400  # of the search from one node


def floor_bytes(problem: Problem) -> int:
    """No schedule's peak is below this."""
    sizes = problem.num_bytes
    around = [
        sizes[node] + sum(sizes[i] for i in inputs) for node, inputs in enumerate(problem.inputs)
    ]
    order = sorted(range(len(problem)), key=lambda node: -around[node])
    return max(_needed(problem, node) for node in order[:_NODES])


def _needed(problem: Problem, node: int) -> int:
    """Bytes at the highest point of making ``node``, at least."""
    sizes = problem.num_bytes
    inputs = frozenset(problem.inputs[node])
    highest = sizes[node] + sum(sizes[i] for i in inputs)
    queue = [(highest, 0, inputs)]
    seen = {inputs}
    for number in range(1, _EXPANSIONS):
        highest, _, there = heapq.heappop(queue)
        if not there:
            return highest
        for before, num_bytes in _before(problem, there):
            if before not in seen:
                seen.add(before)
                heapq.heappush(queue, (max(highest, num_bytes), -number, before))
    return highest


def _before(problem: Problem, there: frozenset[int]) -> Iterator[tuple[frozenset[int], int]]:
    """What may have been there before the last of ``there`` was made, and the bytes while it was."""
    for last in there:
        before = (there - {last}).union(problem.inputs[last])
        num_bytes = sum(problem.num_bytes[i] for i in before) + problem.num_bytes[last]
        yield before, num_bytes
