"""Memory against time: plans of one graph at limits from the lowest peak to torch's own.

Each point is a plan that the search holds, so the curve is an upper bound of the best one: plans
below it may exist, plans on it do. Peaks are simulated; times come from the cost model. For a large
graph, all points except the plan in use are plans that are made quickly.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from satcompile.planner.problem import PlanningProblem
from satcompile.planner.retention import RetentionPlan
from satcompile.planner.searches import budget_search, default_saved_nodes
from satcompile.solver.training.search import BudgetSearch, Candidate

log = logging.getLogger("satcompile")

_LARGE = 2_000  # operations
_LIMITS, _LIMITS_OF_LARGE = 8, 5  # between the two ends


@dataclass(frozen=True)
class CurvePoint:
    """A plan on the curve.

    Attributes:
        limit_bytes: the limit on its peak.
        peak_bytes: simulated peak of the step.
        time_added_us: time added by recomputation and what comes with it.
        is_chosen: whether it is the plan in use.
    """

    limit_bytes: int
    peak_bytes: int
    time_added_us: float
    is_chosen: bool = False

    def above(self, base_bytes: int) -> CurvePoint:
        """The same point with ``base_bytes`` resident."""
        return replace(
            self,
            limit_bytes=self.limit_bytes + base_bytes,
            peak_bytes=self.peak_bytes + base_bytes,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def curve(
    problem: PlanningProblem,
    effort: int,
    chosen: RetentionPlan | None = None,
    search: BudgetSearch | None = None,
    more_us: float = 0.0,
    limits: int | None = None,
) -> tuple[CurvePoint, ...]:
    """Points that no other beats in both peak and time, lowest peak first.

    The plan in use is included even if another is better in both. The same problem and effort
    give the same points.

    Args:
        problem: the planning problem of the graph.
        effort: effort of each solve; see ``BudgetSearch``.
        chosen: the plan in use, if there is one.
        search: a search of this problem to use again; None for a new one.
        more_us: time that this form of the graph takes beyond another that it is compared with,
            added to every point.
        limits: how many limits to plan for between the lowest peak and the default's; None for 8,
            or 5 for large graphs.
    """
    if search is None:
        names = () if chosen is None else chosen.default_saved
        search = budget_search(problem, effort, default_saved_nodes(problem, names))
    default, lowest = search.default, search.floor()
    is_large = len(problem.operations) > _LARGE
    if limits is None:
        limits = _LIMITS_OF_LARGE if is_large else _LIMITS
    log.info("planning %d operations at %d other limits", len(problem.operations), limits)
    low, high = lowest.profile.peak_bytes, default.profile.peak_bytes
    found = [_point(lowest, low), _point(default, high)]
    for number in range(1, limits + 1):
        limit_bytes = low + (high - low) * number // (limits + 1)
        candidate = search.within(limit_bytes, by_rounds=not is_large)
        if candidate is not None:
            found.append(_point(candidate, limit_bytes))
    if chosen is not None:
        found.append(_chosen_point(chosen))
    return tuple(replace(p, time_added_us=p.time_added_us + more_us) for p in best(found))


def best(points: Iterable[CurvePoint]) -> list[CurvePoint]:
    """Points that no other beats in both peak and time, lowest peak first, and the chosen one."""

    # Among equals, the plan in use comes first, then the one with the lowest limit.
    def order(point: CurvePoint) -> tuple[float, ...]:
        return point.peak_bytes, point.time_added_us, not point.is_chosen, point.limit_bytes

    kept: list[CurvePoint] = []
    least_us = float("inf")
    for point in sorted(points, key=order):
        if point.time_added_us < least_us or point.is_chosen:
            kept.append(point)
            least_us = min(least_us, point.time_added_us)
    return kept


def _point(candidate: Candidate, limit_bytes: int) -> CurvePoint:
    return CurvePoint(limit_bytes, candidate.profile.peak_bytes, candidate.solution.time_us)


def _chosen_point(plan: RetentionPlan) -> CurvePoint:
    peak_bytes = plan.profile.peak_bytes
    limit_bytes = peak_bytes if plan.limit_bytes is None else plan.limit_bytes
    return CurvePoint(max(limit_bytes, peak_bytes), peak_bytes, plan.time_us, is_chosen=True)
