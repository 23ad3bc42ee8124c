"""Time of a plan with copies: what ``two_phase`` charges for one copy, for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from satcompile.solver.training import fast_replay, two_phase
from satcompile.solver.training.step import Copy, Phase, Step, copies


class Timing:
    """Times of a step's operations when the backward runs them.

    A copy costs its operation's time, and a write where a reader cannot fuse it. What only the
    backward needs costs nothing the first time, as it is computed once in any plan.

    Args:
        again_us: of each operation of the step, run once more than any plan must; None where
            that is what the problem says.
    """

    def __init__(
        self,
        step: Step,
        problem: two_phase.Problem,
        choices: Sequence[int],
        again_us: Sequence[float] | None = None,
    ) -> None:
        self._step = step
        makers = step.makers()
        values = dict(zip(choices, problem.values, strict=True))
        self._save_us = {s: value.save_time_us for s, value in values.items()}
        self._write_us = {s: value.materialize_time_us for s, value in values.items()}
        self._first_us = {
            makers[s]: problem.operations[value.producer].time_us for s, value in values.items()
        }
        self._again_us = dict(self._first_us)
        if again_us is not None:
            for index in self._again_us:
                if step.operations[index].phase is Phase.EITHER:
                    self._again_us[index] = again_us[index]

    def time_us(self, backward: Sequence[int], saved: Iterable[int]) -> float:
        if fast_replay.is_large(self._step):
            saved_us = sum(self._save_us.get(storage, 0.0) for storage in sorted(saved))
            return fast_replay.time_us(self._step, backward, *self._arrays, saved_us)
        return self.slow_time_us(backward, saved)

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Times of operations, run first and again, and of writes of storages."""
        operations, storages = len(self._step.operations), len(self._step.storage_bytes)
        return (
            np.array([self._first_us.get(i, 0.0) for i in range(operations)]),
            np.array([self._again_us.get(i, 0.0) for i in range(operations)]),
            np.array([self._write_us.get(s, 0.0) for s in range(storages)]),
        )

    def slow_time_us(self, backward: Sequence[int], saved: Iterable[int]) -> float:
        """The same without compiled code."""
        made = copies(self._step, backward)
        read_unfused: set[Copy] = set()
        for index, read in zip(backward, made.reads, strict=True):
            if not self._step.operations[index].fusible:
                read_unfused.update(read)
        total = sum(self._save_us.get(storage, 0.0) for storage in sorted(saved))
        seen: set[int] = set()
        for index, written in zip(backward, made.writes, strict=True):
            total += (self._again_us if index in seen else self._first_us).get(index, 0.0)
            seen.add(index)
            for copy in written:
                if copy in read_unfused:
                    total += self._write_us.get(copy[0], 0.0)
        return total
