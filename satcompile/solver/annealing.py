"""Local search over plans: simulated annealing on exact replays.

A plan is a set of keys (``satcompile.solver.replay``), and every set is valid but for its memory,
so bytes above the limit are a price, not a wall: plans that are a little over lead to others that
fit. The price rises while plans are over the limit and falls while they fit (strategic
oscillation, Glover 1989).

Moves look at where memory is short. *Evict*: of what is alive at such a position and not read
there, one copy is dropped and made again right before its next reader, with those of its inputs
that are gone. *Keep*: a computation or two are taken out again; what they were for is then kept
from its last copy on. *Shift*: a computation happens a few stages earlier or later. Copies that
nobody reads any more are taken out after every move.

No proof goes with what it finds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from satcompile.solver.replay import FOREVER, compiled, replay, workspace
from satcompile.solver.tape import Floats, Longs, Tape

_SWEEP = 64  # iterations between changes of the price


class Walk(NamedTuple):
    """Where a search stands, so that it can go on.

    Attributes:
        keys, best: the plan it is at and the best that fits; the first numbers count.
        state: how many keys either has, time of the best, price of bytes over the limit.
    """

    keys: Longs
    best: Longs
    state: Floats


_AT, _BEST, _BEST_TIME, _PRICE, _ACCEPTED = 0, 1, 2, 3, 4


class Annealing:
    """A search for plans of least time within a limit.

    Args:
        tape: the problem.
        limit_bytes: of the peak.
        scale: of times, so that temperatures mean the same for all problems: what counts as 1.
        seed: of all that is random.
    """

    def __init__(self, tape: Tape, limit_bytes: int, scale: float, seed: int = 0) -> None:
        self._tape, self.limit_bytes, self._scale = tape, limit_bytes, scale
        self._most = 6 * tape.num_operations + 64
        self._work = (workspace(tape, self._most), workspace(tape, self._most))
        self._seed = seed
        self._walk = Walk(
            np.zeros(self._most, np.int64), np.zeros(self._most, np.int64), np.zeros(8)
        )
        self._walk.state[_BEST_TIME] = np.inf
        self._walk.state[_PRICE] = 1.0

    def start(self, keys: Longs, price: float | None = None) -> None:
        """Go on from another plan; it becomes the best if it fits and takes less time. One with
        very many keys is left alone."""
        walk = self._walk
        if len(keys) > self._most - 2:
            return
        walk.keys[: len(keys)] = keys
        walk.state[_AT] = len(keys)
        if price is not None:
            walk.state[_PRICE] = price
        found = replay(self._tape, self._work[0], walk.keys, len(keys), self.limit_bytes)
        if found.valid and found.over_bytes == 0 and found.time < self.best_time:
            walk.best[: len(keys)] = keys
            walk.state[_BEST], walk.state[_BEST_TIME] = len(keys), found.time

    def run(self, iterations: int, hot: float, cold: float) -> None:
        """So many moves, at temperatures from ``hot`` down to ``cold`` (in units of the scale)."""
        _anneal(
            self._tape, self._work[0], self._work[1], self._walk, self.limit_bytes,
            self._scale, iterations, hot, cold, self._seed,
        )  # fmt: skip
        self._seed += 1

    @property
    def best_time(self) -> float:
        """Of the best plan that fits; infinite while there is none."""
        return float(self._walk.state[_BEST_TIME])

    @property
    def peak_bytes(self) -> int:
        """Of the plan that it is at."""
        walk = self._walk
        count = int(walk.state[_AT])
        return int(replay(self._tape, self._work[0], walk.keys, count, self.limit_bytes).peak_bytes)

    @property
    def best(self) -> Longs | None:
        """Its keys; None while there is none."""
        if self.best_time == np.inf:
            return None
        return self._walk.best[: int(self._walk.state[_BEST])].copy()


@compiled
def _anneal(tape, work, other, walk, limit_bytes, scale, iterations, hot, cold, seed):  # type: ignore[no-untyped-def]
    np.random.seed(seed)
    state = walk.state
    keys = walk.keys.copy()
    tried = np.empty_like(keys)
    scratch = np.zeros(len(work.storage), np.int32)
    stack = np.zeros(len(tape.fusible) + 64, np.int32)
    positions_of_keys = np.zeros(len(keys) + 1, np.int32)
    first_positions = np.zeros(len(tape.fusible), np.int32)
    count, price = int(state[_AT]), state[_PRICE]
    here = replay(tape, work, keys, count, limit_bytes)
    limit = max(1.0, float(limit_bytes))
    index_positions(tape, work, here.positions, positions_of_keys, first_positions)
    for iteration in range(iterations):
        temperature = hot * (cold / hot) ** (iteration / iterations)
        tried[:count] = keys[:count]
        new = count
        kind = np.random.random()
        if count > 0 and kind < 0.35:
            for _ in range(1 + (np.random.random() < 0.3)):
                if new > 0:
                    new = _taken_out(tried, new, np.random.randint(new))
        elif count > 0 and kind < 0.45:
            new = _shift(tape, tried, new)
        if kind >= 0.45 or count == 0 or (kind < 0.35 and np.random.random() < 0.5):
            new = _evict(
                tape, work, here, limit_bytes, tried, new, keys, count, scratch, stack,
                positions_of_keys, first_positions,
            )  # fmt: skip
        if new + 2 > len(tried):
            continue
        there = replay(tape, other, tried, new, limit_bytes)
        fewer = _without_unread(tape, other, there.positions, tried, new)
        while fewer < new and there.valid:
            new = fewer
            there = replay(tape, other, tried, new, limit_bytes)
            fewer = _without_unread(tape, other, there.positions, tried, new)
        if not there.valid:
            continue
        worse = (there.time - here.time) / scale
        worse += price * (there.over_bytes - here.over_bytes) / limit
        if worse <= 0 or np.random.random() < np.exp(-worse / temperature):
            keys, tried = tried, keys
            work, other = other, work
            count, here = new, there
            state[_ACCEPTED] += 1
            index_positions(tape, work, here.positions, positions_of_keys, first_positions)
            if here.over_bytes == 0 and here.time < state[_BEST_TIME] - 1e-9 * scale:
                walk.best[:count] = keys[:count]
                state[_BEST], state[_BEST_TIME] = count, here.time
        if iteration % _SWEEP == 0:
            price *= 1.013 if here.over_bytes > 0 else 0.987
            price = min(max(price, 1e-6), 1e9)
    walk.keys[:count] = keys[:count]
    state[_AT], state[_PRICE] = count, price


@compiled
def index_positions(tape, work, positions, of_keys, first):  # type: ignore[no-untyped-def]
    """Where each key runs, and where each operation of the spine does."""
    operation, stage = work.operation, work.stage
    key = 0
    for position in range(positions):
        if operation[position] != stage[position]:
            of_keys[key] = position
            key += 1
        else:
            first[operation[position]] = position


@compiled
def _taken_out(keys, count, which):  # type: ignore[no-untyped-def]
    for k in range(which, count - 1):
        keys[k] = keys[k + 1]
    return count - 1


@compiled
def put_in(keys, count, key):  # type: ignore[no-untyped-def]
    """A key put in its place among the sorted ones, once; how many there are then."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    if (low < count and keys[low] == key) or count + 1 >= len(keys):
        return count
    for k in range(count, low, -1):
        keys[k] = keys[k - 1]
    keys[low] = key
    return count + 1


@compiled
def _shift(tape, keys, count):  # type: ignore[no-untyped-def]
    n = len(tape.fusible)
    which = np.random.randint(count)
    i, stage = keys[which] % n, keys[which] // n
    by = np.random.randint(1, 10)
    moved = stage + by if np.random.random() < 0.5 else stage - by
    if moved <= i or moved < tape.num_forward or moved >= n:
        return count
    return put_in(keys, _taken_out(keys, count, which), moved * n + i)


@compiled
def _without_unread(tape, work, positions, keys, count):  # type: ignore[no-untyped-def]
    """Keys of which somebody reads what they make; how many there are."""
    operation, stage, write_start = work.operation, work.stage, work.write_start
    readers, last, has_forward = work.readers, work.last, tape.num_forward > 0
    kept, key = 0, 0
    for position in range(positions):
        if operation[position] == stage[position]:
            continue
        wanted = False
        for c in range(write_start[position], write_start[position + 1]):
            wanted = wanted or last[c] >= 0 or (has_forward and readers[c] > 0)
        if wanted:
            keys[kept] = keys[key]
            kept += 1
        key += 1
    return kept if positions > 0 else count


@compiled
def _evict(tape, work, here, limit_bytes, tried, new, keys, count, scratch, stack, of_keys, first):  # type: ignore[no-untyped-def]
    """Drop a copy where memory is short, and make it again before its next reader."""
    position = _short_position(work, here, limit_bytes)
    c = _candidate(tape, work, here, position, scratch)
    if c < 0:
        return new
    n, storages = len(tape.fusible), len(tape.maker)
    storage, last = work.storage, work.last
    after = position if position < here.positions else -1
    user = _next_reader(tape, work, after, min(last[c], here.positions - 1), c)
    if user < 0:
        return new
    stage = work.stage[user]
    depth = 1
    stack[0] = tape.maker[storage[c]]
    if tape.fuses:
        depth = _inlined_readers(work, user, c, stack, depth)
    reads_of, reads_from, maker_of = tape.reads, tape.read_start, tape.maker
    recursion = 1.0 if np.random.random() < 0.5 else np.random.random()
    put = 0
    while depth > 0 and put < 40:
        depth -= 1
        i = stack[depth]
        before = new
        new = put_in(tried, new, np.int64(stage) * n + i)
        put += 1
        if new == before:
            continue
        for r in range(reads_from[i], reads_from[i + 1]):
            s = reads_of[r]
            maker = maker_of[s]
            if maker < 0 or not tape.may_repeat[maker]:
                continue
            if _is_there(tape, work, keys, count, of_keys, first, s, stage, user, storages):
                continue
            if np.random.random() < recursion and depth < len(stack):
                stack[depth] = maker
                depth += 1
    return new


@compiled
def _short_position(work, here, limit_bytes):  # type: ignore[no-untyped-def]
    """A random position, where memory is short if that is the case anywhere."""
    load = work.load
    position = np.random.randint(here.end)
    if here.over_bytes > 0 and np.random.random() < 0.9:
        for _ in range(60):
            if load[position] > limit_bytes:
                break
            position = np.random.randint(here.end)
    return position


@compiled
def _candidate(tape, work, here, position, scratch):  # type: ignore[no-untyped-def]
    """A copy that is alive at a position, is not read there and can be made again; -1 for none."""
    storages = len(tape.maker)
    storage, last, inlined, saved = work.storage, work.last, work.inlined, work.saved
    maker, may_repeat, num_bytes = tape.maker, tape.may_repeat, tape.num_bytes
    again, write = tape.again, tape.write
    in_backward = position < here.positions
    found = 0
    if tape.num_forward > 0:
        latest = tape.num_forward if in_backward else work.operation[position]
        for s in range(storages):
            if not saved[s] or last[s] == FOREVER or num_bytes[s] == 0:
                continue
            alive = maker[s] <= latest and (not in_backward or last[s] > position)
            if alive and may_repeat[maker[s]]:
                scratch[found] = s
                found += 1
    if in_backward:
        begin = 2 * storages if tape.num_forward > 0 else 0
        for c in range(begin, work.write_start[position]):
            if last[c] > position and last[c] != FOREVER and inlined[c] < 0:
                s = storage[c]
                if num_bytes[s] > 0 and may_repeat[maker[s]]:
                    scratch[found] = c
                    found += 1
    if found == 0:
        return -1
    best, best_worth = -1, 0.0
    for _ in range(2):
        c = scratch[np.random.randint(found)]
        s = storage[c]
        worth = num_bytes[s] / (again[maker[s]] + write[s] + 1e-9)
        if best < 0 or worth > best_worth:
            best, best_worth = c, worth
    if in_backward and _next_reader(tape, work, position - 1, position, best) >= 0:
        return -1
    return best


@compiled
def _next_reader(tape, work, after, until, copy):  # type: ignore[no-untyped-def]
    """The first position behind ``after`` whose kernel reads a copy that is alive until then."""
    if tape.num_forward == 0:  # what is read was not noted, but the latest copy is the one read
        s = work.storage[copy]
        operation, reads, starts = work.operation, tape.reads, tape.read_start
        for position in range(after + 1, until + 1):
            i = operation[position]
            for r in range(starts[i], starts[i + 1]):
                if reads[r] == s:
                    return position
        return -1
    starts = work.source_start if tape.fuses else work.read_start
    reads = work.sources if tape.fuses else work.reads
    for position in range(after + 1, until + 1):
        for r in range(starts[position], starts[position + 1]):
            if reads[r] == copy:
                return position
    return -1


@compiled
def _inlined_readers(work, user, c, stack, depth):  # type: ignore[no-untyped-def]
    """Computations inlined into ``user`` that read a copy: they have to run again with it."""
    reads, read_start, inlined = work.reads, work.read_start, work.inlined
    starts, sources, operation = work.source_start, work.sources, work.operation
    pending = np.empty(32, np.int32)
    pending[0] = user
    waiting, looked = 1, 0
    while waiting > 0 and looked < 32:
        waiting -= 1
        p = pending[waiting]
        looked += 1
        for r in range(read_start[p], read_start[p + 1]):
            q = inlined[reads[r]]
            if q < 0:
                continue
            for k in range(starts[q], starts[q + 1]):
                if sources[k] == c:
                    if depth < len(stack) and waiting < 32 and work.stage[q] != work.stage[user]:
                        stack[depth] = operation[q]
                        depth += 1
                    if waiting < 32:
                        pending[waiting] = q
                        waiting += 1
                    break
    return depth


@compiled
def _is_there(tape, work, keys, count, of_keys, first, s, stage, user, storages):  # type: ignore[no-untyped-def]
    """Whether some copy of a storage is alive at ``user`` anyway."""
    n, maker = len(tape.fusible), tape.maker[s]
    low, high = 0, count
    bound = (np.int64(stage) + 1) * n
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < bound:
            low = middle + 1
        else:
            high = middle
    position = -1
    for k in range(low - 1, -1, -1):
        if keys[k] % n == maker and of_keys[k] < user:
            position = of_keys[k]
            break
    if position < 0:
        if tape.num_forward > 0:
            return work.saved[s] == 1 and work.last[s] >= user
        position = first[maker]
    for c in range(work.write_start[position], work.write_start[position + 1]):
        if work.storage[c] == s:
            return work.inlined[c] < 0 and work.last[c] >= user
    return False
