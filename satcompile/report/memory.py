"""Memory over the step of a planned graph: the solver's simulation with the graph's names."""

from __future__ import annotations

from collections.abc import Sequence

from satcompile.graph.nodes import module_path, source_line
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.retention import RetentionPlan
from satcompile.planner.searches import budget_search
from satcompile.report.timeline import Place, Timeline, timeline
from satcompile.solver.training.step import Step


def plan_timeline(problem: PlanningProblem, plan: RetentionPlan) -> Timeline:
    """Timeline of the step with the plan; resident bytes are not counted."""
    step = problem.step_of(plan.is_default)
    return _timeline(problem, step, plan.forward_order, plan.backward_order, plan.saved)


def default_timeline(problem: PlanningProblem, plan: RetentionPlan) -> Timeline:
    """Timeline of the step with torch's own plan.

    Args:
        problem: problem of the graph as torch would plan it, without vocabulary chunks.
        plan: any plan for that graph; it knows what torch's own plan saves.
    """
    by_name = {node.name: node for node in problem.graph.graph.nodes}
    saved = [by_name[name] for name in plan.default_saved]
    default = budget_search(problem, effort=1, default_saved=saved).default
    step = problem.step_of(is_default=True)
    return _timeline(problem, step, default.forward_order, default.backward_order, default.saved)


def _timeline(
    problem: PlanningProblem,
    step: Step,
    forward: Sequence[int],
    backward: Sequence[int],
    saved: frozenset[int],
) -> Timeline:
    def place_of(storage: int) -> Place:
        node = problem.storages[storage]
        return node.name, module_path(node), source_line(node)

    prices = [(price.inline_us, price.write_us) for price in problem.prices]
    return timeline(step, forward, backward, saved, prices, place_of)
