"""Lower bounds: what a schedule has to recompute, seen from a few moments.

A *moment* is a step at which memory is looked at: the first computation of a node, or an optional
recomputation of an earlier node k right before the first computation of t, in *stage* t. Between
two moments lies a *block*. Binaries: ``X[b,i]``, the result of i is resident at the moment that
ends block b; ``R[b,i]``, i is computed again in block b; ``Z[b]``, the optional recomputation
happens. With avail[b,i] = X[b-1,i] + R[b,i], plus Z[b-1] where that computes i, and 1 for the node
that is first computed at the moment before block b:

- X[b,i] <= avail[b,i] for what was first computed before block b; any, for what is inside it,
- avail[b,i] >= 1 for what was first computed before block b and is read by a first computation
  inside it,
- R[b,j] <= avail[b,i] for every input i of j,
- the inputs of a moment's node are resident at it, and bytes of all that is resident, with its own
  result, are within the budget.

With moments that are first computations, every schedule with this order of first computations,
however often it recomputes whatever, maps to a solution that costs no more (memory is not looked
at between moments, and recomputation of what a block itself computes first is free), so the least
cost is a lower bound for all of them. Optional recomputations narrow the class to that of Checkmate
(Jain et al., MLSys 2020): within a stage in the order of the nodes, each at most once. It is
Checkmate's program with rows at few steps, generated lazily.

With ``Y[a,i]``, i is computed again some time after moment a, rows are added that hold for whole
numbers and cut off fractions of them: half a tensor cannot be used twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

from satcompile.solver.base.quiet import without_chatter
from satcompile.solver.graphs.problem import Problem, loads
from satcompile.solver.graphs.schedule import sequence_of

_PART = 0.01  # of a result: less is not resident

# A step: a stage and the node that is computed in it; of a first computation they are the same.
Moment = tuple[int, int]


@dataclass
class Relaxed:
    """A solution of the relaxation.

    Attributes:
        bound: proven least extra time; infinite where there is no solution.
        readings: schedules that the solution can be read as, the better one first: recomputations
            ``(stage, node)``. Empty where no solution was found.
        optimal: the solution is one of least cost, up to the gap.
    """

    bound: float
    readings: tuple[list[Moment], ...] = ()
    optimal: bool = False


class Residency:
    """The program for one problem and budget at chosen moments.

    Args:
        moments: in any order.
    """

    def __init__(
        self,
        problem: Problem,
        budget_bytes: int,
        moments: Iterable[Moment],
    ) -> None:
        self.problem, self.budget_bytes = problem, budget_bytes
        self.moments = sorted(set(moments))
        self._costs: list[float] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._columns: list[int] = []
        self._weights: list[float] = []
        self._row_starts: list[int] = [0]
        self._at_least: list[float] = []
        self._scale = problem.total_time or 1.0
        self._last = _last_possible_use(problem)
        self._resident: list[dict[int, int]] = []
        self._again: list[dict[int, int]] = []
        self._optional: list[int | None] = []
        self._reduced: tuple[np.ndarray, np.ndarray, float] | None = None
        self._build()

    @property
    def num_columns(self) -> int:
        return len(self._costs)

    # -- columns and rows ------------------------------------------------------------------

    def _column(self, cost: float = 0.0) -> int:
        self._costs.append(cost / self._scale)
        self._lower.append(0.0)
        self._upper.append(1.0)
        return len(self._costs) - 1

    def _row(self, terms: Iterable[tuple[int, float]], at_least: float) -> None:
        for column, weight in terms:
            self._columns.append(column)
            self._weights.append(weight)
        self._row_starts.append(len(self._columns))
        self._at_least.append(at_least)

    def _build(self) -> None:
        end: Moment = (len(self.problem), len(self.problem))
        for number in range(len(self.moments) + 1):
            before = self.moments[number - 1] if number else None
            after = self.moments[number] if number < len(self.moments) else end
            there = self._there(before)
            again = self._block(before, after, there)
            self._again.append(again)
            if after != end:
                self._moment(before, after, there, again)

    def strengthen(self) -> None:
        """Add the rows with Y, which raise the bound and make the program larger."""
        for number, (stage, node) in enumerate(self.moments):
            if stage == node:
                self._later(number)

    def _there(self, before: Moment | None) -> dict[int, list[int]]:
        """Columns that say that a node's result is there when a block begins."""
        if before is None:
            return {}
        found = {i: [column] for i, column in self._resident[-1].items()}
        if self._optional[-1] is not None:
            found.setdefault(before[1], []).append(self._optional[-1])
        return found

    def _block(
        self, before: Moment | None, after: Moment, there: dict[int, list[int]]
    ) -> dict[int, int]:
        """R of a block."""
        if before is None:
            return {}
        problem, stage = self.problem, before[0]
        is_first = before[0] == before[1]
        begin = stage + 1 if is_first else stage  # what the block computes first
        again = {
            i: self._column(problem.times[i])
            for i in range(stage)
            if self._last[i] >= begin and _may_run(i, before, after)
        }
        needed = {i for j in range(begin, after[0]) for i in problem.inputs[j] if i < stage}
        for i in needed:
            self._row(_ones(again.get(i), there.get(i)), 1.0)
        for j, column in again.items():
            for i in problem.inputs[j]:
                self._row([(column, -1.0), *_ones(again.get(i), there.get(i))], 0.0)
        return again

    def _moment(
        self,
        before: Moment | None,
        moment: Moment,
        there: dict[int, list[int]],
        again: dict[int, int],
    ) -> None:
        problem, (stage, node) = self.problem, moment
        is_first = stage == node
        existed = before[0] if before is not None else 0  # nodes below were computed before
        inputs = set(problem.inputs[node])
        resident: dict[int, int] = {}
        for i in range(stage):
            if self._last[i] < stage:
                continue
            resident[i] = column = self._column()
            if is_first and i in inputs:
                self._lower[column] = 1.0
            if i < existed:
                self._row([(column, -1.0), *_ones(again.get(i), there.get(i))], 0.0)
        unit = float(max(self.budget_bytes, 1))
        weights = [(column, problem.num_bytes[i]) for i, column in resident.items()]
        room = self.budget_bytes - (problem.num_bytes[node] if is_first else 0)
        optional = None
        if not is_first:
            optional = happens = self._column(problem.times[node])
            weights.append((happens, problem.num_bytes[node]))
            for i in inputs:
                self._row([(happens, -1.0), *_ones(resident.get(i), None)], 0.0)
            if node in resident:
                self._row([(happens, -1.0), (resident[node], -1.0)], -1.0)
        self._row([(column, -w / unit) for column, w in weights if w > 0], -room / unit)
        self._resident.append(resident)
        self._optional.append(optional)

    def _later(self, number: int) -> None:
        """Y for one moment: what is computed again some time after it."""
        problem, moment = self.problem, self.moments[number][0]
        resident = self._resident[number]
        later: dict[int, list[int]] = {}
        for again in self._again[number + 1 :]:
            for i, column in again.items():
                if i < moment:
                    later.setdefault(i, []).append(column)
        optional = zip(self.moments[number + 1 :], self._optional[number + 1 :], strict=True)
        for (_, node), happens in optional:
            if happens is not None and node < moment:
                later.setdefault(node, []).append(happens)
        again_after = {i: self._column() for i in later}
        for i, column in again_after.items():
            self._row([(column, -1.0), *((c, 1.0) for c in later[i])], 0.0)
            for c in later[i]:
                self._row([(column, 1.0), (c, -1.0)], 0.0)
            for j in problem.inputs[i]:
                terms = _ones(again_after.get(j), [resident[j]] if j in resident else None)
                self._row([(column, -1.0), *terms], 0.0)
        used = {i for j in range(moment + 1, len(problem)) for i in problem.inputs[j] if i < moment}
        for i in used:
            self._row(_ones(again_after.get(i), [resident[i]]), 1.0)

    # -- solving ---------------------------------------------------------------------------

    def _matrix(self) -> sparse.csr_matrix:
        return sparse.csr_matrix(
            (self._weights, self._columns, self._row_starts),
            shape=(len(self._at_least), len(self._costs)),
        )

    def linear(self, time_limit_s: float) -> Relaxed:
        """The linear program: a bound, and a schedule that keeps at each moment what is resident
        in the solution to the largest parts."""
        outcome = optimize.linprog(
            self._costs,
            A_ub=-self._matrix(),
            b_ub=-np.array(self._at_least),
            bounds=np.array([self._lower, self._upper]).T,
            method="highs-ds",
            options={"time_limit": max(0.05, time_limit_s)},
        )
        if outcome.status == 2:
            return Relaxed(np.inf)
        if outcome.status != 0:
            return Relaxed(0.0)
        bound = max(0.0, float(outcome.fun) * self._scale)
        self._reduced = (outcome.x, outcome.lower.marginals, bound)
        return Relaxed(bound, (decode(self.problem, self._rounded(outcome.x)),))

    def _rounded(self, solution: np.ndarray) -> dict[Moment, frozenset[int]]:
        kept: dict[Moment, frozenset[int]] = {}
        sizes = self.problem.num_bytes
        for (stage, node), resident in zip(self.moments, self._resident, strict=True):
            if stage != node:
                continue
            room, there = self.budget_bytes - sizes[node], set[int]()
            parts = sorted(resident.items(), key=lambda ic: (-self._lower[ic[1]], -solution[ic[1]]))
            for i, column in parts:
                if solution[column] > _PART and sizes[i] <= room:
                    there.add(i)
                    room -= sizes[i]
            kept[stage, node] = frozenset(there)
        return kept

    def fix(self, most: float) -> None:
        """Rule out what no solution below ``most`` can contain, by the linear program's prices."""
        if self._reduced is None or most == np.inf:
            return
        solution, prices, bound = self._reduced
        spare = (most - bound) / self._scale + 1e-9
        for column in np.flatnonzero((solution < 1e-9) & (prices > spare)):
            if self._lower[column] == 0.0:
                self._upper[column] = 0.0

    def solve(self, gap: float, time_limit_s: float) -> Relaxed:
        """The program in whole numbers.

        Args:
            gap: how far from the least cost a solution may be, in the problem's time.
        """
        # A column fixed at one makes HiGHS's gap, relative to the objective, an absolute one.
        constant = 1.0
        costs = np.array([*self._costs, constant])
        matrix = self._matrix()
        matrix.resize((matrix.shape[0], len(costs)))
        with without_chatter():
            outcome = optimize.milp(
                costs,
                integrality=np.ones(len(costs)),
                bounds=optimize.Bounds(
                    np.array([*self._lower, 1.0]), np.array([*self._upper, 1.0])
                ),
                constraints=optimize.LinearConstraint(matrix, np.array(self._at_least), np.inf),
                options={
                    "time_limit": max(0.05, time_limit_s),
                    "mip_rel_gap": max(1e-9, gap / self._scale),
                },
            )
        if outcome.status == 2:
            return Relaxed(np.inf)
        proven = outcome.mip_dual_bound
        bound = 0.0 if proven is None else max(0.0, (float(proven) - constant) * self._scale)
        if outcome.x is None:
            return Relaxed(bound)
        return Relaxed(bound, self._readings(outcome.x), optimal=outcome.status == 0)

    def _readings(self, solution: np.ndarray) -> tuple[list[Moment], ...]:
        """Recomputing when something reads it, and when the solution has it. The first is mostly
        the better one; the second is exact once there are moments enough."""
        kept = {
            moment: frozenset(i for i, column in resident.items() if solution[column] > 0.5)
            for moment, resident in zip(self.moments, self._resident, strict=True)
        }
        plans = (decode(self.problem, kept, early) for early in (False, True))
        return tuple(sorted(plans, key=self._worth))

    def _worth(self, keys: list[Moment]) -> tuple[int, float]:
        """Bytes over the budget, then time."""
        found = loads(self.problem, sequence_of(self.problem, keys))
        over = sum(max(0, num_bytes - self.budget_bytes) for num_bytes in found)
        return over, sum(self.problem.times[node] for _, node in keys)


def _may_run(node: int, before: Moment, after: Moment) -> bool:
    """Whether a block has a place for computing a node again: one that lies within a stage, with
    optional recomputations at its ends, has it between them only."""
    stage = after[0]
    if before[0] + (before[0] == before[1]) < stage:
        return True
    above = before[1] if before[0] == stage else -1
    return above < node < after[1]  # which is the stage where a first computation ends the block


def _ones(one: int | None, more: list[int] | None) -> list[tuple[int, float]]:
    found = [(column, 1.0) for column in more or ()]
    return found if one is None else [*found, (one, 1.0)]


def _last_possible_use(problem: Problem) -> list[int]:
    """The last first computation for which a copy of each node can be of use, directly or through
    what can be recomputed from it."""
    last = list(problem.last_use)
    for node in range(len(problem) - 1, -1, -1):
        for i in problem.inputs[node]:
            last[i] = max(last[i], last[node])
    return last


def decode(
    problem: Problem, resident: Mapping[Moment, frozenset[int]], early: bool = False
) -> list[Moment]:
    """Recomputations of a schedule that keeps no more at the moments than it is given; between
    them it keeps everything.

    Args:
        resident: at each moment.
        early: what is resident at a moment is there then, even if what reads it comes later;
            otherwise recomputations are as late as possible.
    """
    there: set[int] = set()
    keys: list[Moment] = []
    by_stage: dict[int, dict[int, frozenset[int]]] = {}
    for stage, node in sorted(resident):
        by_stage.setdefault(stage, {})[node] = resident[stage, node]
    for stage in range(len(problem)):
        here = by_stage.get(stage, {})
        wanted = _wanted(stage, here, by_stage.get(stage + 1, {})) if early else []
        wanted += [(stage, i) for i in problem.inputs[stage]]
        again = _recomputed(problem, wanted, there, here)
        keys.extend((stage, i) for i in sorted(again))
        there |= again
        for node, kept in here.items():
            there = {i for i in there if i in kept or (i in again and i >= node)}
        there.add(stage)
    return keys


def _wanted(
    stage: int, here: Mapping[int, frozenset[int]], next_stage: Mapping[int, frozenset[int]]
) -> list[Moment]:
    """What has to be there when a stage ends, or at a moment inside it, and by when: ``(node
    whose computation finds it, result)``. What a moment inside a stage wants of later nodes than
    its own, the stage before has to make."""
    found = [(node, i) for node, kept in here.items() for i in kept if i < node]
    found += [(stage, i) for node, kept in next_stage.items() for i in kept if node < i < stage]
    return found


def _recomputed(
    problem: Problem, wanted: list[Moment], there: set[int], here: Mapping[int, frozenset[int]]
) -> set[int]:
    """What a stage computes again on demand. What is not resident at a moment inside it is there
    for what runs before the moment, but not for what runs behind it."""
    again: set[int] = set()
    while wanted:
        reader, i = wanted.pop()
        is_there = i in there and all(i in kept for node, kept in here.items() if node < reader)
        if not is_there and i not in again:
            again.add(i)
            wanted.extend((i, j) for j in problem.inputs[i])
    return again
