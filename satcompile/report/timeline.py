"""Memory over a step, as data: what runs at each position, and what is alive there.

Plain numbers and names, without torch. They come from the planner's own simulation of the step
(``satcompile.solver``), so the most bytes alive are the simulated peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from satcompile.solver.training.lifetimes import Lifetime, lifetimes
from satcompile.solver.training.step import Phase, Step

BOUNDARY = "incoming gradients"
CONSTANT = "copies in another layout"

# An operation's time inside a kernel that exists anyway, and its extra time where it ends one.
Price = tuple[float, float]
# A storage's origin: the name of its node, the module that made it, and the source line.
Place = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Allocation:
    """Memory that is alive over a range of positions.

    Attributes:
        name: name of the node in the joint graph that made it; for a workspace, its operation's.
        num_bytes: bytes of its storage.
        first, last: positions at which it is alive, both included.
        kind: "saved" (crosses to the backward), "recomputed" (made again there), "gradient" (of a
            parameter or input), "output", "tangent" (an incoming gradient), "workspace",
            "constant" (alive from the first position to the last with any plan), or "temporary".
        module: path of the module that made it, "" where unknown.
        source: "file:line" of the user's code, "" where unknown.
    """

    name: str
    num_bytes: int
    first: int
    last: int
    kind: str
    module: str = ""
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        row = asdict(self)
        return {"name": row.pop("name"), "bytes": row.pop("num_bytes"), **row}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Allocation:
        row = dict(row)
        return cls(row.pop("name"), row.pop("bytes"), **row)


@dataclass(frozen=True)
class Timeline:
    """A step, position by position: the forward's operations, one position for the incoming
    gradients (``BOUNDARY``), and the backward's operations.

    Attributes:
        labels: the operation's name.
        phases: "forward" or "backward".
        times_us: the operation's time by the cost model; inside a kernel that a later position
            ends, the time that it adds to the kernel.
        alive_bytes: the most bytes alive while it runs, resident bytes included.
        allocations: the step's allocations, in the order in which they are made.
        base_bytes: resident bytes, which are alive throughout and in no allocation.
    """

    labels: tuple[str, ...]
    phases: tuple[str, ...]
    times_us: tuple[float, ...]
    alive_bytes: tuple[int, ...]
    allocations: tuple[Allocation, ...]
    base_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        return max(self.alive_bytes, default=self.base_bytes)

    @property
    def peak_position(self) -> int:
        """The first position at which ``peak_bytes`` are alive."""
        return self.alive_bytes.index(self.peak_bytes)

    @cached_property
    def _by_size(self) -> list[Allocation]:
        return sorted(self.allocations, key=lambda each: -each.num_bytes)

    def alive_at(self, position: int, most: int = 8) -> list[Allocation]:
        """The largest allocations alive at a position, at most ``most`` of them."""
        found: list[Allocation] = []
        for each in self._by_size:
            if each.first <= position <= each.last:
                found.append(each)
                if len(found) == most:
                    break
        return found

    def above(self, base_bytes: int) -> Timeline:
        """The same timeline with ``base_bytes`` resident."""
        more = base_bytes - self.base_bytes
        alive_bytes = tuple(each + more for each in self.alive_bytes)
        return replace(self, alive_bytes=alive_bytes, base_bytes=base_bytes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "base_bytes": self.base_bytes,
            "labels": list(self.labels),
            "phases": list(self.phases),
            "times_us": list(self.times_us),
            "alive_bytes": list(self.alive_bytes),
            "allocations": [each.to_dict() for each in self.allocations],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Timeline:
        """Read back the result of ``to_dict``."""
        return cls(
            tuple(data["labels"]),
            tuple(data["phases"]),
            tuple(data["times_us"]),
            tuple(data["alive_bytes"]),
            tuple(Allocation.from_dict(row) for row in data["allocations"]),
            data["base_bytes"],
        )


def timeline(
    step: Step,
    forward: Sequence[int],
    backward: Sequence[int],
    saved: Iterable[int],
    prices: Sequence[Price],
    place_of: Callable[[int], Place],
) -> Timeline:
    """Simulate a step whose operations run in the given orders.

    Args:
        step: the joint graph in numbers.
        forward, backward: indices of operations, repeated in the backward for further copies.
        saved: storages that the forward saves for the backward.
        prices: prices of each operation of the step.
        place_of: gives a storage's origin; called once per storage.
    """
    saved = frozenset(saved)
    found = lifetimes(step, forward, backward, saved)
    order: list[int | None] = [*forward, None, *backward]
    operations = [None if index is None else step.operations[index] for index in order]
    labels = tuple(BOUNDARY if each is None else each.name for each in operations)
    times_us = (
        0.0 if index is None else prices[index][0] + (prices[index][1] if writes else 0.0)
        for index, writes in zip(order, found.writes_memory, strict=True)
    )
    kinds = _Kinds(step, saved, found.boundary, order)
    places = {s: place_of(s) for s in {c.storage for c in found.copies} if s is not None}
    allocations = []
    if step.constant_bytes:
        last = len(order) - 1
        allocations.append(Allocation(CONSTANT, step.constant_bytes, 0, last, "constant"))
    for each in sorted(found.copies, key=lambda copy: (copy.first, copy.last)):
        if each.storage is None:
            name, module, source = labels[each.first], "", ""
        else:
            name, module, source = places[each.storage]
        kind = kinds.of(each)
        allocations.append(
            Allocation(name, each.num_bytes, each.first, each.last, kind, module, source)
        )
    return Timeline(
        labels,
        ("forward",) * found.boundary + ("backward",) * (len(order) - found.boundary),
        tuple(times_us),
        found.loads,
        tuple(allocations),
    )


@dataclass(frozen=True)
class _Kinds:
    """The kind of each copy, as ``Allocation`` names it."""

    step: Step
    saved: frozenset[int]
    boundary: int
    order: Sequence[int | None]

    def of(self, copy: Lifetime) -> str:
        step, storage = self.step, copy.storage
        if storage is None:
            return "workspace"
        if copy.first < self.boundary:
            if storage in step.outputs | step.transient_outputs:
                return "output"
            return "saved" if storage in self.saved else "temporary"
        if copy.first == self.boundary:
            return "tangent"
        if storage in step.gradients:
            return "gradient"
        made_by = self.order[copy.first]
        assert made_by is not None
        is_again = step.operations[made_by].phase is Phase.FORWARD
        return "recomputed" if is_again else "temporary"
