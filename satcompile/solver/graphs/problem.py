"""The problem: nodes with times and bytes, computed for the first time in a given order.

A schedule computes nodes, some of them several times, and drops results in between. Memory while
a node is computed is what is kept then, its inputs among it, plus its own result; an input can be
dropped only afterwards. (The model of Checkmate, Jain et al., MLSys 2020, and MOCCASIN, Bartan
et al., ICML 2023.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any


class ProblemError(ValueError):
    """Data that is no problem; the message says what is wrong with which entry."""


class Infeasible(Exception):
    """No schedule within the budget is known.

    Attributes:
        proven: none exists; otherwise none was found in time.
        budget_bytes: what was asked.
        floor_bytes: proven: no schedule has a lower peak.
        lowest_peak_bytes: of the schedules found.
    """

    def __init__(self, budget_bytes: int, floor_bytes: int, lowest_peak_bytes: int) -> None:
        self.budget_bytes, self.floor_bytes = budget_bytes, floor_bytes
        self.lowest_peak_bytes = lowest_peak_bytes
        self.proven = budget_bytes < floor_bytes
        super().__init__(str(self))

    def __str__(self) -> str:
        known = (
            f"the lowest peak found is {self.lowest_peak_bytes:,} bytes, "
            f"and none can be below {self.floor_bytes:,}"
        )
        if self.proven:
            return f"no schedule fits into {self.budget_bytes:,} bytes (proven): {known}"
        return (
            f"no schedule within {self.budget_bytes:,} bytes was found, and none was proven not "
            f"to exist: {known}. A longer time limit may find one; so may a budget nearer to the "
            "lowest peak found."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.budget_bytes, self.floor_bytes, self.lowest_peak_bytes)


@dataclass(frozen=True)
class Problem:
    """Nodes 0..n-1 in the order of their first computation.

    Attributes:
        name: for reports.
        times: of computing each node, in any one unit.
        num_bytes: of each node's result.
        inputs: of each node, the earlier nodes that it reads, in order.
        fixed_bytes: alive throughout (parameters and the like); information only, budgets and
            peaks do not count them.
    """

    name: str
    times: tuple[float, ...]
    num_bytes: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    fixed_bytes: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Problem:
        """From ``{"name", "times", "bytes", "edges": [[from, to], ...], "fixed_bytes"}``.

        ``name`` and ``fixed_bytes`` may be missing; an edge that is there twice counts once.

        Raises:
            ProblemError: an entry is missing or impossible.
        """
        if not isinstance(data, Mapping):
            raise ProblemError(f"a problem is a mapping, not {type(data).__name__}")
        missing = [key for key in ("times", "bytes", "edges") if key not in data]
        if missing:
            raise ProblemError(f"a problem needs 'times', 'bytes' and 'edges'; {missing} missing")
        times = tuple(_time(i, value) for i, value in enumerate(_list(data, "times")))
        sizes = tuple(_bytes(f"bytes[{i}]", v) for i, v in enumerate(_list(data, "bytes")))
        if len(times) != len(sizes):
            raise ProblemError(f"{len(times)} times, but {len(sizes)} bytes: one of each a node")
        if not times:
            raise ProblemError("a problem needs at least one node")
        inputs: list[set[int]] = [set() for _ in times]
        for number, edge in enumerate(_list(data, "edges")):
            source, target = _edge(number, edge, len(times))
            inputs[target].add(source)
        return cls(
            str(data.get("name", "")),
            times,
            sizes,
            tuple(tuple(sorted(each)) for each in inputs),
            _bytes("fixed_bytes", data.get("fixed_bytes") or 0),
        )

    @classmethod
    def load(cls, path: str | Path) -> Problem:
        """From a JSON file.

        Raises:
            OSError: it cannot be read.
            ProblemError: it holds no problem.
        """
        try:
            data = json.loads(Path(path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ProblemError(f"{path} is not JSON: {error}") from None
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """What ``from_dict`` takes."""
        return {
            "name": self.name,
            "times": list(self.times),
            "bytes": list(self.num_bytes),
            "edges": [[i, j] for j, inputs in enumerate(self.inputs) for i in inputs],
            "fixed_bytes": self.fixed_bytes,
        }

    def __len__(self) -> int:
        return len(self.times)

    @cached_property
    def total_time(self) -> float:
        """The time of computing every node once."""
        return math.fsum(self.times)

    @cached_property
    def peak_bytes(self) -> int:
        """Without recomputation."""
        return peak_bytes(self, range(len(self)))

    @cached_property
    def last_use(self) -> tuple[int, ...]:
        """The last node whose first computation reads each node; itself where none does."""
        last = list(range(len(self)))
        for node, inputs in enumerate(self.inputs):
            for i in inputs:
                last[i] = node
        return tuple(last)


def peak_bytes(problem: Problem, sequence: Sequence[int]) -> int:
    """The peak of computing nodes in this sequence, each copy dropped after its last use.

    Raises:
        ProblemError: a node is computed before one that it reads.
    """
    return max(loads(problem, sequence), default=0)


def loads(problem: Problem, sequence: Sequence[int]) -> list[int]:
    """Bytes alive at each position of a sequence."""
    latest: dict[int, int] = {}
    last_read = list(range(len(sequence)))
    for position, node in enumerate(sequence):
        for i in problem.inputs[node]:
            if i not in latest:
                raise ProblemError(f"node {node} is computed before {i}, which it reads")
            last_read[latest[i]] = position
        latest[node] = position
    freed = [0] * len(sequence)
    for made, position in enumerate(last_read):
        freed[position] += problem.num_bytes[sequence[made]]
    alive, found = 0, []
    for position, node in enumerate(sequence):
        alive += problem.num_bytes[node]
        found.append(alive)
        alive -= freed[position]
    return found


def _list(data: Mapping[str, Any], key: str) -> Iterable[Any]:
    value = data[key]
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ProblemError(f"{key!r} is a list, not {type(value).__name__}")
    return value


def _time(number: int, value: Any) -> float:
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value < 0:
        raise ProblemError(f"times[{number}] is {value!r}; a time is a number from 0 on")
    return float(value)


def _bytes(what: str, value: Any) -> int:
    good = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or int(value) != value:
        raise ProblemError(f"{what} is {value!r}; bytes are a whole number from 0 on")
    return int(value)


def _edge(number: int, edge: Any, count: int) -> tuple[int, int]:
    good = isinstance(edge, Sequence) and not isinstance(edge, str) and len(edge) == 2
    if not good or not all(isinstance(end, Integral) for end in edge):
        raise ProblemError(f"edges[{number}] is {edge!r}; an edge is [from, to]")
    source, target = int(edge[0]), int(edge[1])
    if not 0 <= source < target < count:
        raise ProblemError(
            f"edges[{number}] is {edge!r}; an edge goes from a node to a later one of the "
            f"{count}, as nodes stand in the order of their first computation"
        )
    return source, target
