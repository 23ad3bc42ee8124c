"""The solver on rematerialization problems: time, bound and gap at given budgets.

Solves every problem of a folder (JSON, see docs/solver.md); without one, problems that are made
up (``benchmarks.problems``). Budgets are as for ``satcompile solve``. Beside the results stand
those published for the same problems, which are known by the names of their files:

- Checkmate's program (Jain et al., MLSys 2020) and MOCCASIN, as reported in MOCCASIN (Bartan et
  al., ICML 2023), in their order of first computations;
- FastSA (Imanishi et al., "A fast heuristic to optimize time-space tradeoff for large models",
  NeurIPS 2023), which may change the order: to be compared with the column for free order only.

    python -m benchmarks.solver [FOLDER] [--budget 80% 60% floor+10%] [--time-limit 60]
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from benchmarks import processor, write_results
from benchmarks.problems import load_folder, save_folder, suite
from satcompile.commands.solve import read_budget
from satcompile.solver import Infeasible, Problem, Schedule, solve

# Extra time in % and seconds, at 80% of the peak without recomputation.
PUBLISHED_BUDGET = "80%"
PUBLISHED: dict[str, dict[str, str]] = {
    "random_layered_100": {"checkmate": "2.3 / 22.7", "moccasin": "2.3 / 9.5", "fastsa": "0.3 / 11.5"},
    "random_layered_250": {"moccasin": "4.9 / 640", "fastsa": "0.0 / 15.0"},
    "random_layered_500": {"moccasin": "3.4 / 1805", "fastsa": "2.3 / 20.9"},
    "fcn8_b32": {"checkmate": "0.1 / 5.6", "moccasin": "0.1 / 3.1", "fastsa": "0.1 / 9.7"},
    "resnet50_b256": {"checkmate": "0.3 / 485", "moccasin": "0.3 / 69", "fastsa": "0.4 / 10.9"},
}  # fmt: skip
ROUNDING = 0.05  # published figures have one decimal


@dataclass(frozen=True)
class Row:
    """One problem at one budget.

    Attributes:
        extra_pct, bound_pct, gap_pct: time in percent of the sum of the problem's times.
        proven: the least of any schedule, or of those that recompute in order; or none fits.
        again: how many recomputations.
        free_pct: extra time where first computations may change their order.
        checkmate, moccasin, fastsa: published, extra time in percent / seconds.
    """

    problem: str
    nodes: int
    budget: str
    of_peak: str
    extra_pct: float | None
    bound_pct: float | None
    gap_pct: float | None
    proven: str
    seconds: float | None
    again: int | None
    free_pct: float | None
    checkmate: str | None
    moccasin: str | None
    fastsa: str | None


def row_of(problem: Problem, budget: str, time_limit_s: float, seed: int, free_order: bool) -> Row:
    budget_bytes = read_budget(budget, problem)
    found = answer(problem, budget_bytes, time_limit_s, seed)
    reordered = None
    if free_order and (isinstance(found, Schedule) or not found.proven):
        reordered = free_order_percent(problem, budget_bytes, time_limit_s, seed)
    published = PUBLISHED.get(problem.name, {}) if budget == PUBLISHED_BUDGET else {}
    schedule = found if isinstance(found, Schedule) else None
    return Row(
        problem=problem.name,
        nodes=len(problem),
        budget=budget,
        of_peak=f"{100 * budget_bytes / problem.peak_bytes:.1f}%",
        extra_pct=None if schedule is None else percent(schedule.extra_time, problem),
        bound_pct=None if schedule is None else percent(schedule.bound_extra_time, problem),
        gap_pct=None if schedule is None else round(100 * schedule.gap, 3),
        proven=what_is_proven(found),
        seconds=None if schedule is None else round(schedule.time_s, 1),
        again=None if schedule is None else len(schedule.sequence) - len(problem),
        free_pct=reordered,
        checkmate=published.get("checkmate"),
        moccasin=published.get("moccasin"),
        fastsa=published.get("fastsa"),
    )


def answer(
    problem: Problem, budget_bytes: int, time_limit_s: float, seed: int
) -> Schedule | Infeasible:
    try:
        return solve(problem, budget_bytes, time_limit_s, seed)
    except Infeasible as error:
        return error


def free_order_percent(
    problem: Problem, budget_bytes: int, time_limit_s: float, seed: int
) -> float | None:
    """Extra time where first computations may change their order; None where none is found."""
    try:
        schedule = solve(problem, budget_bytes, time_limit_s, seed, free_order=True)
    except (Infeasible, ImportError, NotImplementedError):
        return None
    return percent(schedule.extra_time, problem)


def percent(time: float, problem: Problem) -> float:
    return round(100 * time / (problem.total_time or 1.0), 3)


def what_is_proven(found: Schedule | Infeasible) -> str:
    if isinstance(found, Infeasible):
        return "none fits" if found.proven else "none found"
    if not found.proven:
        return "no"
    return "least" if found.bound_kind.startswith("any") else "least in order"


def missed_goals(rows: Sequence[Row]) -> list[str]:
    """Where a published schedule with the same order takes less time."""
    missed = []
    for row in rows:
        for name in ("checkmate", "moccasin"):
            published = getattr(row, name)
            if published is None:
                continue
            least = float(published.partition(" / ")[0])
            if row.extra_pct is None or row.extra_pct > least + ROUNDING:
                missed.append(f"{row.problem} at {row.budget}: {row.extra_pct}%, {name} {least}%")
    return missed


def environment() -> dict[str, str | int | None]:
    """As ``benchmarks.environment``, without torch, which has no part in this."""
    packages = ("satcompile", "numpy", "scipy", "numba")
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "processor": processor(),
        "cores": os.cpu_count(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of problems; made up where left out")
    parser.add_argument("--budget", nargs="+", default=["80%", "60%"])
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=10**9, help="leave out larger problems")
    parser.add_argument("--free-order", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--save-problems", type=Path, help="a folder to write the problems to")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    problems = suite() if asked.folder is None else load_folder(asked.folder)
    problems = [problem for problem in problems if len(problem) <= asked.nodes]
    if not problems:
        parser.error(f"{asked.folder or 'the suite'} has no problem of that size")
    if asked.save_problems is not None:
        save_folder(problems, asked.save_problems)
    rows = []
    for problem in sorted(problems, key=len):
        for budget in asked.budget:
            row = row_of(problem, budget, asked.time_limit, asked.seed, asked.free_order)
            print(f"{row.problem} {budget}: {row.extra_pct}% ({row.proven})", flush=True)
            rows.append(row)
    missed = missed_goals(rows)
    facts = environment() | {
        "time_limit": f"{asked.time_limit:g} s",
        "seed": asked.seed,
        "problems": "made up" if asked.folder is None else asked.folder.name,
    }
    write_results("solver", [asdict(row) for row in rows], facts, missed, asked.output)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
