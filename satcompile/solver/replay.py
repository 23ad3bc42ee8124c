"""Exact replay of a plan in compiled code: bytes alive at every position, and the plan's time.

The same rules as ``satcompile.solver.step.simulate_orders``, which is the readable form (tests
compare the two), tens of thousands of times a second.

A plan is a sorted array of *keys*: ``stage * num_operations + operation`` means that the
operation runs again right before operation ``stage`` of the spine. Every set of keys is a valid
plan but for its memory: what is read and was not made again is simply kept from where it was
made last. Copies are numbered: 0..S-1 what is there when the backward begins, S..2S-1 what the
forward makes, from 2S on what the backward makes, in its order. (Without a forward there are
none of the first two, and a copy's number is the position that makes it.)
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from satcompile.solver.tape import Flags, Ints, Longs, Tape

compiled = numba.njit(cache=True, nogil=True, boundscheck=False)

FOREVER = 1 << 30
_MOST_READS, _MOST_READS_REUSED = 8, 4  # as in ``satcompile.solver.step``


class Workspace(NamedTuple):
    """Arrays that a replay fills: by position, by copy, by storage, by operation.

    Positions of the backward come first, those of the forward follow.
    """

    operation: Ints
    stage: Ints
    load: Longs  # bytes alive at their most while it runs; 0 where it joins a kernel
    freed: Longs  # bytes freed after it
    read_start: Ints
    reads: Ints  # copies
    write_start: Ints  # copies are numbered in the order in which they are made
    source_start: Ints
    sources: Ints  # copies that its kernel reads
    storage: Ints  # of each copy
    last: Ints  # position of the last kernel that reads it; -1 for none
    readers: Ints
    must: Flags  # bit 0: it reaches memory; bit 1: a reader cannot fuse it
    inlined: Ints  # position whose sources stand for it; -1 for none
    current: Ints  # of each storage, the latest copy
    saved: Flags
    needed: Flags  # of each operation of the forward: it runs there
    seen: Flags  # of each operation: it ran in the backward


class Replayed(NamedTuple):
    """What a replay found.

    Attributes:
        positions: of the backward; those of the forward follow up to ``end``.
        over_bytes: bytes above the limit, summed over positions.
        peak_bytes: the most bytes alive.
        time: of all that runs again, is saved or written on the plan's account.
        valid: false where something is saved that may not be, or the arrays are too short.
    """

    positions: int
    end: int
    over_bytes: int
    peak_bytes: int
    time: float
    valid: bool


def workspace(tape: Tape, most_keys: int) -> Workspace:
    """Arrays for plans of at most so many keys."""
    n, storages, wide = tape.num_operations, tape.num_storages, tape.widest
    most_positions = n + most_keys + 2
    # Most operations are narrow. Where room for wide ones runs out, a plan is not valid.
    most_reads = len(tape.reads) + most_keys * min(wide, 12) + wide + 1
    most_sources = (most_reads * 4 + _MOST_READS * wide + 1) if tape.fuses else 1
    most_copies = 2 * storages + len(tape.writes) + most_keys * min(wide, 4) + wide + 1

    def ints(length: int) -> Ints:
        return np.zeros(length, np.int32)

    return Workspace(
        operation=ints(most_positions), stage=ints(most_positions),
        load=np.zeros(most_positions, np.int64), freed=np.zeros(most_positions, np.int64),
        read_start=ints(most_positions + 1),
        reads=ints(most_reads), write_start=ints(most_positions + 1),
        source_start=ints(most_positions + 1), sources=ints(most_sources),
        storage=ints(most_copies), last=ints(most_copies), readers=ints(most_copies),
        must=np.zeros(most_copies, np.uint8), inlined=ints(most_copies) - 1, current=ints(storages),
        saved=np.zeros(storages, np.uint8), needed=np.zeros(n, np.uint8),
        seen=np.zeros(n, np.uint8),
    )  # fmt: skip


@compiled
def replay(tape, work, keys, num_keys, limit_bytes):  # type: ignore[no-untyped-def]
    """Run a plan; ``work`` holds the details, the ``Replayed`` what they come to."""
    if tape.num_forward == 0:
        return _plain(tape, work, keys, num_keys, limit_bytes)
    positions, time, valid = _backward(tape, work, keys, num_keys)
    end, over, peak = positions, 0, 0
    alive = tape.base_bytes
    if not valid:
        return Replayed(positions, end, over, peak, time, False)
    if tape.num_forward > 0:
        end, more, valid = _forward(tape, work, positions)
        time += more
        if not valid:
            return Replayed(positions, end, over, peak, time, False)
        if tape.fuses:
            valid = _inline(tape, work, positions, end, 0)
        over, peak = _sweep(tape, work, positions, end, alive, limit_bytes)
        alive, unread = _boundary(tape, work)
        peak = max(peak, alive)
        over += max(0, alive - limit_bytes)
        alive -= unread
    if tape.fuses:
        first = work.source_start[end] if tape.num_forward > 0 else 0
        valid = _inline(tape, work, 0, positions, first) and valid
    more_over, more_peak = _sweep(tape, work, 0, positions, alive, limit_bytes)
    return Replayed(positions, end, over + more_over, max(peak, more_peak), time, valid)


# Arrays are taken out of their tuples once a function: numba counts references at every use.


@compiled
def _plain(tape, work, keys, num_keys, limit_bytes):  # type: ignore[no-untyped-def]
    """The same for operations that all write one storage, their own, and are never fused; what
    a position reads is left to be looked up."""
    n = len(tape.fusible)
    reads_of, reads_from, num_bytes, again_time = (
        tape.reads, tape.read_start, tape.num_bytes, tape.again
    )  # fmt: skip
    operation, stage_at, write_start, load, freed = (
        work.operation, work.stage, work.write_start, work.load, work.freed
    )  # fmt: skip
    storage, last, current = work.storage, work.last, work.current
    position, key, time, most = 0, 0, 0.0, len(operation) - 2
    for stage in range(n):
        bound = np.int64(stage + 1) * n
        while key < num_keys and keys[key] < bound:
            if position >= most:
                return Replayed(position, position, 0, 0, time, False)
            i = keys[key] - np.int64(stage) * n
            for r in range(reads_from[i], reads_from[i + 1]):
                last[current[reads_of[r]]] = position
            operation[position], stage_at[position], storage[position] = i, stage, i
            last[position], current[i] = -1, position
            time += again_time[i]
            key += 1
            position += 1
        if position >= most:
            return Replayed(position, position, 0, 0, time, False)
        for r in range(reads_from[stage], reads_from[stage + 1]):
            last[current[reads_of[r]]] = position
        operation[position], stage_at[position], storage[position] = stage, stage, stage
        last[position], current[stage] = -1, position
        position += 1
    for p in range(position):
        freed[p] = 0
        write_start[p] = p
    write_start[position] = position
    for p in range(position):
        freed[max(p, last[p])] += num_bytes[operation[p]]
    alive, over, peak = 0, 0, 0
    for p in range(position):
        alive += num_bytes[operation[p]]
        load[p] = alive
        peak = max(peak, alive)
        over += max(0, alive - limit_bytes)
        alive -= freed[p]
    return Replayed(position, position, over, peak, time, True)


@compiled
def _backward(tape, work, keys, num_keys):  # type: ignore[no-untyped-def]
    """Which copies each position of the backward reads and makes, and its time."""
    n, storages, begin = len(tape.fusible), len(tape.maker), tape.num_forward
    reads_of, reads_from, writes_of, writes_from = (
        tape.reads, tape.read_start, tape.writes, tape.write_start
    )  # fmt: skip
    maker, fuses, fusible, write_time, save_time, may_save = (
        tape.maker, tape.fuses, tape.fusible, tape.write, tape.save, tape.may_save
    )  # fmt: skip
    again_time, first_time, kept, output = tape.again, tape.first, tape.kept, tape.output
    operation, stage_at, read_start, write_start, reads = (
        work.operation, work.stage, work.read_start, work.write_start, work.reads
    )  # fmt: skip
    storage, last, readers, must, inlined = (
        work.storage, work.last, work.readers, work.must, work.inlined
    )  # fmt: skip
    current, saved, seen = work.current, work.saved, work.seen
    for s in range(storages):
        current[s] = -1
        saved[s] = 0
        storage[s] = s
        last[s], readers[s], must[s], inlined[s] = -1, 0, 0, -1
    for i in range(n):
        seen[i] = 0
    made, position, read, key, time, valid = 2 * storages, 0, 0, 0, 0.0, True
    wide = tape.widest
    most_reads, most_copies, most = len(reads) - wide, len(storage) - wide, len(operation) - 2
    for stage in range(begin, n):
        again = True
        while again:
            again = key < num_keys and keys[key] < (stage + 1) * n
            i = keys[key] - stage * n if again else stage
            if position >= most or read >= most_reads or made >= most_copies:
                return position, time, False
            operation[position], stage_at[position] = i, stage
            read_start[position], write_start[position] = read, made
            for r in range(reads_from[i], reads_from[i + 1]):
                s = reads_of[r]
                c = current[s]
                if c < 0:
                    c = s
                    if saved[s] == 0 and 0 <= maker[s] < begin:
                        saved[s] = 1
                        time += save_time[s]
                        valid = valid and may_save[s] == 1
                reads[read] = c
                read += 1
                readers[c] += 1
                if not fuses:
                    last[c] = position
                elif fusible[i] == 0 and must[c] < 2:
                    must[c] = 3
                    if c >= 2 * storages:
                        time += write_time[s]
            for w in range(writes_from[i], writes_from[i + 1]):
                s = writes_of[w]
                current[s] = made
                storage[made] = s
                last[made], readers[made], must[made], inlined[made] = -1, 0, 0, -1
                made += 1
            if again:
                time += again_time[i] if seen[i] else first_time[i]
                seen[i] = 1
                key += 1
            position += 1
    read_start[position], write_start[position] = read, made
    for s in range(storages):
        if kept[s]:
            c = current[s]
            if c < 0:
                c = s
                if saved[s] == 0 and 0 <= maker[s] < begin:
                    saved[s] = 1
                    time += save_time[s]
                    valid = valid and may_save[s] == 1
            last[c] = FOREVER
            must[c] |= 1
        if output[s]:
            last[s] = FOREVER
    return position, time, valid


@compiled
def _forward(tape, work, position):  # type: ignore[no-untyped-def]
    """The same for the forward, which runs what its outputs and saved storages need."""
    storages, count, fuses = len(tape.maker), tape.num_forward, tape.fuses
    reads_of, reads_from, writes_of, writes_from = (
        tape.reads, tape.read_start, tape.writes, tape.write_start
    )  # fmt: skip
    maker, optional, fusible, output, transient = (
        tape.maker, tape.optional, tape.fusible, tape.output, tape.transient
    )  # fmt: skip
    operation, stage_at, read_start, reads = (
        work.operation, work.stage, work.read_start, work.reads
    )  # fmt: skip
    storage, last, readers, must, inlined = (
        work.storage, work.last, work.readers, work.must, work.inlined
    )  # fmt: skip
    needed, saved, seen = work.needed, work.saved, work.seen
    time = 0.0
    for i in range(count):
        needed[i] = 1 - optional[i]
    for i in range(count - 1, -1, -1):
        if optional[i]:
            for w in range(writes_from[i], writes_from[i + 1]):
                if saved[writes_of[w]]:
                    needed[i] = 1
            if needed[i] and seen[i]:
                time += tape.again[i] - tape.first[i]
        if needed[i]:
            for r in range(reads_from[i], reads_from[i + 1]):
                if maker[reads_of[r]] >= 0:
                    needed[maker[reads_of[r]]] = 1
    for s in range(storages):
        c = storages + s
        storage[c] = s
        last[c], readers[c], must[c], inlined[c] = -1, 0, 0, -1
        if saved[s] or output[s] or transient[s]:
            last[c], must[c] = FOREVER, 1
    read, most = read_start[position], len(operation) - 2
    most_reads = len(reads) - tape.widest
    for i in range(count):
        if not needed[i]:
            continue
        if read >= most_reads or position >= most:
            return position, time, False
        operation[position], stage_at[position], read_start[position] = i, -1, read
        for r in range(reads_from[i], reads_from[i + 1]):
            s = reads_of[r]
            c = storages + s if maker[s] >= 0 else s
            reads[read] = c
            read += 1
            if c >= storages:
                readers[c] += 1
                if not fuses and last[c] != FOREVER:
                    last[c] = position
                if fusible[i] == 0:
                    must[c] |= 1
        position += 1
    read_start[position] = read
    return position, time, True


@compiled
def _inline(tape, work, begin, end, source):  # type: ignore[no-untyped-def]
    """Which copies never reach memory, as only fusible readers read them, and so what every
    kernel reads; sources are written from ``source`` on."""
    storages, writes_of, writes_from = len(tape.maker), tape.writes, tape.write_start
    fusible, reduces = tape.fusible, tape.reduces
    operation, stage_at, read_start, write_start, reads = (
        work.operation, work.stage, work.read_start, work.write_start, work.reads
    )  # fmt: skip
    starts, sources, last, readers, must, inlined = (
        work.source_start, work.sources, work.last, work.readers, work.must, work.inlined
    )  # fmt: skip
    most_sources = len(sources) - _MOST_READS * tape.widest
    for position in range(begin, end):
        if source >= most_sources:
            return False
        i = operation[position]
        starts[position] = source
        first = source
        for r in range(read_start[position], read_start[position + 1]):
            c = reads[r]
            p = inlined[c]
            begin_c, end_c = (r, r + 1) if p < 0 else (starts[p], starts[p + 1])
            for k in range(begin_c, end_c):
                new = c if p < 0 else sources[k]
                known = False
                for j in range(first, source):
                    known = known or sources[j] == new
                if not known:
                    sources[source] = new
                    source += 1
        starts[position + 1] = source
        if fusible[i] and not reduces[i] and writes_from[i + 1] - writes_from[i] == 1:
            in_forward = stage_at[position] < 0
            c = storages + writes_of[writes_from[i]] if in_forward else write_start[position]
            most = _MOST_READS_REUSED if readers[c] > 1 else _MOST_READS
            if source - first <= most and must[c] & 1 == 0:
                inlined[c] = position
                continue
        for k in range(first, source):
            if last[sources[k]] != FOREVER:
                last[sources[k]] = position
    return True


@compiled
def _sweep(tape, work, begin, end, alive, limit_bytes):  # type: ignore[no-untyped-def]
    """Add up bytes over positions."""
    storages, writes_of, writes_from = len(tape.maker), tape.writes, tape.write_start
    fusible, reduces, num_bytes, workspace_bytes, tangent = (
        tape.fusible, tape.reduces, tape.num_bytes, tape.workspace_bytes, tape.tangent
    )  # fmt: skip
    operation, stage_at, write_start, load = (
        work.operation, work.stage, work.write_start, work.load
    )  # fmt: skip
    storage, last, inlined = work.storage, work.last, work.inlined
    starts = work.source_start if tape.fuses else work.read_start
    read = work.sources if tape.fuses else work.reads
    over, peak = 0, alive
    for position in range(begin, end):
        i = operation[position]
        writes = writes_from[i + 1] - writes_from[i]
        in_forward = stage_at[position] < 0
        first = storages + writes_of[writes_from[i]] if in_forward else write_start[position]
        if writes == 1 and inlined[first] >= 0:
            load[position] = 0
            continue
        in_place = fusible[i] == 1 and reduces[i] == 0
        dying, reused, taken = 0, 0, 0  # bytes of what is read here for the last time
        for k in range(starts[position], starts[position + 1]):
            c = read[k]
            if last[c] != position:
                continue
            size = num_bytes[storage[c]]
            dying += size
            if in_place and size > 0 and not (c < storages and tangent[c]):
                for w in range(min(writes, 60)):  # a result takes over memory of its size
                    if taken >> w & 1 == 0 and num_bytes[writes_of[writes_from[i] + w]] == size:
                        taken |= 1 << w
                        reused += size
                        break
        alive -= reused
        unread = 0
        for w in range(writes):
            s = writes_of[writes_from[i] + w]
            alive += num_bytes[s]
            if last[storages + s if in_forward else first + w] < 0:
                unread += num_bytes[s]
        highest = alive + workspace_bytes[i]
        load[position] = highest
        peak = max(peak, highest)
        if highest > limit_bytes:
            over += highest - limit_bytes
        alive -= dying - reused + unread
    return over, peak


@compiled
def _boundary(tape, work):  # type: ignore[no-untyped-def]
    """Bytes alive when the backward begins, and those of tangents that nothing reads."""
    maker, saved, output, tangent = tape.maker, work.saved, tape.output, tape.tangent
    num_bytes, readers = tape.num_bytes, work.readers
    alive, unread = tape.base_bytes, 0
    for s in range(len(maker)):
        made = 0 <= maker[s] < tape.num_forward
        if tangent[s] or (made and (saved[s] or output[s])):
            alive += num_bytes[s]
        if tangent[s] and readers[s] == 0:
            unread += num_bytes[s]
    return alive, unread
