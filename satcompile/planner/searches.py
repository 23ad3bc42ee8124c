"""Searches for plans of one graph, begun once for all compilations of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from satcompile.graph.emission import why_order_is_kept
from satcompile.planner.problem import PlanningProblem
from satcompile.solver.training.search import BudgetSearch
from satcompile.torch_compat.partitioner import default_saved_values

# As a share of the forward's time. A tighter proof costs more planning time than it can win back.
_GAP_OF_FORWARD = 2e-3
_SEARCHES_KEPT = 2  # for a graph as a whole and in chunks


class Searches:
    """Searches that were begun. A graph that is compiled several times is traced anew each time,
    but its numbers are the same."""

    def __init__(self) -> None:
        self._begun: list[BudgetSearch] = []

    def of(
        self, problem: PlanningProblem, effort: int, default_saved: Iterable[fx.Node]
    ) -> BudgetSearch:
        """The search that was begun for the same numbers, or a new ``budget_search``."""
        search = budget_search(problem, effort, default_saved)
        for other in self._begun:
            if other.is_of_same_numbers(search):
                return other
        self._begun = [*self._begun[1 - _SEARCHES_KEPT :], search]
        return search


def default_saved_nodes(problem: PlanningProblem, names: Sequence[str]) -> list[fx.Node]:
    """Nodes that torch's own plan saves; ``names`` if an earlier run on the graph found them."""
    graph = problem.graph
    by_name = {node.name: node for node in graph.graph.nodes}
    if names and all(name in by_name for name in names):
        return [by_name[name] for name in names]
    return default_saved_values(graph.module, graph.roles, 1)


def budget_search(
    problem: PlanningProblem, effort: int, default_saved: Iterable[fx.Node] = ()
) -> BudgetSearch:
    """A search for plans of one problem.

    Args:
        default_saved: nodes that torch's own plan saves; without them, that plan is not searched.
    """
    gap_us = _GAP_OF_FORWARD * problem.forward_time_us
    return BudgetSearch(
        problem.step,
        problem.two_phase,
        problem.choices,
        gap_us,
        effort,
        again_us=[price.inline_us for price in problem.prices],
        own_order=why_order_is_kept(problem.graph) is None,
        default_saved=problem.storages_of(default_saved),
    )
