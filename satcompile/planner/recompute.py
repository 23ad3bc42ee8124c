"""Store or recompute: decide which values cross from the forward to the backward.

1. Without a limit, or where torch's own plan fits it: torch's own plan (its minimum cut),
   which is the same as that of ``torch.compile`` by default, node for node.
2. Otherwise: the plan with the least recompute time found whose simulated peak is within the
   limit, at every position of the step and with as many copies as that takes
   (``satcompile.solver``).
3. Where no plan fits, or ``lowest_peak`` asks for it: the plan with the lowest peak.

The pass leaves alone values that torch or the user decided (checkpoint regions, collectives,
effects, mutations), random draws (their results or seeds are saved), symbolic sizes, and everything
that an incoming gradient goes into.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import fx

from satcompile.graph.emission import why_order_is_kept
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.retention import RetentionPlan
from satcompile.planner.searches import Searches, default_saved_nodes
from satcompile.solver.training.rungs import rung_below
from satcompile.solver.training.search import BUDGET_BOUND, BudgetSearch, Candidate
from satcompile.solver.training.step import Phase, StepProfile, simulate_orders
from satcompile.torch_compat.symbols import is_symbolic


@dataclass(frozen=True)
class Recompute:
    """The pass that chooses the plan.

    Attributes:
        limit_bytes: bytes that the step may allocate at its peak; None for no limit.
        lowest_peak: take the plan with the lowest simulated peak.
        low_way: take the lowest plan made in one way instead, counted from 1
            (``BudgetSearch.lows``): its code may be lower. There may be fewer ways.
        effort: work for each planning problem, in the units of ``two_phase.solve``.
        saved_limit_bytes: bytes that may be kept from forward to backward; None for no limit.
        default_within_bytes: torch's own plan is taken up to this simulated peak, if that is
            above ``limit_bytes``: its code may fit where its simulation does not quite.
        default_saved: names of the nodes that torch's own plan saves, if an earlier run on the same
            graph found them; torch, too, plans a graph once, for the sizes of its first call.
        whole: the plan for the graph as it was before a pass changed it. Torch's own plan belongs
            to that graph, not to the changed one.
        searches: searches that were begun by earlier runs on the same graph.
    """

    limit_bytes: int | None = None
    lowest_peak: bool = False
    effort: int = 1_000
    saved_limit_bytes: int | None = None
    default_within_bytes: int = 0
    default_saved: tuple[str, ...] = ()
    whole: RetentionPlan | None = None
    low_way: int = 0
    searches: Searches = field(default_factory=Searches, repr=False, compare=False)

    name = "recompute"

    def run(self, problem: PlanningProblem) -> RetentionPlan:
        """Decide for one joint graph."""
        nodes = self._default_saved(problem)
        search = self.searches.of(problem, self.effort, nodes)
        default = search.default
        own_profile = _as_torch_has_it(problem, default)
        default_profile = own_profile if self.whole is None else self.whole.default_profile
        if self.whole is None and self._takes_default(own_profile):
            return self._default_plan(problem, default, own_profile, nodes)
        chosen = None
        if not self.lowest_peak and self.limit_bytes is not None:
            limit_bytes = rung_below(self.limit_bytes, default_profile.peak_bytes)
            chosen = search.within(limit_bytes, self.saved_limit_bytes)
        if chosen is None:
            chosen = self._lowest(search)
        if chosen is default and self.whole is None and own_profile == default.profile:
            return self._default_plan(problem, default, own_profile, nodes)
        tensors, scalars = problem.nodes_to_save(chosen.saved)
        bound_us = 0.0
        if self.limit_bytes is not None:
            bound_us = search.bound_us(self.limit_bytes)
        return self._plan(
            problem, chosen, default_profile, tensors, scalars, nodes, bound_us=bound_us
        )

    def _lowest(self, search: BudgetSearch) -> Candidate:
        if 0 < self.low_way <= len(search.lows):
            return search.lows[self.low_way - 1]
        return search.floor()

    def _default_plan(
        self,
        problem: PlanningProblem,
        default: Candidate,
        profile: StepProfile,
        nodes: list[fx.Node],
    ) -> RetentionPlan:
        scalars = [n for n in nodes if is_symbolic(n.meta.get("val"))]
        tensors = [n for n in nodes if not is_symbolic(n.meta.get("val"))]
        default = replace(default, profile=profile)
        return self._plan(problem, default, profile, tensors, scalars, nodes, is_default=True)

    def is_content_with(self, plan: RetentionPlan) -> bool:
        """Whether ``plan`` is torch's own and no other is wanted."""
        return plan.is_default and self._takes_default(plan.profile)

    def _takes_default(self, profile: StepProfile) -> bool:
        if self.lowest_peak:
            return False
        if self.saved_limit_bytes is not None and profile.saved_bytes > self.saved_limit_bytes:
            return False
        most_bytes = max(self.limit_bytes or 0, self.default_within_bytes)
        return self.limit_bytes is None or profile.peak_bytes <= most_bytes

    def prefers(
        self, plan: RetentionPlan, step_us: float, other: RetentionPlan, other_step_us: float
    ) -> bool:
        """Whether ``plan`` is better than ``other``. If both are within the limits, the faster is
        better; else the one that is; else the lower one. Step times exclude the plans' own time."""
        fits, other_fits = self._is_within(plan), self._is_within(other)
        if self.lowest_peak or not (fits or other_fits):
            return plan.profile.peak_bytes < other.profile.peak_bytes
        if fits and other_fits:
            return plan.time_us + step_us < other.time_us + other_step_us
        return fits

    def _is_within(self, plan: RetentionPlan) -> bool:
        saved_bytes = plan.profile.saved_bytes
        return (self.limit_bytes is None or plan.profile.peak_bytes <= self.limit_bytes) and (
            self.saved_limit_bytes is None or saved_bytes <= self.saved_limit_bytes
        )

    def _default_saved(self, problem: PlanningProblem) -> list[fx.Node]:
        # The names belong to another graph.
        return default_saved_nodes(problem, self.default_saved if self.whole is None else ())

    def _plan(
        self,
        problem: PlanningProblem,
        chosen: Candidate,
        default_profile: StepProfile,
        tensors: list,
        scalars: list,
        default_saved: list[fx.Node],
        bound_us: float = 0.0,
        is_default: bool = False,
    ) -> RetentionPlan:
        again = [
            problem.operations[index]
            for index in sorted(set(chosen.backward_order))
            if problem.step.operations[index].phase is Phase.FORWARD
        ]
        return RetentionPlan(
            saved=chosen.saved,
            recomputed=tuple(again),
            operations=problem.operations,
            forward_order=chosen.forward_order,
            backward_order=chosen.backward_order,
            order_kept=why_order_is_kept(problem.graph),
            crossing=tuple(tensors),
            scalars=tuple(scalars),
            profile=chosen.profile,
            default_profile=default_profile,
            default_saved=tuple(node.name for node in default_saved)
            if self.whole is None
            else self.whole.default_saved,
            time_us=chosen.solution.time_us,
            bound_us=chosen.solution.time_us
            if is_default
            else min(bound_us, chosen.solution.time_us),
            bound_kind="torch's own plan fits" if is_default else BUDGET_BOUND,
            is_default=is_default,
            limit_bytes=self.limit_bytes,
            source=chosen.source,
        )


def _as_torch_has_it(problem: PlanningProblem, default: Candidate) -> StepProfile:
    """The profile of a step with torch's own plan, compiled without a plan of ours."""
    step = problem.step_of(is_default=True)
    if step.constant_bytes == problem.step.constant_bytes:
        return default.profile
    return simulate_orders(step, default.forward_order, default.backward_order, default.saved)
