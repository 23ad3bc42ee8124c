"""What the solver answers with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from satcompile.solver.graphs.problem import Problem, loads


@dataclass(frozen=True)
class Schedule:
    """A sequence of computations, and how far from the least time it can be.

    Attributes:
        problem: what it solves; of one whose order was free, ``sequence`` has another order of
            first computations.
        budget_bytes: what was asked.
        sequence: nodes in the order in which they are computed, some of them several times. Every
            copy is dropped after the last computation that reads it.
        bound_extra_time: proven: no schedule of the class has less extra time.
        bound_kind: the class, in words.
        proven: the extra time is the least of that class, up to ``TOLERANCE`` of the total time.
        time_s: that it took.
    """

    problem: Problem
    budget_bytes: int
    sequence: tuple[int, ...]
    bound_extra_time: float
    bound_kind: str
    proven: bool
    time_s: float = 0.0

    @cached_property
    def peak_bytes(self) -> int:
        """The peak, by replay."""
        return max(loads(self.problem, self.sequence), default=0)

    @cached_property
    def extra_time(self) -> float:
        """The time of all computations beyond the first of each node, in the problem's unit."""
        seen: set[int] = set()
        extra = 0.0
        for node in self.sequence:
            extra += self.problem.times[node] if node in seen else 0.0
            seen.add(node)
        return extra

    @property
    def gap(self) -> float:
        """Between extra time and bound, as a share of the total time."""
        return max(0.0, self.extra_time - self.bound_extra_time) / (self.problem.total_time or 1.0)

    def steps(self) -> Iterator[tuple[Literal["compute", "evict"], int]]:
        """Computations, and the evictions between them, each as early as possible."""
        last: dict[int, int] = {}
        latest: dict[int, int] = {}
        for position, node in enumerate(self.sequence):
            for i in self.problem.inputs[node]:
                last[latest[i]] = position
            latest[node] = last[position] = position
        evicted: dict[int, list[int]] = {}
        for made, position in last.items():
            evicted.setdefault(position, []).append(self.sequence[made])
        for position, node in enumerate(self.sequence):
            yield "compute", node
            for i in evicted.get(position, ()):
                yield "evict", i


def sequence_of(problem: Problem, keys: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """First computations in their order, and before each its recomputations ``(stage, node)``."""
    again: dict[int, list[int]] = {}
    for stage, node in sorted(keys):
        again.setdefault(stage, []).append(node)
    return tuple(node for stage in range(len(problem)) for node in (*again.get(stage, ()), stage))
