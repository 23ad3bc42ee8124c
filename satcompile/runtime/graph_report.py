"""Makes a graph's report from the results of its compilation."""

from __future__ import annotations

from collections.abc import Callable

from satcompile.compile.allocation import StepWalk
from satcompile.compile.code import BY_CODE, UNREADABLE_MARGIN
from satcompile.compile.planning import PlannedGraphs
from satcompile.passes.fused_update import FusedUpdate
from satcompile.planner.curve import curve
from satcompile.report.data import GraphReport, PassRow
from satcompile.report.memory import default_timeline, plan_timeline
from satcompile.report.rows import recomputed_rows, saved_rows
from satcompile.report.sparsity import SparsityReport
from satcompile.report.updates import LatestCall, PlannedUpdates, UpdateReport
from satcompile.runtime.plan_in_use import PlanInUse
from satcompile.runtime.residency import Residency
from satcompile.torch_compat.partitioner import recompute_tag


def graph_report(
    name: str,
    in_use: PlanInUse,
    walk: StepWalk | None,
    residency: Residency,
    budget_bytes: int | None,
    default: Callable[[], tuple[int, str]],
    floor: Callable[[], int],
    latest_call: Callable[[], LatestCall] | None = None,
) -> GraphReport:
    """Report what was decided for a graph.

    Args:
        name: the graph's name.
        in_use: the plan that runs.
        walk: allocations of its code at the sizes in question; None if the code is unreadable.
        residency: memory that is alive before the graph's step.
        budget_bytes: the budget as a number; None without a budget.
        default: gives the bytes that a step of torch's own plan allocates, and how they are
            known; called on demand.
        floor: gives the bytes that a step of the lowest plan allocates; called on demand.
        latest_call: gives the graph's latest call; None for a graph that is never called.
    """
    made = in_use.generated
    graphs, options = made.graphs, made.request.options
    outcome = graphs.outcome
    step_bytes = walk.peak_bytes if walk is not None else made.step_peak_bytes
    plan, problem, whole = outcome.plan, outcome.problem, outcome.whole
    forward_us = problem.forward_time_us
    notes = list(residency.notes)
    if made.unreadable:
        notes.append(
            f"the generated code could not be followed ({made.unreadable}): the predicted peak is "
            f"the plan's, simulated, and {UNREADABLE_MARGIN:.0%} of the step on top"
        )
    notes.extend(_of_checkpoint_regions(graphs))
    return GraphReport(
        name=name,
        budget_bytes=budget_bytes,
        reserve_bytes=options.reserve,
        resident=residency.by_kind,
        predicted_peak_bytes=residency.total_bytes + step_bytes,
        prediction=BY_CODE if walk is not None else made.prediction,
        saved_bytes=walk.saved_bytes if walk is not None else plan.profile.saved_bytes,
        forward_time_us=forward_us,
        recompute_time_us=plan.time_us,
        optimality_gap=(plan.time_us - plan.bound_us) / forward_us if forward_us else 0.0,
        bound_kind=plan.bound_kind,
        saved=saved_rows(problem, plan),
        recomputed=recomputed_rows(plan),
        passes=[PassRow(p.name, p.time_us, p.changed, p.change) for p in made.passes],
        rounds=in_use.planned.rounds,
        notes=notes,
        sparsity=None
        if graphs.sparse is None
        else SparsityReport(graphs.sparse, made.request.subject.names, lambda: in_use.latest_masks),
        _updates=None if latest_call is None else _update_report(in_use, latest_call),
        _least=lambda: made.search.least_peak_bytes,
        _floor=floor,
        _default=default,
        _simulated_default_bytes=plan.default_profile.peak_bytes,
        _curve=lambda: curve(
            problem, options.solver_effort, plan, made.search, outcome.chunking_us
        ),
        _timeline=lambda: plan_timeline(problem, plan),
        _default_timeline=lambda: default_timeline(whole, plan),
    )


def _update_report(in_use: PlanInUse, latest_call: Callable[[], LatestCall]) -> UpdateReport:
    graphs, request = in_use.graphs, in_use.generated.request
    planned = PlannedUpdates(
        graphs.with_gradient,
        request.updates,
        frozenset(graphs.consumed),
        request.subject.names,
        not request.allows(FusedUpdate.name),
    )
    return UpdateReport(planned, latest_call, lambda: in_use.returned)


def _of_checkpoint_regions(graphs: PlannedGraphs) -> list[str]:
    """Notes on what the model's own ``torch.utils.checkpoint`` costs."""
    plan, problem = graphs.plan, graphs.problem
    if graphs.regions_forgotten:
        return [
            f"{graphs.regions_forgotten} operations in checkpoint regions of the model were taken as "
            "advice: the plan decides which of them are computed again"
        ]
    forced = {n for n in plan.recomputed if recompute_tag(n) == "recompute"}
    if not forced:
        return []
    prices = zip(problem.operations, problem.prices, strict=True)
    again_us = sum(price.inline_us for node, price in prices if node in forced)
    return [
        f"checkpoint regions of the model have {len(forced)} operations computed again, "
        f"{again_us / max(problem.forward_time_us, 1e-9):.0%} of the forward's time; with a "
        "memory_budget and options={'checkpoints': 'advice'} the plan decides instead"
    ]
