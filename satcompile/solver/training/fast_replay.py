"""Replays of a step's orders, some fifty times as fast as ``satcompile.solver.training.step``'s.

The planner replays thousands of plans. ``simulate_orders``, ``loads`` and ``time_us`` here
give to the byte, and to the last bit of a time, what their readable forms give, which are used for
small graphs (no compilation to wait for) and by whoever checks a plan. Tests compare the two.

Copies of storages are numbered: first those that are there before an order begins, one of each
storage, then those that the order makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from satcompile.solver.base.simulator import Profile
from satcompile.solver.training import step as readable
from satcompile.solver.training.step import Step, StepProfile, start_of_backward

_LARGE = 1_000  # operations: of smaller steps, a plan is made before numba is imported


class Ends(NamedTuple):
    """What holds of storages at the two ends of an order; each array has a flag a storage.

    Attributes:
        kept: their latest copies are never freed.
        written: the latest copies reach memory, whoever reads them.
        kept_first: the copies from before the order are never freed.
        alive: the copies from before the order are in memory when it begins.
        not_reused: nothing is written over the copies from before the order.
    """

    kept: NDArray[np.bool_]
    written: NDArray[np.bool_]
    kept_first: NDArray[np.bool_]
    alive: NDArray[np.bool_]
    not_reused: NDArray[np.bool_]


def is_large(step: Step) -> bool:
    """Whether compiled code is worth its start."""
    return len(step.operations) >= _LARGE


def simulate_orders(
    step: Step, forward: Sequence[int], backward: Sequence[int], saved: Iterable[int]
) -> StepProfile:
    """As ``step.simulate_orders``."""
    if not is_large(step):
        return readable.simulate_orders(step, forward, backward, saved)
    saved = frozenset(saved)
    forward_profile, _ = _forward(step, forward, saved)
    backward_profile, _ = _backward(step, backward, saved, forward_profile)
    sizes = step.storage_bytes
    return StepProfile(
        forward_profile, backward_profile, sum(sizes[s] for s in saved - step.outputs)
    )


def loads(
    step: Step, forward: Sequence[int], backward: Sequence[int], saved: Iterable[int]
) -> tuple[list[int], list[int]]:
    """As ``step.loads``."""
    if not is_large(step):
        return readable.loads(step, forward, backward, saved)
    saved = frozenset(saved)
    forward_profile, forward_loads = _forward(step, forward, saved)
    _, backward_loads = _backward(step, backward, saved, forward_profile)
    return forward_loads.tolist(), backward_loads.tolist()


def time_us(
    step: Step,
    backward: Sequence[int],
    first_us: NDArray[np.float64],
    again_us: NDArray[np.float64],
    write_us: NDArray[np.float64],
    saved_us: float,
) -> float:
    """As ``Timing.time_us``.

    Args:
        first_us, again_us: of each operation, run the first time or once more.
        write_us: of each storage, what writing a copy of it costs.
        saved_us: what saving costs.
    """
    from satcompile.solver.training import compiled_replay  # numba takes a second to import

    positions = np.array(backward, np.int64)
    found = compiled_replay.time_us(
        step.arrays, positions, first_us, again_us, write_us, float(saved_us)
    )
    return float(found)


def _forward(
    step: Step, order: Sequence[int], saved: frozenset[int]
) -> tuple[Profile, NDArray[np.int64]]:
    kept = _flags(step, saved | step.outputs | step.transient_outputs)
    nothing = _flags(step, ())
    ends = Ends(kept, kept, nothing, nothing, nothing)
    return _replayed(step, order, ends, step.constant_bytes)


def _backward(
    step: Step, order: Sequence[int], saved: frozenset[int], forward: Profile
) -> tuple[Profile, NDArray[np.int64]]:
    ends = Ends(
        kept=_flags(step, step.gradients - step.consumed),
        written=_flags(step, step.gradients),
        kept_first=_flags(step, step.held_by_the_caller),
        alive=_flags(step, saved | step.outputs | step.tangents),
        not_reused=_flags(step, step.tangents),
    )
    return _replayed(step, order, ends, start_of_backward(step, forward, saved))


def _replayed(
    step: Step, order: Sequence[int], ends: Ends, start_bytes: int
) -> tuple[Profile, NDArray[np.int64]]:
    from satcompile.solver.training import compiled_replay  # numba takes a second to import

    positions = np.array(order, np.int64)
    highest = np.zeros(len(positions), np.int64)
    found = compiled_replay.replay(step.arrays, positions, ends, start_bytes, highest)
    peak_bytes, position, event, end_bytes = found
    label = step.operations[order[position]].name if position >= 0 else ""
    return Profile(int(peak_bytes), label, int(event), int(end_bytes)), highest


def _flags(step: Step, members: Iterable[int]) -> NDArray[np.bool_]:
    found = np.zeros(len(step.storage_bytes), np.bool_)
    found[list(members)] = True
    return found
