"""A training step for compiled code: lists as one array, and where each begins in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from satcompile.solver.arrays import rows

if TYPE_CHECKING:
    from satcompile.solver.step import Step

# Inductor writes a pointwise result to memory, rather than inline it, when it reads more than so
# many buffers (its realize_acc_reads_threshold), or more than so many and has several readers
# (its realize_reads_threshold).
MOST_READS, MOST_READS_REUSED = 8, 4


class StepArrays(NamedTuple):
    """
    Attributes:
        read_start, reads: storages that operation i reads: from ``reads[read_start[i]]`` on.
        write_start, writes: storages that it writes.
        num_bytes: of each storage.
        workspace_bytes, fusible, reduces: of each operation; see ``StepOperation``.
        most_reads, most_reads_reused: of a result that is inlined.
    """

    read_start: NDArray[np.int64]
    reads: NDArray[np.int64]
    write_start: NDArray[np.int64]
    writes: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    workspace_bytes: NDArray[np.int64]
    fusible: NDArray[np.bool_]
    reduces: NDArray[np.bool_]
    most_reads: int
    most_reads_reused: int


def step_arrays(step: Step) -> StepArrays:
    operations = step.operations
    read_start, reads = rows([o.reads for o in operations], np.int64)
    write_start, writes = rows([o.writes for o in operations], np.int64)
    return StepArrays(
        read_start,
        reads,
        write_start,
        writes,
        np.array(step.storage_bytes, np.int64),
        np.array([o.workspace_bytes for o in operations], np.int64),
        np.array([o.fusible for o in operations], np.bool_),
        np.array([o.reduces for o in operations], np.bool_),
        MOST_READS,
        MOST_READS_REUSED,
    )
