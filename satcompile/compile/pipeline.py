"""The passes in order. A pass sees one graph and its options, nothing global.

Two stages. Joint passes see forward and backward as one graph, and whatever changes what must
be saved belongs there, before ``recompute``, which ends the stage. Backward passes see the
backward graph that came of it. After every pass the invariants are verified.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

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
from satcompile.passes.recompute import Recompute
from satcompile.passes.sparse_forward import SparseForward
from satcompile.passes.sparse_gradients import SparseGradients, SparseParameters
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.retention import RetentionPlan

log = logging.getLogger("satcompile")

_PROGRESS_AFTER_S = 2.0


@dataclass(frozen=True)
class PassRecord:
    """What a report says of a pass.

    Attributes:
        change: the graph before and after, where the pass changed it.
    """

    name: str
    time_us: float
    changed: str
    change: GraphChange | None = None


@dataclass(frozen=True)
class Outcome:
    """What the joint stage made of a graph.

    Attributes:
        problem: of the graph that was planned.
        whole: of the graph without chunks; the same where there are none.
        chunking_us: time that chunks add to the step, before anything is computed again.
    """

    problem: PlanningProblem
    whole: PlanningProblem
    chunking_us: float
    plan: RetentionPlan
    parts: Partition
    passes: tuple[PassRecord, ...]


def sparsify(
    graph: TrainingGraph, gradients: SparseGradients, forward: SparseForward | None
) -> tuple[TrainingGraph, SparseParameters, tuple[PassRecord, ...]]:
    """The first passes of the joint stage, where a model is trained sparsely: they change what the
    graph computes, and so what must be saved.

    Raises:
        VerificationError: with all tiles active, it would not be what it was.
    """
    before = reference(graph.module, dense=True)
    texts = [kept(graph_text(graph.graph))]  # the graph changes in place
    started = time.perf_counter()
    found = gradients.run(graph)
    records = [_recorded(started, gradients.name, _tiled(found))]
    texts.append(kept(graph_text(graph.graph)))
    if forward is not None:
        started = time.perf_counter()
        found = forward.run(graph.graph, graph.primals, found)
        records.append(_recorded(started, forward.name, _masked(found)))
        texts.append(kept(graph_text(graph.graph)))
    records = [
        replace(record, change=GraphChange(*texts[position : position + 2]))
        for position, record in enumerate(records)
    ]
    changed = TrainingGraph(graph.module, graph.num_forward_outputs, graph.static_inputs)
    names = [record.name for record in records]
    check_joint(changed.module, before, names, dense=True)
    check_slots(changed, found, names)
    return changed, found, tuple(records)


def _tiled(found: SparseParameters) -> str:
    gradients_flops = sum(each.gradient_flops for each in found.tiled.values())
    share = gradients_flops / found.total_flops if found.total_flops else 0.0
    return (
        f"gradients of {len(found.tiled)} parameters in tiles ({share:.0%} of the FLOPs), "
        f"{len(found.dense)} parameters dense"
    )


def _masked(found: SparseParameters) -> str:
    masked = sum(each.has_sparse_forward for each in found.tiled.values())
    return f"{masked} of {len(found.tiled)} parameters with a sparse forward"


def run(
    problem: PlanningProblem,
    recompute: Recompute,
    earlier: tuple[PassRecord, ...] = (),
    may_chunk: bool = False,
) -> Outcome:
    """Run the joint stage on one graph, from its last pass on that leaves its meaning alone.

    Args:
        may_chunk: whether the graph may be planned with its vocabulary in chunks, too. The plan
            that fits at the least time is taken.

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
    """A plan for a graph that is not split yet; attributes as in ``Outcome``, and ``before``, the
    planned graph as it was."""

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
        problem, plan = _cheaper_in_chunks(whole, plan, recompute, before, records)
    if problem is not whole:
        chunking_us = problem.step_time_us - whole.step_time_us
        before = reference(problem.graph.module)
    return Decision(problem, whole, chunking_us, plan, tuple(records), before)


def _planned(
    problem: PlanningProblem, recompute: Recompute, before: Reference, records: list[PassRecord]
) -> RetentionPlan:
    """Recompute is the last of the joint passes: it plans for the graph as it will run."""
    started = time.perf_counter()
    with _progress(f"{recompute.name}: planning {len(problem.operations)} operations"):
        plan = recompute.run(problem)
    records.append(_recorded(started, recompute.name, _describe(plan)))
    check_joint(problem.graph.module, before, [r.name for r in records])
    return plan


def _cheaper_in_chunks(
    problem: PlanningProblem,
    plan: RetentionPlan,
    recompute: Recompute,
    before: Reference,
    records: list[PassRecord],
) -> tuple[PlanningProblem, RetentionPlan]:
    """The graph with its vocabulary in chunks and its plan, where that is the better one."""
    started = time.perf_counter()
    chunked_loss = ChunkedLoss(plan.profile.peak_bytes)
    found = chunked_loss.run(problem.graph)
    if found.graph is None:
        records.append(_recorded(started, chunked_loss.name, f"nothing: {found.description}"))
        return problem, plan
    check_rewritten(found.graph.module, before, [r.name for r in records] + [chunked_loss.name])
    chunked = PlanningProblem(found.graph, problem.costs, problem.consumed, problem.tries_operators)
    more_us = chunked.step_time_us - problem.step_time_us
    made = _recorded(started, chunked_loss.name, f"{found.description}; {more_us:+.0f} us")
    planned: list[PassRecord] = []
    other = _planned(
        chunked, replace(recompute, whole=plan), reference(found.graph.module), planned
    )
    if recompute.prefers(other, chunked.step_time_us, plan, problem.step_time_us):
        change = GraphChange(partial(_text, problem.graph), partial(_text, chunked.graph))
        records[-1:] = [replace(made, change=change), *planned]
        return chunked, other
    records.append(replace(made, changed=f"not taken, the plan is no better: {made.changed}"))
    return problem, plan


def _text(graph: TrainingGraph) -> str:
    return graph_text(graph.graph)


def _split(graph: TrainingGraph, parts: Partition) -> GraphChange:
    """The joint graph against the two that came of it, which Inductor will rewrite."""
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
    """A line on the terminal when planning takes longer than a user would wait unasked."""
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
