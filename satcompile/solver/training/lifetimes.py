"""Who is alive when: the simulator's events of a step, read as lifetimes.

Positions count through the step: the forward's operations, then the boundary, where the incoming
gradients are there and nothing of the backward has run, then the backward's operations.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from satcompile.solver.base.simulator import Event, replay
from satcompile.solver.training.step import Step, backward_events, forward_events, start_of_backward


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A copy of a storage.

    Attributes:
        storage: its index; None for a workspace.
        num_bytes: above 0; what weighs nothing is left out.
        first, last: positions at which it is alive, both included.
    """

    storage: int | None
    num_bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Lifetimes:
    """A step by position.

    Attributes:
        boundary: the position between forward and backward.
        loads: most bytes alive while each position runs; what is computed inside a later
            position's kernel has the bytes that are alive before that.
        writes_memory: of each position, whether a kernel of its own ends there.
        copies: everything that is alive at some position, but ``step.constant_bytes``.
    """

    boundary: int
    loads: tuple[int, ...]
    writes_memory: tuple[bool, ...]
    copies: tuple[Lifetime, ...]


def lifetimes(
    step: Step, forward: Sequence[int], backward: Sequence[int], saved: Iterable[int]
) -> Lifetimes:
    """Lifetimes in a step whose operations run in the given orders (see ``simulate_orders``)."""
    saved = frozenset(saved)
    events = forward_events(step, forward, saved)
    reading = _Reading()
    reading.run(events, len(forward), step.constant_bytes)
    start_bytes = start_of_backward(step, replay(events, step.constant_bytes), saved)
    reading.cross(step, saved, start_bytes)
    reading.run(backward_events(step, backward, saved), len(backward), start_bytes)
    reading.end()
    return Lifetimes(
        len(forward), tuple(reading.loads), tuple(reading.writes_memory), tuple(reading.copies)
    )


@dataclass
class _Reading:
    """Positions so far, and what is alive after them."""

    loads: list[int] = field(default_factory=list)
    writes_memory: list[bool] = field(default_factory=list)
    copies: list[Lifetime] = field(default_factory=list)
    _alive: dict[Hashable, tuple[int, int]] = field(default_factory=dict)  # bytes, first position

    def run(self, events: Iterable[Event], positions: int, alive_bytes: int) -> None:
        """Positions of one order, which begins with ``alive_bytes``."""
        at = [list[Event]() for _ in range(positions)]
        for event in events:
            if event.label:
                at[int(event.label)].append(event)
            else:  # freed before anything ran: nobody reads it
                alive_bytes += event.num_bytes
                self._free(event, len(self.loads) - 1)
        for here in at:
            alive_bytes = self._position(here, alive_bytes)

    def _position(self, events: Sequence[Event], alive_bytes: int) -> int:
        now = len(self.loads)
        last_made = max((i for i, event in enumerate(events) if event.num_bytes > 0), default=-1)
        for index, event in enumerate(events):
            if event.num_bytes > 0:
                self._make(event, now)
            else:
                # What a write takes over is freed before the write, and is not alive beside it.
                self._free(event, now - 1 if index < last_made else now)
        profile = replay(events, alive_bytes)
        self.loads.append(profile.peak_bytes)
        self.writes_memory.append(bool(events))
        return profile.end_bytes

    def _make(self, event: Event, now: int) -> None:
        if event.storage is None:
            self.copies.append(Lifetime(None, event.num_bytes, now, now))
        else:
            self._alive[event.storage] = event.num_bytes, now

    def _free(self, event: Event, last: int) -> None:
        if event.storage in self._alive:  # else a workspace, or nothing that weighs
            num_bytes, first = self._alive.pop(event.storage)
            self.copies.append(Lifetime(_storage(event.storage), num_bytes, first, last))

    def cross(self, step: Step, saved: frozenset[int], start_bytes: int) -> None:
        """The boundary: what the caller drops is gone, and the incoming gradients are there."""
        now = len(self.loads)
        crossing: dict[Hashable, tuple[int, int]] = {}
        for copy, (num_bytes, first) in self._alive.items():
            storage = _storage(copy)
            if storage in saved or storage in step.outputs:
                crossing[storage, 0] = num_bytes, first
            else:
                self.copies.append(Lifetime(storage, num_bytes, first, now - 1))
        for storage in sorted(step.tangents):
            if step.storage_bytes[storage]:
                crossing[storage, 0] = step.storage_bytes[storage], now
        self._alive = crossing
        self.loads.append(start_bytes)
        self.writes_memory.append(False)

    def end(self) -> None:
        """Outputs and gradients stay with the user."""
        last = len(self.loads) - 1
        for copy, (num_bytes, first) in self._alive.items():
            self.copies.append(Lifetime(_storage(copy), num_bytes, first, last))
        self._alive.clear()


def _storage(copy: Hashable) -> int:
    assert isinstance(copy, tuple)  # a storage, and which copy of it
    return int(copy[0])
