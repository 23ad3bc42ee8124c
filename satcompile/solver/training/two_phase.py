"""Two-phase rematerialization: which forward values cross into the backward.

The problem. Operations of the forward make values; the backward reads some of them. Every
value that it reads is either *saved* (kept in memory from forward to backward) or
*recomputed* (its operation runs again, for which its own inputs must be saved or recomputed
in turn). Saved bytes are bounded; recompute time is to be least. Without the bound this is a
minimum cut (Jain et al., Checkmate, MLSys 2020, section 4, with one phase boundary; torch's
partitioner solves that cut with other weights). With it, graphs of layers are solved as
shortest paths, on which identical layers fold (``satcompile.solver.training.demands``); graphs whose
layers are too entangled for that are a small mixed-integer program, solved by HiGHS.

Optimal for this class: one copy of each recomputed value, alive from its recomputation to
its last use. Not optimal for the peak at every step, where several copies of a value pay off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from scipy import optimize, sparse

from satcompile.solver.base.quiet import without_chatter
from satcompile.solver.training import demands
from satcompile.solver.training.constrained_path import DemandGraph, NoPath
from satcompile.solver.training.two_phase_problem import (
    Infeasible,
    Operation,
    Problem,
    Solution,
    Unsolvable,
    Value,
    evaluate,
)

_GUARD_S = 60.0  # against the unforeseen: work is limited by nodes
__all__ = [
    "Infeasible",
    "Operation",
    "Problem",
    "Solution",
    "Unsolvable",
    "Value",
    "evaluate",
    "solve",
]
_PARTIAL_PLANS_PER_NODE = 10  # kept at one level; a node of branch and bound takes far longer


def solve(
    problem: Problem,
    saved_bytes_limit: int,
    gap_us: float = 0.0,
    forced: Iterable[int] = (),
    node_limit: int = 2_000,
) -> Solution:
    """Least time with at most ``saved_bytes_limit`` saved bytes, proven up to ``gap_us``.

    Values in ``forced`` are saved whatever they cost (dropped again where nothing reads them);
    the bound then holds for plans that save them.

    ``node_limit`` counts work, so that the same problem gives the same plan on every machine
    and rank.

    Raises:
        Infeasible: the limit is below what any choice must save.
        Unsolvable: the limits on work ended the search before a choice was found.
    """
    must = frozenset(forced)
    if not all(problem.values[i].saveable for i in must):
        raise Infeasible("what must be saved may not be")
    try:
        graph = _demand_graph(problem, must)
        if graph is not None:
            return _solve_by_paths(problem, graph, saved_bytes_limit, gap_us, must, node_limit)
    except (demands.NoChoice, NoPath):
        raise Infeasible("no choice keeps the saved bytes within the limit") from None
    return _solve_by_milp(problem, saved_bytes_limit, gap_us, sorted(must), node_limit)


def _demand_graph(problem: Problem, forced: frozenset[int]) -> DemandGraph | None:
    """The choices as paths, given the values that are saved anyway. None where the graph would be
    too large."""
    if forced not in problem.known:
        found = demands.expand(problem, forced)
        problem.known[forced] = None if found is None else DemandGraph(found)
    graph: DemandGraph | None = problem.known[forced]
    return graph


def _solve_by_paths(
    problem: Problem,
    graph: DemandGraph,
    limit: int,
    gap_us: float,
    forced: frozenset[int],
    node_limit: int,
) -> Solution:
    forced_bytes = sum(problem.values[i].num_bytes for i in forced)
    forced_us = sum(problem.values[i].save_time_us for i in forced)
    choice = graph.solve(limit - forced_bytes, gap_us, node_limit * _PARTIAL_PLANS_PER_NODE)
    found = _drop_useless(problem, evaluate(problem, forced.union(choice.saved)))
    return replace(
        found,
        bound_us=min(choice.bound_us + forced_us, found.time_us),
        nodes=choice.partial_plans,
    )


def _solve_by_milp(
    problem: Problem,
    saved_bytes_limit: int,
    gap_us: float,
    forced: list[int],
    node_limit: int,
) -> Solution:
    limit, bound_us = saved_bytes_limit, 0.0
    while True:
        found = _solve_once(problem, limit, gap_us, forced, node_limit)
        bound_us = max(bound_us, found.bound_us) if limit == saved_bytes_limit else bound_us
        over = found.saved_bytes - saved_bytes_limit
        if over <= 0:
            return replace(found, bound_us=min(bound_us, found.time_us))
        # The solver's tolerance is a millionth of the largest value. Against a limit that is
        # lower by what it was off, the first bound still holds.
        limit -= over


def _solve_once(
    problem: Problem,
    limit: int,
    gap_us: float,
    forced: list[int],
    node_limit: int,
) -> Solution:
    """First with rows that help on graphs of identical layers; where that leaves the gap open,
    without them, which helps on others."""
    if limit < 0:
        raise Infeasible("no choice keeps the saved bytes within the limit")
    rounded = _Model(problem, limit, forced, rounded=True)
    best = _run(rounded, gap_us, node_limit // 4)
    if best is None or best.gap_us > gap_us:
        best = _better(best, _run(_Model(problem, limit, forced), gap_us, node_limit))
    if best is None:
        raise Unsolvable("the limit on work ended the search before a choice was found")
    return best


def _run(model: _Model, gap_us: float, node_limit: int) -> Solution | None:
    """One call of HiGHS; None where its limits ended it before a choice was found."""
    with without_chatter():
        outcome = optimize.milp(
            model.costs,
            integrality=model.integrality,
            bounds=optimize.Bounds(model.lower, model.upper),
            constraints=optimize.LinearConstraint(model.matrix(), model.row_lower, np.inf),
            options={
                "node_limit": max(1, node_limit),
                "time_limit": _GUARD_S,
                "mip_rel_gap": model.relative_gap(gap_us),
            },
        )
    if outcome.status == 2:
        raise Infeasible("no choice keeps the saved bytes within the limit")
    if outcome.x is None:
        return None
    found = _drop_useless(model.problem, evaluate(model.problem, model.saved_in(outcome.x)))
    bound_us = (outcome.mip_dual_bound or 0.0) - model.constant
    return replace(
        found,
        bound_us=min(max(0.0, bound_us), found.time_us),
        nodes=int(outcome.mip_node_count or 0),
    )


def _better(first: Solution | None, second: Solution | None) -> Solution | None:
    """The cheaper choice with the higher bound: both hold for the same problem."""
    if first is None or second is None:
        return first or second
    best = first if first.time_us <= second.time_us else second
    bound_us = min(best.time_us, max(first.bound_us, second.bound_us))
    return replace(best, bound_us=bound_us, nodes=first.nodes + second.nodes)


def _drop_useless(problem: Problem, found: Solution) -> Solution:
    """Without the saved values that nothing in the backward reads."""
    read = {i for i, value in enumerate(problem.values) if value.needed}
    for index in found.recomputed:
        read.update(problem.operations[index].reads)
    useful = found.saved & read
    return found if useful == found.saved else evaluate(problem, useful)


class _Model:
    """The mixed-integer program. Columns: save per value, recompute per operation, write per
    value that may have to be materialized, and a constant."""

    def __init__(
        self, problem: Problem, saved_bytes_limit: int, forced: Sequence[int], rounded: bool = False
    ) -> None:
        self.problem = problem
        values, operations = problem.values, problem.operations
        self._num_values, self._num_operations = len(values), len(operations)
        written = [i for i, v in enumerate(values) if _may_be_materialized(v)]
        column_of_write = {
            i: self._num_values + self._num_operations + k for k, i in enumerate(written)
        }
        times = [
            *(value.save_time_us for value in values),
            *(operation.time_us for operation in operations),
            *(values[i].materialize_time_us for i in written),
        ]
        # HiGHS stops at a gap relative to the objective. A column fixed at one, which costs
        # as much as all others together, turns that into an absolute gap.
        self.constant = float(sum(times)) or 1.0
        self.num_columns = len(times) + 1
        self.costs = np.array([*times, self.constant])
        self.lower = np.zeros(self.num_columns)
        self.upper = np.ones(self.num_columns)
        self.lower[-1] = 1
        # For fixed saves the rest is a system of implications, integral by itself; saying so
        # for all columns lets the solver fix more of them.
        self.integrality = np.ones(self.num_columns)
        self.integrality[-1] = 0
        self._rows: list[dict[int, float]] = []
        self.row_lower: list[float] = []
        for i, value in enumerate(values):
            self._add_value(i, value, column_of_write)
        for index, operation in enumerate(operations):
            self._add_operation(index, operation, values)
        heavy = {i: float(-v.num_bytes) for i, v in enumerate(values) if v.num_bytes}
        # In units of the largest value: rows of wildly different scale upset the solver.
        scale = max((-weight for weight in heavy.values()), default=1.0)
        self._add({i: w / scale for i, w in heavy.items()}, -saved_bytes_limit / scale)
        if rounded:
            for unit in _units(values, saved_bytes_limit):
                whole = {i: -float(v.num_bytes // unit) for i, v in enumerate(values)}
                self._add({i: w for i, w in whole.items() if w}, -float(saved_bytes_limit // unit))
        self.lower[list(forced)] = 1

    def _recompute(self, operation: int) -> int:
        return self._num_values + operation

    def _add(self, row: dict[int, float], at_least: float) -> None:
        self._rows.append(row)
        self.row_lower.append(at_least)

    def _add_value(self, i: int, value: Value, column_of_write: dict[int, int]) -> None:
        if not value.saveable:
            self.upper[i] = 0
        if value.needed:
            self._add({i: 1.0, self._recompute(value.producer): 1.0}, 1.0)
        if i not in column_of_write:
            return
        write = column_of_write[i]
        if value.unfused_backward:
            self._add({write: 1.0, i: 1.0}, 1.0)
        for reader in value.unfused_readers:
            self._add({write: 1.0, i: 1.0, self._recompute(reader): -1.0}, 0.0)

    def _add_operation(self, index: int, operation: Operation, values: Sequence[Value]) -> None:
        column = self._recompute(index)
        if not operation.recomputable:
            self.upper[column] = 0
            return
        for i in operation.reads:
            producer = self._recompute(values[i].producer)
            self._add({i: 1.0, producer: 1.0, column: -1.0}, 0.0)

    def matrix(self) -> sparse.csr_matrix:
        rows = np.repeat(np.arange(len(self._rows)), [len(row) for row in self._rows])
        columns = np.fromiter((c for row in self._rows for c in row), dtype=np.int64)
        weights = np.fromiter((w for row in self._rows for w in row.values()), dtype=float)
        return sparse.csr_matrix(
            (weights, (rows, columns)), shape=(len(self._rows), self.num_columns)
        )

    def relative_gap(self, gap_us: float) -> float:
        """The gap relative to the objective and its constant that is ``gap_us`` at most."""
        return max(1e-9, gap_us / (2 * self.constant))

    def saved_in(self, x: np.ndarray) -> list[int]:
        return [i for i in range(self._num_values) if x[i] > 0.5]


def _units(values: Sequence[Value], saved_bytes_limit: int) -> list[int]:
    """Sizes by which the limit may be rounded: identical layers make a few sizes common.

    For any unit u, the sum of floor(bytes / u) over what is saved is at most floor(limit / u):
    valid for every choice, and it cuts off the fractions of identical tensors with which a
    linear relaxation fills a limit to the byte.
    """
    sizes = sorted({v.num_bytes for v in values if v.num_bytes > saved_bytes_limit // 500})

    def covered_bytes(unit: int) -> int:
        return sum(v.num_bytes for v in values if v.num_bytes % unit == 0)

    return sorted(sizes, key=lambda unit: (-covered_bytes(unit), unit))[:2]


def _may_be_materialized(value: Value) -> bool:
    return value.materialize_time_us > 0 and (value.unfused_backward or bool(value.unfused_readers))
