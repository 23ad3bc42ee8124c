"""How far plans within a budget are from their proven bound, over five models.

The joint graphs of ``plan_quality``, at budgets that are shares of the simulated peak of torch's own
plan: time added, the bound, and the gap between them, all in percent of the forward's time.
Nothing is executed. A gap of 0 below the lowest peak says that a lower one was proven impossible.

    python -m benchmarks.plan_gaps [--models gpt2 ...] [--before earlier/plan_gaps.json]

``--before`` sets the gaps of an earlier result beside those of this tree.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import transformers

from benchmarks import environment, write_results
from benchmarks.plan_quality import DEVICE, WORKLOADS, trace
from satcompile.graph.training_graph import TrainingGraph
from satcompile.planner.cost.device import known_gpu
from satcompile.planner.cost.roofline import CostModel
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.recompute import Recompute

SHARES = (0.8, 0.6, 0.5, 0.4)


@dataclass(frozen=True)
class Row:
    """Times in percent of the forward's; peaks in shares of the default's."""

    model: str
    budget: float
    fits: bool
    peak: float
    added_percent: float
    bound_percent: float
    gap_percent: float
    planning_s: float
    added_before_percent: float | None = None
    gap_before_percent: float | None = None


def rows_of(name: str, graph: TrainingGraph, shares: Sequence[float]) -> Iterator[Row]:
    problem = PlanningProblem(graph, CostModel(known_gpu(DEVICE)))
    default_bytes = Recompute(None).run(problem).default_profile.peak_bytes
    percent = 100 / problem.forward_time_us
    for share in shares:
        limit_bytes = int(share * default_bytes)
        started_s = time.perf_counter()
        plan = Recompute(limit_bytes).run(problem)
        seconds = time.perf_counter() - started_s
        yield Row(
            name,
            share,
            plan.profile.peak_bytes <= limit_bytes,
            round(plan.profile.peak_bytes / default_bytes, 3),
            round(plan.time_us * percent, 2),
            round(plan.bound_us * percent, 2),
            round((plan.time_us - plan.bound_us) * percent, 2),
            round(seconds, 1),
        )


def beside(rows: Sequence[Row], earlier: Path) -> list[Row]:
    """The rows with an earlier result's figures for the same model and budget."""
    old = {(r["model"], r["budget"]): r for r in json.loads(earlier.read_text())["rows"]}
    found = []
    for row in rows:
        was = old.get((row.model, row.budget), {})
        data = asdict(row) | {
            "added_before_percent": was.get("added_percent"),
            "gap_before_percent": was.get("gap_percent"),
        }
        found.append(Row(**data))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--before", type=Path, help="an earlier plan_gaps.json")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    rows = [
        row for name in asked.models for row in rows_of(name, trace(WORKLOADS[name]), asked.shares)
    ]
    if asked.before is not None:
        rows = beside(rows, asked.before)
    write_results("plan_gaps", [asdict(row) for row in rows], environment(), [], asked.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
