"""The memory simulator: the one place where bytes alive are added up.

The planner feeds it a planned order of computations, the verifier the emitted graphs, the
allocation check the generated code, and ``measure_peak`` the allocator's own events. All of
them become a sequence of allocations and frees, which ``replay`` sums.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """An allocation (``num_bytes`` > 0) or a free (< 0); ``label`` says on whose behalf, and
    ``storage`` of what, where that has a name (a workspace has none)."""

    num_bytes: int
    label: str = ""
    storage: Hashable = None


@dataclass(frozen=True, slots=True)
class Profile:
    """What a sequence of events amounts to.

    Attributes:
        peak_bytes: the largest sum of bytes alive, counted from ``start_bytes``.
        peak_label: label of the event at which it was first reached.
        peak_index: index of that event, -1 if the start was the peak.
        end_bytes: bytes alive after the last event.
    """

    peak_bytes: int
    peak_label: str
    peak_index: int
    end_bytes: int


def replay(events: Iterable[Event], start_bytes: int = 0) -> Profile:
    """Sum the events in order."""
    alive = peak = start_bytes
    peak_label, peak_index = "", -1
    for index, event in enumerate(events):
        alive += event.num_bytes
        if alive > peak:
            peak, peak_label, peak_index = alive, event.label, index
    return Profile(peak, peak_label, peak_index, alive)


@dataclass(frozen=True, slots=True)
class Computation:
    """One step of a planned order.

    Attributes:
        label: for reports.
        reads: the storages that must be alive.
        writes: the storages that come into being.
        workspace_bytes: alive during the step only.
        in_place: a read storage that dies here may become a written one of the same size.
    """

    label: str
    reads: Sequence[Hashable]
    writes: Sequence[Hashable]
    workspace_bytes: int = 0
    in_place: bool = False


def liveness_events(
    order: Sequence[Computation],
    bytes_of: Mapping[Hashable, int],
    kept: Iterable[Hashable] = (),
    initially_alive: Iterable[Hashable] = (),
    never_reused: Iterable[Hashable] = (),
) -> list[Event]:
    """The events of a planned order when every storage is freed right after its last use.

    A step's inputs and its outputs are alive together (an input is freed only after the
    step). Storages in ``kept`` are never freed; ``initially_alive`` ones exist already (their
    bytes belong to the caller's ``start_bytes``) and are freed after their last use unless
    kept. A step that works in place takes over dying inputs, except ``never_reused`` ones.
    Storages without an entry in ``bytes_of`` weigh nothing.
    """
    last_use: dict[Hashable, int] = {}
    for index, step in enumerate(order):
        for storage in (*step.reads, *step.writes):
            last_use[storage] = index
    never_freed, foreign = set(kept), set(never_reused)
    frees_after: dict[int, list[Hashable]] = {}
    for storage, index in last_use.items():
        if storage not in never_freed:
            frees_after.setdefault(index, []).append(storage)
    alive = set(initially_alive)
    events = [
        Event(-bytes_of.get(storage, 0), storage=storage)
        for storage in alive
        if storage not in last_use and storage not in never_freed
    ]
    for index, step in enumerate(order):
        if step.in_place:
            dying = [s for s in frees_after.get(index, ()) if s not in foreign]
            events.extend(_reuse(step, dying, bytes_of, alive))
        for storage in step.writes:
            if storage not in alive:
                alive.add(storage)
                events.append(Event(bytes_of.get(storage, 0), step.label, storage))
        if step.workspace_bytes:
            events.append(Event(step.workspace_bytes, step.label))
            events.append(Event(-step.workspace_bytes, step.label))
        for storage in frees_after.get(index, ()):
            if storage in alive:
                alive.discard(storage)
                events.append(Event(-bytes_of.get(storage, 0), step.label, storage))
    return events


def _reuse(
    step: Computation,
    dying: Iterable[Hashable],
    bytes_of: Mapping[Hashable, int],
    alive: set[Hashable],
) -> list[Event]:
    """Free, before the step's writes, the dying inputs whose memory the writes take over."""
    wanted = [bytes_of.get(storage, 0) for storage in step.writes if storage not in alive]
    events = []
    for storage in dying:
        num_bytes = bytes_of.get(storage, 0)
        if storage in alive and storage not in step.writes and num_bytes and num_bytes in wanted:
            wanted.remove(num_bytes)
            alive.discard(storage)
            events.append(Event(-num_bytes, step.label, storage))
    return events
