"""The two-phase problem: values of a forward, of which each is saved or computed again.

``satcompile.solver.training.two_phase`` says what is to be found, and finds it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Operation:
    """An operation of the forward.

    Attributes:
        name: for reports.
        time_us: what running it again costs, its results being read by fused kernels only.
        reads: indices of values it needs; values that are always there (parameters, inputs)
            are left out.
        recomputable: False for randomness, collectives, effects and the like.
    """

    name: str
    time_us: float
    reads: tuple[int, ...]
    recomputable: bool = True


@dataclass(frozen=True)
class Value:
    """A result of an operation, with all the views of its storage.

    Attributes:
        producer: index of the operation.
        num_bytes: what saving it costs; 0 where it stays alive anyway.
        needed: the backward reads it.
        saveable: False where saving is not allowed (results of forced recomputation).
        save_time_us: what saving costs in time: a write that fusion would have avoided.
        materialize_time_us: what recomputing it costs on top of its operation's time when a
            reader cannot fuse it, so that it must be written to memory.
        unfused_backward: the backward itself has such a reader.
        unfused_readers: the operations that are such readers.
    """

    producer: int
    num_bytes: int
    needed: bool = False
    saveable: bool = True
    save_time_us: float = 0.0
    materialize_time_us: float = 0.0
    unfused_backward: bool = False
    unfused_readers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Operations in an order in which each comes after those whose values it reads."""

    operations: Sequence[Operation]
    values: Sequence[Value]

    @cached_property
    def known(self) -> dict[Hashable, Any]:
        """What solvers of the problem have made of it, kept because it serves every limit."""
        return {}


@dataclass(frozen=True)
class Solution:
    """A choice and what is known about it.

    Attributes:
        saved: indices of saved values.
        recomputed: indices of operations that run again.
        saved_bytes: sum over ``saved``.
        time_us: objective of the choice: recompute, writes for saving and materializing.
        bound_us: proven lower bound of the objective under the same limit.
        nodes: partial plans looked at, or branch-and-bound nodes spent.
    """

    saved: frozenset[int]
    recomputed: frozenset[int]
    saved_bytes: int
    time_us: float
    bound_us: float
    nodes: int = field(default=0, compare=False)

    @property
    def gap_us(self) -> float:
        return max(0.0, self.time_us - self.bound_us)


class Infeasible(Exception):
    """No choice keeps the saved bytes within the limit."""


class Unsolvable(Exception):
    """The solver gave up before it found a choice."""


def evaluate(problem: Problem, saved: Iterable[int]) -> Solution:
    """The choice that saves ``saved`` and recomputes whatever else the backward needs.

    Raises:
        Infeasible: something needed can be neither recomputed nor reached.
    """
    chosen = frozenset(saved)
    recomputed: set[int] = set()
    stack = [i for i, value in enumerate(problem.values) if value.needed and i not in chosen]
    while stack:
        index = problem.values[stack.pop()].producer
        if index in recomputed:
            continue
        operation = problem.operations[index]
        if not operation.recomputable:
            raise Infeasible(f"{operation.name} can be neither saved nor recomputed")
        recomputed.add(index)
        stack.extend(i for i in operation.reads if i not in chosen)
    time_us = sum(problem.operations[index].time_us for index in recomputed)
    for i, value in enumerate(problem.values):
        if i in chosen:
            time_us += value.save_time_us
        elif value.producer in recomputed and _is_materialized(value, recomputed):
            time_us += value.materialize_time_us
    return Solution(
        saved=chosen,
        recomputed=frozenset(recomputed),
        saved_bytes=sum(problem.values[i].num_bytes for i in chosen),
        time_us=time_us,
        bound_us=0.0,
    )


def _is_materialized(value: Value, recomputed: set[int]) -> bool:
    return value.unfused_backward or any(reader in recomputed for reader in value.unfused_readers)
