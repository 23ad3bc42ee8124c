"""A training step as a ``Tape``, and plans of the one as plans of the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from satcompile.solver import two_phase
from satcompile.solver.replay import Replayed, Workspace
from satcompile.solver.step import Phase, Step, backward_order
from satcompile.solver.tape import Longs, Tape, flags, rows, widest


@dataclass(frozen=True)
class StepTape:
    """A tape and what its numbers are in the step.

    Attributes:
        tape: of the step.
        operations: the step's index of each of the tape's operations. Storages are the step's.
    """

    tape: Tape
    operations: tuple[int, ...]

    def keys(self, backward: Sequence[int]) -> Longs:
        """A backward's order as keys: what runs again belongs to the next of the spine."""
        number = {index: i for i, index in enumerate(self.operations)}
        n, stage, found = len(self.operations), len(self.operations) - 1, []
        for index in reversed(backward):
            i = number[index]
            if i >= self.tape.num_forward:
                stage = i
            else:
                found.append(stage * n + i)
        return np.array(sorted(set(found)), np.int64)

    def orders(
        self, work: Workspace, replayed: Replayed
    ) -> tuple[frozenset[int], tuple[int, ...], tuple[int, ...]]:
        """What the last replay in ``work`` saved, its forward and its backward."""
        saved = frozenset(np.flatnonzero(work.saved).tolist())
        run = work.operation.tolist()
        backward = tuple(self.operations[i] for i in run[: replayed.positions])
        forward = tuple(self.operations[i] for i in run[replayed.positions : replayed.end])
        return saved, forward, backward


def step_tape(
    step: Step,
    problem: two_phase.Problem,
    choices: Sequence[int],
    again_us: Sequence[float] | None = None,
) -> StepTape:
    """
    Args:
        choices: storage of each of the problem's values.
        again_us: as for ``Timing``.
    """
    forward = [i for i, o in enumerate(step.operations) if o.phase is not Phase.BACKWARD]
    spine = [i for i in backward_order(step, choices) if step.operations[i].phase is Phase.BACKWARD]
    order = (*forward, *spine)
    operations = [step.operations[i] for i in order]
    storages, count = len(step.storage_bytes), len(order)
    maker = np.full(storages, -1, np.int32)
    for i, operation in enumerate(operations):
        maker[list(operation.writes)] = i
    first, save, write = np.zeros(count), np.zeros(storages), np.zeros(storages)
    may_save, may_repeat = np.zeros(storages, np.uint8), np.zeros(count, np.uint8)
    for storage, value in zip(choices, problem.values, strict=True):
        producer = problem.operations[value.producer]
        save[storage], write[storage] = value.save_time_us, value.materialize_time_us
        may_save[storage] = value.saveable
        first[maker[storage]] = producer.time_us
        may_repeat[maker[storage]] = producer.recomputable
    optional = [i for i, o in enumerate(operations) if o.phase is Phase.EITHER]
    again = first.copy()
    if again_us is not None:
        again[optional] = [again_us[order[i]] for i in optional]
    read_start, reads = rows(o.reads for o in operations)
    write_start, writes = rows(o.writes for o in operations)
    tape = Tape(
        num_forward=len(forward), read_start=read_start, reads=reads, write_start=write_start,
        writes=writes, num_bytes=np.array(step.storage_bytes, np.int64),
        workspace_bytes=np.array([o.workspace_bytes for o in operations], np.int64), maker=maker,
        fusible=flags(count, _where(o.fusible for o in operations)),
        reduces=flags(count, _where(o.reduces for o in operations)),
        optional=flags(count, optional), may_repeat=may_repeat, again=again, first=first,
        may_save=may_save, save=save, write=write, output=flags(storages, step.outputs),
        transient=flags(storages, step.transient_outputs - step.outputs),
        kept=flags(storages, step.gradients - step.consumed),
        tangent=flags(storages, step.tangents), base_bytes=step.constant_bytes,
        fuses=any(o.fusible for o in operations), widest=widest(read_start, write_start),
    )  # fmt: skip
    return StepTape(tape, order)


def _where(conditions: Iterable[bool]) -> list[int]:
    return [i for i, holds in enumerate(conditions) if holds]
