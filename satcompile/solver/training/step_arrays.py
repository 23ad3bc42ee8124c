"""A training step for compiled code: lists as one array, and where each begins in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from satcompile.solver.base.arrays import rows

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


def step_arrays(
    reads: Sequence[Sequence[int]],
    writes: Sequence[Sequence[int]],
    num_bytes: Sequence[int],
    workspace_bytes: Sequence[int],
    fusible: Sequence[bool],
    reduces: Sequence[bool],
) -> StepArrays:
    """Args: those of the attributes, an entry for each operation (``num_bytes``: each storage)."""
    read_start, read = rows(reads, np.int64)
    write_start, written = rows(writes, np.int64)
    return StepArrays(
        read_start,
        read,
        write_start,
        written,
        np.array(num_bytes, np.int64),
        np.array(workspace_bytes, np.int64),
        np.array(fusible, np.bool_),
        np.array(reduces, np.bool_),
        MOST_READS,
        MOST_READS_REUSED,
    )
