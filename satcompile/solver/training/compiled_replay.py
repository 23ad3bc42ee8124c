"""The loops of ``fast_replay``, compiled; see there.

Numba keeps compiled code until this file changes. So who changes the fields of ``StepArrays`` or
``Ends``, which are read by their positions, changes this file, too. Arrays are taken out of their tuples once a function, because numba counts references at every use.
"""

from __future__ import annotations

import numpy as np

from satcompile.solver.base.jit import compiled


@compiled
def replay(step, order, ends, start_bytes, highest):  # type: ignore[no-untyped-def]
    """Bytes alive over an order, as ``simulator.liveness_events`` and ``replay`` have them.

    Args:
        step: ``StepArrays``.
        order: operations.
        ends: ``Ends``.
        highest: is given the most bytes alive while each position runs.

    Returns:
        Peak bytes, the position and the number of the event that first reach them (-1, -1 where
        that is the start), bytes at the end.
    """
    read_start, reads, write_start, storage, latest = _copies(step, order)
    starts, sources, inlined = _kernels(step, order, ends, read_start, reads, write_start, latest)
    made, storages = len(storage), len(step.num_bytes)
    fusible, reduces, not_reused = step.fusible, step.reduces, ends.not_reused
    storage_bytes, workspace_bytes = step.num_bytes, step.workspace_bytes
    num_bytes = np.empty(made, np.int64)
    last = np.full(made, -1, np.int64)
    for c in range(made):
        num_bytes[c] = storage_bytes[storage[c]]
    for position in range(len(order)):
        if not inlined[position]:
            for k in range(starts[position], starts[position + 1]):
                last[sources[k]] = position
            for c in range(write_start[position], write_start[position + 1]):
                last[c] = position
    kept, alive = np.zeros(made, np.bool_), np.zeros(made, np.bool_)
    kept_first, kept_last, alive_first = ends.kept_first, ends.kept, ends.alive
    now, peak, peak_position, peak_event, events = start_bytes, start_bytes, -1, -1, 0
    for s in range(storages):
        kept[s] = kept_first[s] or kept[s]
        if kept_last[s]:
            kept[latest[s]] = True
    for s in range(storages):
        alive[s] = alive_first[s]
        if alive[s] and last[s] < 0 and not kept[s]:
            alive[s] = False
            now -= num_bytes[s]
            events += 1

    for position in range(len(order)):
        if inlined[position]:
            continue
        i, most, before = order[position], now, events
        begin, end = starts[position], starts[position + 1]
        first, beyond = write_start[position], write_start[position + 1]
        if fusible[i] and not reduces[i]:  # results take over memory of their sizes
            taken = np.zeros(beyond - first, np.bool_)
            for k in range(begin, end):
                c = sources[k]
                dies = last[c] == position and alive[c] and not kept[c] and num_bytes[c] > 0
                if not dies or (c < storages and not_reused[c]):
                    continue
                for w in range(first, beyond):
                    if not taken[w - first] and num_bytes[w] == num_bytes[c]:
                        taken[w - first] = True
                        alive[c] = False
                        now -= num_bytes[c]
                        events += 1
                        break
        for c in range(first, beyond):
            alive[c] = True
            now += num_bytes[c]
            most = max(most, now)
            if now > peak:
                peak, peak_position, peak_event = now, position, events
            events += 1
        if workspace_bytes[i]:
            during = now + workspace_bytes[i]
            most = max(most, during)
            if during > peak:
                peak, peak_position, peak_event = during, position, events
            events += 2
        for k in range(begin, end + beyond - first):
            c = sources[k] if k < end else first + k - end
            if last[c] == position and alive[c] and not kept[c]:
                alive[c] = False
                now -= num_bytes[c]
                events += 1
        highest[position] = most if events > before else 0
    return peak, peak_position, peak_event, now


@compiled
def time_us(step, order, first_us, again_us, write_us, total_us):  # type: ignore[no-untyped-def]
    """Time of an order on top of ``total_us``, as ``Timing`` has it."""
    read_start, reads, write_start, storage, _ = _copies(step, order)
    fusible = step.fusible
    read_unfused = np.zeros(len(storage), np.bool_)
    for position in range(len(order)):
        if not fusible[order[position]]:
            for r in range(read_start[position], read_start[position + 1]):
                read_unfused[reads[r]] = True
    seen = np.zeros(len(fusible), np.bool_)
    for position in range(len(order)):
        i = order[position]
        total_us += again_us[i] if seen[i] else first_us[i]
        seen[i] = True
        for c in range(write_start[position], write_start[position + 1]):
            if read_unfused[c]:
                total_us += write_us[storage[c]]
    return total_us


@compiled
def _copies(step, order):  # type: ignore[no-untyped-def]
    """As ``step.copies``: what each position reads, where what it writes begins; the storage of
    each copy, and the latest copy of each storage."""
    reads_of, reads_from, writes_of, writes_from = (
        step.reads, step.read_start, step.writes, step.write_start
    )  # fmt: skip
    storages, num_reads, num_writes = len(step.num_bytes), 0, 0
    for i in order:
        num_reads += reads_from[i + 1] - reads_from[i]
        num_writes += writes_from[i + 1] - writes_from[i]
    read_start = np.empty(len(order) + 1, np.int64)
    write_start = np.empty(len(order) + 1, np.int64)
    reads, storage = np.empty(num_reads, np.int64), np.empty(storages + num_writes, np.int64)
    latest = np.arange(storages)
    storage[:storages] = latest
    read, made = 0, storages
    for position in range(len(order)):
        i = order[position]
        read_start[position], write_start[position] = read, made
        for r in range(reads_from[i], reads_from[i + 1]):
            reads[read] = latest[reads_of[r]]
            read += 1
        for w in range(writes_from[i], writes_from[i + 1]):
            storage[made] = writes_of[w]
            latest[writes_of[w]] = made
            made += 1
    read_start[len(order)], write_start[len(order)] = read, made
    return read_start, reads, write_start, storage, latest


@compiled
def _kernels(step, order, ends, read_start, reads, write_start, latest):  # type: ignore[no-untyped-def]
    """As ``step.computations``: the copies that each position's kernel reads, and whether the
    position joins the kernels of its readers."""
    fusible, reduces, written = step.fusible, step.reduces, ends.written
    made = write_start[len(order)]
    must_write, readers = np.zeros(made, np.bool_), np.zeros(made, np.int64)
    for s in range(len(written)):
        if written[s]:
            must_write[latest[s]] = True
    for position in range(len(order)):
        for r in range(read_start[position], read_start[position + 1]):
            readers[reads[r]] += 1
            if not fusible[order[position]]:
                must_write[reads[r]] = True
    stands_for = np.full(made, -1, np.int64)  # position whose sources a copy stands for
    inlined = np.zeros(len(order), np.bool_)
    starts, sources = np.empty(len(order) + 1, np.int64), np.empty(2 * len(reads) + 64, np.int64)
    source_of = np.full(made, -1, np.int64)  # the last position that reads a copy
    end = 0
    for position in range(len(order)):
        i, begin = order[position], end
        starts[position] = begin
        for r in range(read_start[position], read_start[position + 1]):
            p = stands_for[reads[r]]
            origins = reads[r : r + 1] if p < 0 else sources[starts[p] : starts[p + 1]]
            for c in origins:
                if source_of[c] != position:
                    source_of[c] = position
                    if end == len(sources):
                        sources = np.concatenate((sources, np.empty(end, np.int64)))
                    sources[end] = c
                    end += 1
        starts[position + 1] = end
        first = write_start[position]
        if not fusible[i] or reduces[i] or write_start[position + 1] - first != 1:
            continue
        most = step.most_reads_reused if readers[first] > 1 else step.most_reads
        if end - begin <= most and not must_write[first]:
            stands_for[first] = position
            inlined[position] = True
    return starts, sources, inlined
