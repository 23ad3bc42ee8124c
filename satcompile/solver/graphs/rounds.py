"""The order of annealing rounds: from nothing, from the best so far, from what others suggest.

Long rounds that begin hot find plans of other shapes; short ones that begin cooler finish what is
there. Where the first rounds find nothing that fits, time does not count for one round, and what
that finds is where the next begin.
"""

from __future__ import annotations

import time

from satcompile.solver.graphs.annealing import Annealing
from satcompile.solver.graphs.problem import Problem
from satcompile.solver.graphs.residency import Moment

# What a round starts from, its first temperature in mean times of a node, and its length in
# seconds at first; later rounds are longer.
_FROM_NOTHING, _FROM_BEST = "nothing", "best"
_ROUNDS = (
    (_FROM_NOTHING, 0.75, 2.0),
    (_FROM_BEST, 0.25, 1.0),
    (_FROM_NOTHING, 2.5, 4.0),
    (_FROM_BEST, 0.75, 2.0),
    (_FROM_BEST, 0.12, 1.0),
)
_USUAL_S = 60.0  # time limit for which these lengths are
_FASTEST, _SLOWEST = 0.3, 5.0
_LONGER = 1.3  # after each time through
_COLD = 0.005
# What comes from a relaxation is nearly right: it is only mended, slowly, from a low price on.
_IDEA_HOT, _IDEA_PRICE, _IDEA_S, _IDEA_MOVES = 0.15, 0.05, 1.0, 20  # moves for each node
_TIME_FREE = 1e-6  # what time counts where only memory matters
_FREE_HOT, _FREE_COLD = 0.75, 0.0025
_TRIAL = 2_000  # moves, to see how fast they are


class Rounds:
    """Annealing on one problem, a piece at a time.

    Attributes:
        compile_s: that the first moves took, as they had to be compiled or read from a cache.
        lowest_bytes: peak of the lowest plan met at the end of a round.
    """

    def __init__(
        self, problem: Problem, budget_bytes: int, seed: int, time_limit_s: float = _USUAL_S
    ) -> None:
        self._problem = problem
        self._unit = (problem.total_time or 1.0) / len(problem)
        self._budget_bytes, self._seed = budget_bytes, seed
        self._annealing = Annealing(problem, budget_bytes, self._unit, seed)
        started = time.perf_counter()
        self._annealing.run(1, _COLD, _COLD)
        self.compile_s = time.perf_counter() - started
        started = time.perf_counter()
        self._annealing.run(_TRIAL, 0.75, 0.25)
        self._per_second = _TRIAL / (time.perf_counter() - started)
        self._number, self._left, self._length = 0, 0.0, 1.0
        self._hot = self._temperature = _COLD
        self._pace = min(_SLOWEST, max(_FASTEST, time_limit_s / _USUAL_S))
        self.lowest_bytes = problem.peak_bytes

    def run(self, seconds: float, idea: list[Moment] | None = None) -> list[Moment] | None:
        """Go on for so long; the best plan so far, None while none fits. An idea is a plan that may
        not fit yet; it is for a time when ``is_between_rounds``."""
        if idea is not None:
            moves_s = _IDEA_MOVES * len(self._problem) / self._per_second
            self._begin(idea, _IDEA_HOT, max(_IDEA_S, moves_s / self._pace), _IDEA_PRICE)
        elif self.is_between_rounds:
            self._next()
        seconds = min(seconds, self._left)
        share = seconds / self._length
        until = self._temperature * (_COLD / self._hot) ** share
        moves = max(1, int(self._per_second * seconds))
        started = time.perf_counter()
        self._annealing.run(moves, self._temperature, until)
        self._per_second += (moves / (time.perf_counter() - started) - self._per_second) / 2
        self._temperature = until
        self._left -= seconds
        return self._annealing.best

    @property
    def is_between_rounds(self) -> bool:
        return self._left <= 1e-6

    def _begin(self, keys: list[Moment], hot: float, length: float, price: float = 1.0) -> None:
        self._annealing.start(keys, price)
        self._hot = self._temperature = hot
        self._length = self._left = length * self._pace

    def _next(self) -> None:
        turn, which = divmod(self._number, len(_ROUNDS))
        start, hot, length = _ROUNDS[which]
        self._number += 1
        best = self._annealing.best
        if best is None and self._number > 1:
            best = self._within_budget()
            start, hot = _FROM_BEST, 2.5
        if start == _FROM_NOTHING or best is None:
            self._begin([], hot, length * _LONGER**turn)
        else:
            self._begin(best, hot, length * _LONGER**turn)

    def _within_budget(self) -> list[Moment] | None:
        """A plan that fits, whatever its time; None where a round finds none."""
        self._seed += 1
        search = Annealing(self._problem, self._budget_bytes, self._unit / _TIME_FREE, self._seed)
        search.run(int(self._per_second * self._pace), _FREE_HOT, _FREE_COLD)
        self.lowest_bytes = min(self.lowest_bytes, search.peak_bytes)
        return search.best
