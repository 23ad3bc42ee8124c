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
from dataclasses import dataclass

from satcompile.partition import Partition, partition
from satcompile.passes.recompute import Recompute
from satcompile.plan import Plan
from satcompile.planning_problem import PlanningProblem
from satcompile.verify import check_joint, check_partition, reference

log = logging.getLogger("satcompile")

_PROGRESS_AFTER_S = 2.0


@dataclass(frozen=True)
class PassRecord:
    """What a report says of a pass."""

    name: str
    time_us: float
    changed: str


@dataclass(frozen=True)
class Outcome:
    plan: Plan
    parts: Partition
    passes: tuple[PassRecord, ...]


def run(problem: PlanningProblem, recompute: Recompute) -> Outcome:
    """Run the joint stage on one graph.

    Raises:
        VerificationError: a pass broke the graph.
    """
    before = reference(problem.graph.module)
    joint_passes = [
        # a sparse forward and a chunked loss belong here: they change what must be saved
        recompute,  # last: it plans for the graph as it will run
    ]
    records: list[PassRecord] = []
    plan: Plan | None = None
    for each in joint_passes:
        started = time.perf_counter()
        with _progress(f"{each.name}: planning {len(problem.operations)} operations"):
            plan = each.run(problem)
        elapsed_us = (time.perf_counter() - started) * 1e6
        records.append(PassRecord(each.name, elapsed_us, _describe(plan)))
        log.debug("pass %s: %s (%.0f ms)", each.name, records[-1].changed, elapsed_us / 1e3)
        check_joint(problem.graph.module, before, [r.name for r in records])
    assert plan is not None
    started = time.perf_counter()
    parts = partition(problem.graph, plan)
    records.append(_since(started, "partition", _sizes(parts)))
    started = time.perf_counter()
    check_partition(before, parts, plan, problem, [r.name for r in records])
    records.append(_since(started, "verify", "every emitted value is one of the joint graph's"))
    return Outcome(plan, parts, tuple(records))


def _since(started: float, name: str, changed: str) -> PassRecord:
    return PassRecord(name, (time.perf_counter() - started) * 1e6, changed)


def _describe(plan: Plan) -> str:
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
