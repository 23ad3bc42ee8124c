"""Where to cut a forward into segments whose boundaries are few bytes."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from itertools import accumulate

from satcompile.solver.training.step import Phase, Step, forward_order


def segment_boundaries(
    step: Step, segments: int, allowed: set[int], free: AbstractSet[int] = frozenset()
) -> frozenset[int]:
    """Values that, saved, cut the forward into so many segments of about equal bytes.

    Within a window around each ideal boundary the position is taken at which the fewest bytes
    are still to be read: between two layers of a residual network, that is the residual.
    Recomputation then never reaches back further than its segment's start (Chen et al.,
    Training Deep Nets with Sublinear Memory Cost, 2016, with boundaries found by bytes).

    Args:
        allowed: storages that may be saved.
        free: storages that need not be, as they are made of parameters and inputs alone.
    """
    order = [i for i in forward_order(step, ()) if step.operations[i].phase is Phase.FORWARD]
    last_read: dict[int, int] = {}
    made: dict[int, int] = {}
    for position, index in enumerate(order):
        for storage in step.operations[index].writes:
            made[storage] = position
        for storage in step.operations[index].reads:
            last_read[storage] = position
    produced, total = [], 0
    change = [0] * (len(order) + 1)
    for position, index in enumerate(order):
        for storage in step.operations[index].writes:
            size = step.storage_bytes[storage]
            total += size
            if last_read.get(storage, position) > position:
                change[position] += size
                change[last_read[storage]] -= size
        produced.append(total)
    alive = list(accumulate(change))
    chosen: set[int] = set()
    for k in range(1, segments):
        ideal, reach = total * k / segments, total / segments / 2
        window = [p for p in range(len(order)) if abs(produced[p] - ideal) <= reach]
        for position in sorted(window, key=lambda p: (alive[p], abs(produced[p] - ideal))):
            crossing = {s for s in made if made[s] <= position < last_read.get(s, -1)}
            crossing -= free
            if crossing <= allowed:
                chosen |= crossing
                break
    return frozenset(s for s in chosen if step.storage_bytes[s] > 0)
