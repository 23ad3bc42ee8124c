"""Schedules within a budget: a proof from one side, a search from the other, at the same time.

From below, relaxations that look at memory in few moments (``residency``), of which more are added
where the decoded solution is over the budget. From above, annealing (``annealing``), which also
starts from what the relaxations suggest. Neither waits for the other: HiGHS and the compiled search each keep one processor busy. Where the first relaxations already
decode into something that fits, nothing else is started.

Not optimal where time runs out: the schedule is valid and its gap to the bound is what is known.
Chains with equal costs have closed forms (Griewank and Walther's Revolve, ACM TOMS 2000) and chains
with any costs a dynamic program (rotor, Beaumont et al., 2019); neither is used here, tests compare
with the first.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from satcompile.solver.graphs.floors import floor_bytes
from satcompile.solver.graphs.problem import Infeasible, Problem, loads
from satcompile.solver.graphs.residency import Moment, Relaxed, Residency
from satcompile.solver.graphs.schedule import Schedule, sequence_of

TOLERANCE = 1e-4  # of the total time: a gap up to this counts as proven
_ALONE_S = 0.5  # relaxations come first for so long: easy problems need nothing else
_ALONE_LIMIT_S = 2.0
_NEW_MOMENTS = 4  # a round
_SHARE_OF_REST = 0.4  # of the time that is left, for one relaxation
_CHUNK_S = 0.4  # of annealing, after which it looks around
_LARGE = 8_000  # columns: above, linear programs first
_APART = 300  # of so many parts of the problem each gets one new moment a round

ANY = "any schedule with this order of first computations"
IN_ORDER = (
    "schedules with this order of first computations that between two of them recompute in node "
    "order, each node at most once (Checkmate's class)"
)


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    Attributes:
        time_s: since it began.
        extra_time: of the best schedule; infinite while there is none.
        bound_extra_time: proven least.
    """

    time_s: float
    extra_time: float
    bound_extra_time: float


@dataclass
class Race:
    """One call of ``solve``: what both sides know."""

    problem: Problem
    budget_bytes: int
    limit_s: float
    seed: int
    progress: Callable[[Progress], None] | None = None
    keys: list[Moment] | None = None
    extra: float = math.inf
    bounds: dict[str, float] = field(default_factory=lambda: {ANY: 0.0, IN_ORDER: 0.0})
    started: float = field(default_factory=time.monotonic)
    lowest_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)
    _ideas: list[list[Moment]] = field(default_factory=list)
    _is_compiling: bool = False
    _failure: BaseException | None = None
    _linear_bound: float = -1.0
    _linear_moments: frozenset[Moment] = frozenset()
    _is_whole: bool = False

    def run(self) -> Schedule:
        problem = self.problem
        self.lowest_bytes = problem.peak_bytes
        if problem.peak_bytes <= self.budget_bytes:
            self.offer([])
            return self._schedule()
        if self.budget_bytes < _around(problem):
            raise Infeasible(self.budget_bytes, floor_bytes(problem), problem.peak_bytes)
        moments = self._first_moments()
        done = False
        while not done and not self.is_over and self.elapsed_s < _ALONE_S:
            done = self._relax(moments, _ALONE_LIMIT_S)
        if not self.is_over:
            self._is_compiling = True
            search = threading.Thread(target=self._search, name="annealing", daemon=True)
            search.start()
            try:
                if not done:
                    self._prove(moments)
                while not self.is_over:
                    time.sleep(0.02)
            finally:
                self._over.set()
                search.join()
            if self._failure is not None:
                raise self._failure
        if self.keys is None:
            raise Infeasible(self.budget_bytes, floor_bytes(problem), self.lowest_bytes)
        return self._schedule()

    def _schedule(self) -> Schedule:
        assert self.keys is not None
        kind = ANY if self.bounds[ANY] >= self.bounds[IN_ORDER] else IN_ORDER
        return Schedule(
            self.problem,
            self.budget_bytes,
            sequence_of(self.problem, self.keys),
            min(self.bounds[kind], self.extra),
            kind,
            self.is_proven,
            self.elapsed_s,
        )

    # -- what is known ---------------------------------------------------------------------

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def is_proven(self) -> bool:
        return self.extra - self._bound <= TOLERANCE * (self.problem.total_time or 1.0)

    @property
    def is_over(self) -> bool:
        if self._over.is_set() or self.is_proven:
            return True
        return self.elapsed_s >= self.limit_s and not self._is_compiling

    @property
    def _bound(self) -> float:
        return max(self.bounds.values())

    def offer(self, keys: list[Moment]) -> bool:
        """A plan; whether it fits. It becomes the best if it takes less time."""
        peak = max(loads(self.problem, sequence_of(self.problem, keys)))
        extra = math.fsum(self.problem.times[node] for _, node in keys)
        with self._lock:
            self.lowest_bytes = min(self.lowest_bytes, peak)
            if peak <= self.budget_bytes and extra < self.extra:
                self.keys, self.extra = keys, extra
        self._tell()
        return peak <= self.budget_bytes

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(Progress(self.elapsed_s, self.extra, self._bound))

    # -- from below ------------------------------------------------------------------------

    def _first_moments(self) -> set[Moment]:
        found = loads(self.problem, range(len(self.problem)))
        highest = max(range(len(found)), key=found.__getitem__)
        return {(highest, highest)}

    def _prove(self, moments: set[Moment]) -> None:
        while not self.is_over:
            left_s = self.limit_s - self.elapsed_s
            if self._relax(moments, max(2.0, left_s * _SHARE_OF_REST)):
                return

    def _relax(self, moments: set[Moment], limit_s: float) -> bool:
        """Solve one relaxation and add moments where its solution is over the budget; whether
        there is nothing more to learn this way."""
        model = Residency(self.problem, self.budget_bytes, moments)
        if model.num_columns > _LARGE:
            return self._relax_linearly(model, moments, limit_s)
        model.strengthen()
        found = model.solve(TOLERANCE / 2 * self.problem.total_time, limit_s)
        self._learn(found, moments)
        if not found.readings:
            return self._is_empty(found) or limit_s >= self.limit_s - self.elapsed_s
        fits = self.offer(found.readings[0])
        if fits and (self.is_proven or not found.optimal):
            return self.is_proven
        # One that fits may take more time than the solution, and the other reading show why.
        return not self._refine(found.readings, moments, fits)

    def _relax_linearly(self, model: Residency, moments: set[Moment], limit_s: float) -> bool:
        """The same where whole numbers take long: by linear programs, until more moments do not
        raise their bound; then, from the best of them on, in whole numbers."""
        found = model.linear(limit_s)
        self._learn(found, moments)
        if not found.readings:
            return True
        better = found.bound > self._linear_bound
        if better:
            self._linear_bound, self._linear_moments = found.bound, frozenset(moments)
        fits = self.offer(found.readings[0])
        if not self._is_whole:
            if not fits and better:
                return not self._refine(found.readings, moments, fits)
            self._is_whole = True
            moments.clear()
            moments |= self._linear_moments
            return False
        model.fix(self.extra)
        whole = model.solve(TOLERANCE / 2 * self.problem.total_time, limit_s)
        self._learn(whole, moments)
        if not whole.readings:
            return self._is_empty(whole) or limit_s >= self.limit_s - self.elapsed_s
        return not self._refine(whole.readings, moments, self.offer(whole.readings[0]))

    def _learn(self, found: Relaxed, moments: Iterable[Moment]) -> None:
        kind = ANY if all(stage == node for stage, node in moments) else IN_ORDER
        if found.bound < math.inf:
            self.bounds[kind] = max(self.bounds[kind], min(found.bound, self.extra))
        self._tell()

    def _is_empty(self, found: Relaxed) -> bool:
        """Whether nothing in the class fits. The search knows no schedules but those of the class
        (``IN_ORDER``), and need not go on."""
        if found.bound < math.inf:
            return False
        if self.keys is None:
            self._over.set()
        return True

    def _refine(self, readings: Sequence[list[Moment]], moments: set[Moment], fits: bool) -> bool:
        """Hand a plan that is over the budget to the search, and look at memory there from now
        on; whether that is anywhere new."""
        if not fits:
            self._ideas.append(readings[0])
        shorts = (self._short(keys, moments) for keys in readings)
        new = next(filter(None, shorts), set[Moment]())
        moments |= new
        return bool(new)

    def _short(self, keys: list[Moment], moments: set[Moment]) -> set[Moment]:
        """Steps at which a plan is the furthest over the budget, or their neighbours."""
        sequence = sequence_of(self.problem, keys)
        steps = _steps(len(self.problem), keys)
        over = [
            (num_bytes, step)
            for num_bytes, step in zip(loads(self.problem, sequence), steps, strict=True)
            if num_bytes > self.budget_bytes
        ]
        new: set[Moment] = set()
        apart = len(self.problem) // _APART
        for _, (stage, node) in sorted(over, reverse=True):
            if apart and any(abs(stage - other) < apart for other, _ in new):
                continue
            wanted = {(stage, node), (stage, stage)}
            if stage != node:
                wanted.add((stage - 1, stage - 1))
            if wanted <= moments | new:
                wanted = {(stage - 1, stage - 1), (stage + 1, stage + 1)}
            new |= {m for m in wanted if 0 <= m[0] < len(self.problem)} - moments
            if len(new) >= _NEW_MOMENTS:
                break
        return new

    # -- from above ------------------------------------------------------------------------

    def _search(self) -> None:
        try:
            self._anneal()
        except BaseException as error:  # raised where solve() was called
            self._failure = error
            self._over.set()
        finally:
            self._is_compiling = False

    def _anneal(self) -> None:
        from satcompile.solver.graphs.rounds import Rounds  # numba takes a second to import

        rounds = Rounds(self.problem, self.budget_bytes, self.seed, self.limit_s)
        self.limit_s += rounds.compile_s
        self._is_compiling = False
        while not self.is_over:
            keys = rounds.run(_CHUNK_S, self._latest_idea() if rounds.is_between_rounds else None)
            if keys is not None:
                self.offer(keys)
            else:
                self.lowest_bytes = min(self.lowest_bytes, rounds.lowest_bytes)
            self._tell()

    def _latest_idea(self) -> list[Moment] | None:
        """What the latest relaxation suggests; earlier ones are worse, as they had fewer moments."""
        idea = self._ideas.pop() if self._ideas else None
        self._ideas.clear()
        return idea


def _steps(count: int, keys: Iterable[Moment]) -> list[Moment]:
    return sorted([*keys, *((stage, stage) for stage in range(count))])


def _around(problem: Problem) -> int:
    """The most bytes that a node has around it: less than a floor, and found at once."""
    sizes = problem.num_bytes
    return max(
        sizes[node] + sum(sizes[i] for i in inputs) for node, inputs in enumerate(problem.inputs)
    )
