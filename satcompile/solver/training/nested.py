"""Plans for low peaks: checkpoints in two levels, without a solver.

The forward is cut into segments whose boundaries are saved (Chen et al., Training Deep Nets with
Sublinear Memory Cost, 2016). Where the backward needs a value of a segment, the chain from the
boundary runs again, but of what it makes only two things stay: values that the backward reads
within a window ahead, and the boundaries of finer segments. What lies further ahead is made
again when its time comes, from the nearest boundary of either level: time for memory once more,
as in the recursion of Griewank and Walther's treeverse, cut off at its second level.

No proof goes with these plans; they are replayed exactly, and the caller takes the best.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from satcompile.solver.training.moments import Spine, recomputed_for

_SEGMENTS = (1, 2, 4, 8, 16, 32)
_FINER = 48
_WINDOWS = (4, 10, 24, 48, 96, 200)  # parts of the backward


@dataclass(frozen=True)
class Nested:
    """A way of cutting: what is saved at least, what stays when made again, and how far ahead
    of its use anything else may be made."""

    spine: Spine
    saved: frozenset[int]
    stays: frozenset[int]
    window: int

    def backward(self, saved: frozenset[int]) -> list[int]:
        """The backward's order when ``saved`` is saved."""
        return _order(self.spine, saved, self.stays, self.window)


def nested_plans(spine: Spine) -> Iterator[Nested]:
    """Over numbers of segments and windows."""
    finer = spine.cuts(_FINER)
    for boundaries in dict.fromkeys(spine.cuts(count) for count in _SEGMENTS):
        saved = spine.with_unrepeatable(boundaries)
        if saved is None:
            continue
        for parts in _WINDOWS:
            yield Nested(spine, saved, finer, max(1, len(spine.operations) // parts))


def _order(spine: Spine, saved: frozenset[int], kept: Iterable[int], window: int) -> list[int]:
    step, stays = spine.step, saved | frozenset(kept)
    there = set(saved)
    order: list[int] = []
    for position, index in enumerate(spine.operations):
        there = {
            storage
            for storage in there
            if storage in stays or _next_use(spine, storage, position) <= position + window
        }
        order += recomputed_for(step, spine.makers, there, step.operations[index].reads)
        order.append(index)
    order += recomputed_for(step, spine.makers, there, sorted(step.gradients))
    return order


def _next_use(spine: Spine, storage: int, position: int) -> float:
    uses = spine.uses[spine.number[storage]]
    found = bisect_left(uses, position)
    return uses[found] if found < len(uses) else float("inf")
