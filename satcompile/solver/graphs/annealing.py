"""Local search over plans: simulated annealing, with bytes kept up to date change by change.

Every set of recomputations is a valid plan but for its memory (``satcompile.solver.graphs.incremental``),
so bytes above the limit are a price, not a wall: plans that are a little over lead to others that
fit. The price rises while plans are over the limit and falls while they fit (strategic
oscillation, Glover 1989).

Moves look at where memory is short. *Evict*: of what is alive at such a position and not read
there, one copy is dropped and made again right before its next reader, with those of its inputs
that are gone by then. *Keep*: a computation or two are taken out again, with those that were for
them alone; what they made is then kept from its earlier copy on. *Shift*: a computation happens a
few stages earlier or later.

No proof goes with what it finds. Plans recompute in node order between two first computations, each
node at most once there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from satcompile.solver.base.jit import compiled
from satcompile.solver.graphs import incremental
from satcompile.solver.graphs.incremental import (
    AGAIN,
    CHANGES,
    LENGTH,
    OVER,
    copies_around,
    is_unread,
    latest_again,
    put,
    reads_within,
    take,
    take_back,
    time_of_changes,
)
from satcompile.solver.graphs.problem import Problem
from satcompile.solver.graphs.residency import Moment

_BEST, _BEST_TIME, _PRICE, _TIME = 0, 1, 2, 3  # in the state
_PACE = 64  # moves between changes of the price
_LOOKS = 60  # at random nodes, for one that is alive
_CHAIN = 40  # recomputations that one eviction may take
_HOPELESS = 10  # temperatures: a move that costs more is not looked at further


class Annealing:
    """A search for plans of least time within a limit.

    Args:
        limit_bytes: of the peak.
        unit: of times, so that temperatures mean the same for all problems.
        seed: of all that is random.
    """

    def __init__(self, problem: Problem, limit_bytes: int, unit: float, seed: int = 0) -> None:
        self._problem, self.limit_bytes, self._unit, self._seed = problem, limit_bytes, unit, seed
        self._graph = incremental.graph_of(problem, limit_bytes)
        self._plan = incremental.empty_plan(problem)
        self._best = np.zeros_like(self._plan.again)
        self._state = np.array([0.0, np.inf, 1.0, 0.0])
        self.start([])

    def start(self, keys: Sequence[Moment], price: float = 1.0) -> None:
        """Go on from another plan; it becomes the best if it fits and takes less time. One that
        recomputes more often than there is room for is left alone."""
        if not incremental.fill(self._plan, self._problem, self.limit_bytes, keys):
            return
        time = sum(self._problem.times[node] for _, node in keys)
        self._state[_TIME], self._state[_PRICE] = time, price
        if self._plan.numbers[OVER] == 0 and time < self.best_time:
            self._best[: len(keys)] = self._plan.again[: len(keys)]
            self._state[_BEST], self._state[_BEST_TIME] = len(keys), time

    def run(self, moves: int, hot: float, cold: float) -> None:
        """So many moves, at temperatures from ``hot`` down to ``cold``, in units."""
        _anneal(
            self._graph, self._plan, self._best, self._state, len(self._problem), moves, hot, cold,
            self._unit, self._seed,
        )  # fmt: skip
        self._seed += 1

    @property
    def best_time(self) -> float:
        """The time of the best plan that fits; infinite while there is none."""
        return float(self._state[_BEST_TIME])

    @property
    def best(self) -> list[Moment] | None:
        """Its recomputations; None while there is none."""
        if self.best_time == np.inf:
            return None
        keys = np.sort(self._best[: int(self._state[_BEST])]).tolist()
        return [divmod(key, len(self._problem)) for key in keys]

    @property
    def peak_bytes(self) -> int:
        """The peak of the current plan."""
        return int(self._plan.load[: self._plan.numbers[LENGTH]].max())


@compiled
def _anneal(graph, plan, best, state, n, moves, hot, cold, unit, seed):  # type: ignore[no-untyped-def]
    np.random.seed(seed)
    numbers, again = plan.numbers, plan.again
    stack = np.zeros(256, np.int64)
    limit = max(1.0, float(graph.limit_bytes))
    price, time = state[_PRICE], state[_TIME]
    for move in range(moves):
        temperature = hot * (cold / hot) ** (move / moves)
        numbers[CHANGES] = 0
        over = numbers[OVER]
        enough = unit * (_HOPELESS * temperature + price * over / limit)
        if not _move(graph, plan, n, stack, enough):
            take_back(graph, plan, n)
            continue
        more = time_of_changes(graph, plan, n)
        worse = more / unit + price * (numbers[OVER] - over) / limit
        if worse <= 0 or np.random.random() < np.exp(-worse / temperature):
            time += more
            if numbers[OVER] == 0 and time < state[_BEST_TIME] - 1e-9 * unit:
                best[: numbers[AGAIN]] = again[: numbers[AGAIN]]
                state[_BEST], state[_BEST_TIME] = numbers[AGAIN], time
        else:
            take_back(graph, plan, n)
        if move % _PACE == 0:
            price *= 1.013 if numbers[OVER] > 0 else 0.987
            price = min(max(price, 1e-6), 1e9)
    state[_PRICE], state[_TIME] = price, time


@compiled
def _move(graph, plan, n, stack, enough):  # type: ignore[no-untyped-def]
    """A random move; False where it came to nothing."""
    numbers, again = plan.numbers, plan.again
    kind = np.random.random()
    if numbers[AGAIN] == 0 or kind >= 0.45:
        return _evict(graph, plan, n, stack, enough)
    key = again[np.random.randint(numbers[AGAIN])]
    if kind >= 0.35:
        return _shift(graph, plan, n, key % n, key // n)
    _keep(graph, plan, n, key % n, key // n, stack)
    if np.random.random() < 0.3 and numbers[AGAIN] > 0:
        key = again[np.random.randint(numbers[AGAIN])]
        _keep(graph, plan, n, key % n, key // n, stack)
    if np.random.random() < 0.5:
        return _evict(graph, plan, n, stack, enough)
    return True


@compiled
def _shift(graph, plan, n, node, stage):  # type: ignore[no-untyped-def]
    by = np.random.randint(1, 10)
    moved = stage + by if np.random.random() < 0.5 else stage - by
    if moved <= node or moved >= n:
        return False
    return take(graph, plan, n, node, stage) and put(graph, plan, n, node, moved)


@compiled
def _keep(graph, plan, n, node, stage, stack):  # type: ignore[no-untyped-def]
    """Drop a recomputation, and those that were for it alone."""
    count, stages, inputs = plan.often, plan.stages, graph.inputs
    input_start, reader_start, readers = graph.input_start, graph.reader_start, graph.readers
    stack[0], depth = np.int64(stage) * n + node, 1
    while depth > 0:
        depth -= 1
        key = stack[depth]
        dropped = key % n
        if not take(graph, plan, n, dropped, key // n):
            return
        for r in range(input_start[dropped], input_start[dropped + 1]):
            i = inputs[r]
            s = latest_again(count, stages, n, i, key)
            if s < 0 or not is_unread(reader_start, readers, count, stages, n, i, s):
                continue
            known = depth >= len(stack)
            for k in range(depth):
                known = known or stack[k] == np.int64(s) * n + i
            if not known:
                stack[depth] = np.int64(s) * n + i
                depth += 1


@compiled
def _evict(graph, plan, n, stack, enough):  # type: ignore[no-untyped-def]
    """Drop a copy where memory is short, and make it again before its next reader; False where
    there is none, or it takes more time than enough."""
    node, reader = _candidate(graph, plan, n, enough)
    if node < 0:
        return False
    count, stages, again, inputs = plan.often, plan.stages, graph.again, graph.inputs
    input_start, reader_start, readers = graph.input_start, graph.reader_start, graph.readers
    stage = reader // n
    old = latest_again(count, stages, n, node, np.int64(stage) * n + node)
    if not put(graph, plan, n, node, stage):
        return False
    if old >= 0 and is_unread(reader_start, readers, count, stages, n, node, old):
        take(graph, plan, n, node, old)
    # Inputs that would be kept for this alone: computed again as well, all of them or some.
    chosen = 1.0 if np.random.random() < 0.5 else np.random.random()
    enough -= again[node]
    stack[0], depth, made = node, 1, 1
    while depth > 0 and made < _CHAIN:
        depth -= 1
        made_again = stack[depth]
        key = np.int64(stage) * n + made_again
        for r in range(input_start[made_again], input_start[made_again + 1]):
            i = inputs[r]
            before, after = copies_around(count, stages, n, i, key)
            if before // n == stage or np.random.random() >= chosen:
                continue
            last, _, _ = reads_within(
                reader_start, readers, count, stages, n, i, before, after, key
            )
            if last > key:
                continue
            enough -= again[i]
            if enough < 0:
                return False
            if put(graph, plan, n, i, stage):
                made += 1
                if depth < len(stack):
                    stack[depth] = i
                    depth += 1
    return True


@compiled
def _candidate(graph, plan, n, enough):  # type: ignore[no-untyped-def]
    """A node with a copy that is alive where memory is short and not read there, and the key of
    that copy's next reader; -1 where chance finds none."""
    count, stages, again, num_bytes = plan.often, plan.stages, graph.again, graph.num_bytes
    reader_start, readers = graph.reader_start, graph.readers
    at = plan.key[_short_position(plan, graph.limit_bytes)]
    best, best_worth, best_reader, found = -1, 0.0, np.int64(0), 0
    if at < n:
        return best, best_reader
    for _ in range(_LOOKS):
        node = np.random.randint(at // n)
        if num_bytes[node] == 0 or at % n == node or again[node] > enough:
            continue
        before, after = copies_around(count, stages, n, node, at)
        _, reader, here = reads_within(
            reader_start, readers, count, stages, n, node, before, after, at
        )
        if here or reader >= after:
            continue
        worth = num_bytes[node] / (again[node] + 1e-12)
        if best < 0 or worth > best_worth:
            best, best_worth, best_reader = node, worth, reader
        found += 1
        if found == 2:
            break
    return best, best_reader


@compiled
def _short_position(plan, limit_bytes):  # type: ignore[no-untyped-def]
    """A random position, mostly one where memory is short if there is any."""
    load, length = plan.load, plan.numbers[LENGTH]
    start = np.random.randint(length)
    if plan.numbers[OVER] == 0 or np.random.random() < 0.1:
        return start
    position = start
    for _ in range(30):
        if load[position] > limit_bytes:
            return position
        position = np.random.randint(length)
    for offset in range(length):
        position = (start + offset) % length
        if load[position] > limit_bytes:
            return position
    return start
