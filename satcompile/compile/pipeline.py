"""The passes in order. A pass sees one graph and its options, nothing global.

There are two stages. Joint passes see forward and backward as one graph. Every pass that changes
what must be saved belongs there, before ``recompute``, which ends the stage. Backward passes see
the backward graph that the joint stage made. The invariants are verified after every pass.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from torch import fx

from satcompile.compile.partition import Partition, partition
from satcompile.compile.verify import (
    Reference,
    check_joint,
    check_partition,
    check_rewritten,
    reference,
)
from satcompile.compile.verify_sparse import check_slots
from satcompile.graph.text import GraphChange, graph_text, kept
from satcompile.graph.training_graph import TrainingGraph
from satcompile.passes.chunked_loss import ChunkedLoss
from satcompile.passes.contract import Ensures, Graph, Pass
from satcompile.passes.facts import Facts
from satcompile.passes.fused_update import FusedUpdate
from satcompile.passes.sparse_forward import SparseForward
from satcompile.passes.sparse_gradients import SparseGradients
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.recompute import Recompute
from satcompile.planner.request import Request
from satcompile.planner.retention import RetentionPlan

log = logging.getLogger("satcompile")

_PROGRESS_AFTER_S = 2.0


@dataclass(frozen=True)
class PassRecord:
    """What a report says about a pass.

    Attributes:
        change: the graph before and after, where the pass changed it.
    """

    name: str
    time_us: float
    changed: str
    change: GraphChange | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of the joint stage for one graph.

    Attributes:
        problem: the problem of the graph that was planned.
        whole: the problem of the graph without chunks; the same if there are no chunks.
        chunking_us: time that chunks add to the step, before anything is computed again.
    """

    problem: PlanningProblem
    whole: PlanningProblem
    chunking_us: float
    plan: RetentionPlan
    parts: Partition
    passes: tuple[PassRecord, ...]


# -- the passes, in order ----------------------------------------------------------------------


def joint_passes(request: Request) -> tuple[Pass[TrainingGraph], ...]:
    """The passes that run before planning, because they change what must be saved."""
    asked: tuple[Pass[TrainingGraph] | None, ...] = (
        SparseGradients.asked_by(request),
        # After the gradients: the forward is sparse only for parameters whose gradients are cut.
        SparseForward.asked_by(request),
    )
    return tuple(each for each in asked if each is not None and request.allows(each.name))


def alternatives(plan: RetentionPlan) -> tuple[Pass[TrainingGraph], ...]:
    """Passes that make other forms of the graph, planned too. The planner takes the better one."""
    return (
        # The last pass that rewrites: it reads the graph's peak, which earlier passes determine.
        ChunkedLoss(plan.profile.peak_bytes),
    )


def backward_passes(updates: FusedUpdate | None) -> tuple[Pass[fx.Graph], ...]:
    """The passes on a planned backward. They run after Inductor's own patterns, which would move
    readers of a parameter behind its update, or stop at the update."""
    return () if updates is None else (updates,)


class Runner:
    """Runs passes of one stage: times and records each, and verifies what it ensures.

    Attributes:
        records: what the report says about the passes so far.
        facts: what the passes have found out.
    """

    def __init__(self, earlier: Iterable[PassRecord] = (), facts: Facts | None = None) -> None:
        self.records = list(earlier)
        self.facts = Facts() if facts is None else facts

    def run(self, each: Pass[Graph], graph: Graph) -> Graph:
        """Run one pass; returns the graph after it.

        Raises:
            VerificationError: the pass did not keep what it ensures.
        """
        missing = [name for name in each.requires if getattr(self.facts, name) is None]
        assert not missing, f"{each.name} stands before what finds out {missing}"
        was_text = kept(graph_text(_graph_of(graph)))  # a pass may change the graph in place
        was = _reference_for(each, graph)
        started = time.perf_counter()
        result = each.run(graph, self.facts)
        record = _recorded(started, each.name, result.changed)
        change = GraphChange(was_text, kept(graph_text(_graph_of(result.graph))))
        self.records.append(replace(record, change=change))
        self.facts = result.facts
        self._verify(each, result.graph, was)
        return result.graph

    def _verify(self, each: Pass[Graph], graph: Graph, was: Reference | None) -> None:
        names = [record.name for record in self.records]
        if was is None or not isinstance(graph, TrainingGraph):
            return  # the effect of a backward pass is checked in the generated code
        if each.ensures is Ensures.RESULTS:
            check_rewritten(graph.module, was, names)
            return
        check_joint(graph.module, was, names, dense=True)
        if self.facts.sparse is not None:
            check_slots(graph, self.facts.sparse, names)


def _graph_of(graph: TrainingGraph | fx.Graph) -> fx.Graph:
    return graph.graph if isinstance(graph, TrainingGraph) else graph


def _reference_for(each: Pass[Graph], graph: Graph) -> Reference | None:
    """The graph before the pass, for the check after it."""
    if not isinstance(graph, TrainingGraph):
        return None
    return reference(graph.module, dense=each.ensures is Ensures.DENSE_VALUES)


def run_joint(
    graph: TrainingGraph, passes: Iterable[Pass[TrainingGraph]]
) -> tuple[TrainingGraph, Facts, tuple[PassRecord, ...]]:
    """Run passes of the joint stage on a joint graph.

    Raises:
        VerificationError: a pass broke the graph.
    """
    runner = Runner()
    for each in passes:
        graph = runner.run(each, graph)
    return graph, runner.facts, tuple(runner.records)


def run_backward(graph: fx.Graph, passes: Iterable[Pass[fx.Graph]]) -> tuple[PassRecord, ...]:
    """Run the passes of the backward stage on a backward graph, in place."""
    runner = Runner()
    for each in passes:
        runner.run(each, graph)
    return tuple(runner.records)


# -- the joint stage ---------------------------------------------------------------------------


def run(
    problem: PlanningProblem,
    recompute: Recompute,
    earlier: tuple[PassRecord, ...] = (),
    may_chunk: bool = False,
) -> Outcome:
    """Run the end of the joint stage on one graph: the passes that leave its meaning alone.

    Args:
        may_chunk: whether the graph may also be planned with its vocabulary in chunks. The plan
            that fits and takes the least time is chosen.

    Raises:
        VerificationError: a pass broke the graph.
    """
    decision = decide(problem, recompute, earlier, may_chunk)
    problem, plan, records = decision.problem, decision.plan, list(decision.passes)
    started = time.perf_counter()
    parts = partition(problem.graph, plan)
    made = _recorded(started, "partition", _sizes(parts))
    records.append(replace(made, change=_split(problem.graph, parts)))
    started = time.perf_counter()
    check_partition(decision.before, parts, plan, problem, [r.name for r in records])
    records.append(_recorded(started, "verify", "every emitted value is one of the joint graph's"))
    return Outcome(problem, decision.whole, decision.chunking_us, plan, parts, tuple(records))


@dataclass(frozen=True)
class Decision:
    """A plan for a graph that is not split yet. The attributes are those of ``Outcome``, and
    ``before``, the planned graph as it was."""

    problem: PlanningProblem
    whole: PlanningProblem
    chunking_us: float
    plan: RetentionPlan
    passes: tuple[PassRecord, ...]
    before: Reference


def decide(
    problem: PlanningProblem,
    recompute: Recompute,
    earlier: tuple[PassRecord, ...] = (),
    may_chunk: bool = False,
) -> Decision:
    """Plan one graph, as ``run`` does before it splits it."""
    before = reference(problem.graph.module)
    records, chunking_us, whole = list(earlier), 0.0, problem
    plan = _planned(problem, recompute, before, records)
    if may_chunk and not recompute.is_content_with(plan):
        problem, plan = _better(whole, plan, recompute, records)
    if problem is not whole:
        chunking_us = problem.step_time_us - whole.step_time_us
        before = reference(problem.graph.module)
    return Decision(problem, whole, chunking_us, plan, tuple(records), before)


def _planned(
    problem: PlanningProblem, recompute: Recompute, before: Reference, records: list[PassRecord]
) -> RetentionPlan:
    """Run ``recompute``, the last of the joint passes: it plans for the graph as it will run."""
    started = time.perf_counter()
    with _progress(f"{recompute.name}: planning {len(problem.operations)} operations"):
        plan = recompute.run(problem)
    records.append(_recorded(started, recompute.name, _describe(plan)))
    check_joint(problem.graph.module, before, [r.name for r in records])
    return plan


def _better(
    problem: PlanningProblem,
    plan: RetentionPlan,
    recompute: Recompute,
    records: list[PassRecord],
) -> tuple[PlanningProblem, RetentionPlan]:
    """Another form of the graph and its plan, if that is better; otherwise the given ones."""
    for each in alternatives(plan):
        runner = Runner(records)
        graph = runner.run(each, problem.graph)
        *_, made = runner.records
        if graph is problem.graph:
            records.append(replace(made, changed=f"nothing: {made.changed}", change=None))
            continue
        other = PlanningProblem(graph, problem.costs, problem.consumed, problem.tries_operators)
        more_us = other.step_time_us - problem.step_time_us
        made = replace(made, changed=f"{made.changed}; {more_us:+.0f} us")
        planned: list[PassRecord] = []
        plan_of_other = _planned(
            other, replace(recompute, whole=plan), reference(graph.module), planned
        )
        if recompute.prefers(plan_of_other, other.step_time_us, plan, problem.step_time_us):
            records[-1:] = [made, *planned]
            return other, plan_of_other
        said = f"not taken, the plan is no better: {made.changed}"
        records.append(replace(made, changed=said, change=None))
    return problem, plan


def _text(graph: TrainingGraph) -> str:
    return graph_text(graph.graph)


def _split(graph: TrainingGraph, parts: Partition) -> GraphChange:
    """The change from the joint graph to its two parts, which Inductor will rewrite."""
    forward, backward = graph_text(parts.forward.graph), graph_text(parts.backward.graph)
    return GraphChange(
        partial(_text, graph), kept(f"# the forward\n{forward}# the backward\n{backward}")
    )


def _recorded(started: float, name: str, changed: str) -> PassRecord:
    time_us = (time.perf_counter() - started) * 1e6
    log.debug("pass %s, %.1f ms: %s", name, time_us / 1e3, changed)
    return PassRecord(name, time_us, changed)


def _describe(plan: RetentionPlan) -> str:
    if plan.is_default:
        return f"torch's own plan: {len(plan.saved)} values saved"
    often = sum(1 for node in plan.recomputed if plan.times_computed[node] > 2)
    more = f", {often} of them more than once" if often else ""
    text = f"{len(plan.saved)} values saved, {len(plan.recomputed)} operations recomputed{more}"
    return text if plan.order_kept is None else f"{text}; in torch's order: {plan.order_kept}"


def _sizes(parts: Partition) -> str:
    forward, backward = len(parts.forward.graph.nodes), len(parts.backward.graph.nodes)
    return f"forward of {forward} nodes, backward of {backward}"


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """Show a progress line on the terminal if planning takes more than a moment."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()

    def show() -> None:
        started = time.perf_counter()
        while not done.wait(_PROGRESS_AFTER_S):
            elapsed_s = time.perf_counter() - started
            print(f"\rsatcompile {what} ... {elapsed_s:.0f} s", end="", file=sys.stderr, flush=True)

    reporter = threading.Thread(target=show, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()
        print("\r\033[K", end="", file=sys.stderr, flush=True)
