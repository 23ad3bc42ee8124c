"""A planning problem as flat arrays, for compiled code.

One form for two problems. Of a plain ``Problem`` every node is an operation of the *spine* (the
operations that run once whatever is planned, in the order of their first computation), and any
of them may run again before any later one. Of a training step the spine is the backward; what
may run again in it are operations of the forward, and what the backward reads of the forward
without running it again is saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.uint8]


class Tape(NamedTuple):
    """Operations 0..n-1 (those of the forward first) and storages.

    Attributes:
        num_forward: operations of the forward; 0 where any operation may run again.
        read_start, reads: storages that operation i reads: ``reads[read_start[i]:...]``.
        write_start, writes: storages that it writes.
        num_bytes: of each storage; 0 for what exists before and after.
        workspace_bytes: of each operation, taken and returned within it.
        maker: of each storage, the operation that writes it; -1 for none.
        fusible, reduces: see ``StepOperation``.
        optional: it runs in the forward only if something needs it there.
        may_repeat: it may run in the backward (again).
        again, first: time of running it there, when it ran before and when not.
        may_save: of each storage.
        save, write: time of saving it, of writing a copy for a reader that cannot fuse it.
        output: held from the forward to the end.
        transient: held until the forward ends.
        kept: the latest copy is held until the end.
        tangent: there from the start of the backward on; its memory is not written to.
        base_bytes: alive throughout.
        fuses: whether any operation is fusible.
        widest: the most storages that one operation reads, or writes.
    """

    num_forward: int
    read_start: Ints
    reads: Ints
    write_start: Ints
    writes: Ints
    num_bytes: Longs
    workspace_bytes: Longs
    maker: Ints
    fusible: Flags
    reduces: Flags
    optional: Flags
    may_repeat: Flags
    again: Floats
    first: Floats
    may_save: Flags
    save: Floats
    write: Floats
    output: Flags
    transient: Flags
    kept: Flags
    tangent: Flags
    base_bytes: int
    fuses: bool
    widest: int

    @property
    def num_operations(self) -> int:
        return len(self.fusible)

    @property
    def num_storages(self) -> int:
        return len(self.maker)


def rows(lists: Iterable[Sequence[int]]) -> tuple[Ints, Ints]:
    """Lists of numbers as one array, and where each begins in it."""
    kept = [list(each) for each in lists]
    starts = np.zeros(len(kept) + 1, np.int32)
    np.cumsum([len(each) for each in kept], out=starts[1:])
    return starts, np.array([number for each in kept for number in each], np.int32)


def widest(*starts: Ints) -> int:
    """The longest of lists that begin at ``starts``."""
    return max(int(np.max(np.diff(each), initial=1)) for each in starts)


def flags(length: int, members: Iterable[int]) -> Flags:
    """One where a number is a member, zero elsewhere."""
    found = np.zeros(length, np.uint8)
    found[list(members)] = 1
    return found


def plain_tape(
    times: Sequence[float], num_bytes: Sequence[int], inputs: Sequence[Sequence[int]]
) -> Tape:
    """Of nodes with one output each, any of which may run again."""
    count = len(times)
    read_start, reads = rows(inputs)
    write_start, writes = rows([i] for i in range(count))
    costs = np.array(times, float)
    no, yes = np.zeros(count, np.uint8), np.ones(count, np.uint8)
    nothing = np.zeros(count)
    return Tape(
        num_forward=0, read_start=read_start, reads=reads, write_start=write_start, writes=writes,
        num_bytes=np.array(num_bytes, np.int64), workspace_bytes=np.zeros(count, np.int64),
        maker=np.arange(count, dtype=np.int32), fusible=no, reduces=no, optional=no,
        may_repeat=yes, again=costs, first=costs, may_save=yes, save=nothing, write=nothing,
        output=no, transient=no, kept=no, tangent=no, base_bytes=0, fuses=False,
        widest=widest(read_start, write_start),
    )  # fmt: skip
