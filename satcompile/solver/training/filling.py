"""Use of the room that a plan leaves: save more, where that fits and spares recomputation.

A greedy search over exact replays. What would spare the most time per byte comes first, later
layers before earlier ones, as the backward frees theirs first. Candidates are tried in chunks,
which double after a success and halve after a failure, so that work is counted in replays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from satcompile.solver.training.fast_replay import simulate_orders
from satcompile.solver.training.moments import Spine
from satcompile.solver.training.step import StepProfile, backward_order
from satcompile.solver.training.timing import Timing


@dataclass(frozen=True)
class Orders:
    """A plan: what is saved, both orders, and what they amount to."""

    saved: frozenset[int]
    forward: tuple[int, ...]
    backward: tuple[int, ...]
    profile: StepProfile
    time_us: float


def orders(spine: Spine, timing: Timing, saved: frozenset[int], backward: Sequence[int]) -> Orders:
    """Replay a backward; one that repeats what its saved values make needless is put right."""
    step = spine.step
    if not set(backward) <= set(backward_order(step, saved)):
        # Results of one operation of which some are saved: what another copy of them is made
        # of need not cross. One copy of each, then.
        backward = spine.backward(saved)
    forward = tuple(spine.forward(saved))
    profile = simulate_orders(step, forward, backward, saved)
    return Orders(saved, forward, tuple(backward), profile, timing.time_us(backward, saved))


def filled(
    spine: Spine,
    timing: Timing,
    plan: Orders,
    rebuild: Callable[[frozenset[int]], Sequence[int]],
    limit_bytes: int,
    replays: int,
) -> Orders:
    """``plan``, or one that saves more within the limit and takes less time.

    Args:
        rebuild: the backward's order for another set of saved storages.
        replays: how many plans may be tried.
    """
    waiting = _candidates(spine, plan)
    chunk = max(1, len(waiting) // 4)
    while waiting and replays > 0:
        replays -= 1
        more = plan.saved.union(waiting[:chunk])
        tried = orders(spine, timing, more, rebuild(more))
        if tried.profile.peak_bytes <= limit_bytes and tried.time_us < plan.time_us:
            plan, waiting = tried, waiting[chunk:]
            chunk *= 2
        elif chunk > 1:
            chunk //= 2
        else:
            waiting = waiting[1:]
    return plan


def _candidates(spine: Spine, plan: Orders) -> list[int]:
    """Storages worth saving, the most time spared per byte first."""
    often = Counter(plan.backward)
    found = []
    for i, storage in enumerate(spine.choices):
        value = spine.problem.values[i]
        again = often[spine.maker_of[i]]
        time_us = spine.problem.operations[value.producer].time_us + value.materialize_time_us
        spared_us = again * time_us - value.save_time_us
        if value.saveable and storage not in plan.saved and spared_us > 0:
            found.append((-spared_us / (value.num_bytes + 1), -i, storage))
    return [storage for *_, storage in sorted(found)]
