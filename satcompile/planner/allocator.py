"""Allocations and frees of torch's allocators, in order, as the profiler records them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from satcompile.solver.base.simulator import Event
from satcompile.torch_compat.tracing import quiet_profiler


def allocator_events(fn: Callable[[], Any], device_type: str = "cpu") -> list[Event]:
    """Every allocation (+bytes) and free (-bytes) while ``fn`` runs, in order; on a GPU, in bytes
    as its allocator gives them out.

    Frees are matched by address to allocations inside the window; other frees are dropped. A block
    from before the window is not memory that ``fn`` allocated, and the profiler may report its free
    with a stale size.
    """
    from torch.profiler import ProfilerActivity, profile

    settings: dict[str, Any] = {
        "activities": [ProfilerActivity.CPU],
        "profile_memory": True,
        "acc_events": True,
    }
    with quiet_profiler(), profile(**settings) as run:
        fn()
    tree = run.profiler.kineto_results.experimental_event_tree()
    raw = sorted(_memory_records(tree, device_type))
    alive: dict[int, int] = {}
    events: list[Event] = []
    for _, _, address, num_bytes in raw:
        if num_bytes > 0:
            alive[address] = num_bytes
            events.append(Event(num_bytes))
        elif address in alive:
            events.append(Event(-alive.pop(address)))
    return events


def _memory_records(tree: list[Any], device_type: str) -> Iterator[tuple[int, int, int, int]]:
    """(time, order of discovery, address, signed bytes) of every memory event in a tree."""
    stack, order = list(tree), 0
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        if event.name == "[memory]" and event.extra_fields.device.type == device_type:
            fields = event.extra_fields
            order += 1
            yield event.start_time_ns, -order, fields.ptr, fields.alloc_size
