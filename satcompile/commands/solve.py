"""``satcompile solve``: a rematerialization problem from a file, and its schedule."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from rich.console import Console

from satcompile.sizes import format_bytes, read_size
from satcompile.solver import Infeasible, Problem, ProblemError, Progress, Schedule, solve
from satcompile.solver.graphs.floors import floor_bytes

INTERRUPTED = 130  # as in shells: 128 plus the number of the signal
BUDGET_FORMS = '"60%" (of the peak without recomputation), "8GiB", "800MB", bytes or "floor+10%"'
_SHARE = r"\s*(\d+(?:\.\d+)?)\s*%\s*"
_ABOVE_FLOOR = rf"\s*floor\s*(?:\+{_SHARE})?\s*"
_LOOK_S = 0.1


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        path: of the problem, as JSON.
        budget: one of ``BUDGET_FORMS``.
        time_limit_s, seed, free_order: see ``satcompile.solver.graphs.solve``.
        schedule_path: where the schedule is written; None for nowhere.
    """

    path: Path
    budget: str
    time_limit_s: float = 60.0
    seed: int = 0
    free_order: bool = False
    schedule_path: Path | None = None


def run(settings: Settings) -> int:
    """Solve, print a summary, write the schedule; returns the command's exit code."""
    search: _Search | None = None
    try:
        problem = Problem.load(settings.path)
        budget_bytes = read_budget(settings.budget, problem)
        search = _Search(problem, budget_bytes, settings)
        schedule = search.run()
        if settings.schedule_path is not None:
            settings.schedule_path.write_text(json.dumps(schedule_data(schedule)) + "\n")
    except (OSError, ValueError, Infeasible) as error:
        return _refused(_line(error, settings), 1)
    except KeyboardInterrupt:
        _refused(f"interrupted{search.standing() if search else ''}", INTERRUPTED)
        # The search goes on in its thread, and HiGHS in threads of its own. If the interpreter is
        # shut down while they run, C++ may abort the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    print(summary(schedule))
    return 0


def read_budget(text: str, problem: Problem) -> int:
    """Bytes that a budget's text means for a problem, rounded down.

    Raises:
        ValueError: it is none of ``BUDGET_FORMS``.
    """
    share = re.fullmatch(_SHARE, text)
    above_floor = re.fullmatch(_ABOVE_FLOOR, text, re.IGNORECASE)
    if share:
        return int(problem.peak_bytes * Fraction(share[1]) / 100)
    if above_floor:
        return int(floor_bytes(problem) * (1 + Fraction(above_floor[1] or 0) / 100))
    try:
        return read_size(text)
    except ValueError:
        raise ValueError(f"the budget is {text!r}; it takes {BUDGET_FORMS}") from None


def schedule_data(schedule: Schedule) -> dict[str, object]:
    """A schedule as data for JSON; times are in the problem's unit, the gap is a share of their
    sum."""
    return {
        "name": schedule.problem.name,
        "budget_bytes": schedule.budget_bytes,
        "peak_bytes": schedule.peak_bytes,
        "extra_time": schedule.extra_time,
        "bound_extra_time": schedule.bound_extra_time,
        "bound_kind": schedule.bound_kind,
        "gap": schedule.gap,
        "proven": schedule.proven,
        "time_s": schedule.time_s,
        "sequence": list(schedule.sequence),
    }


def summary(schedule: Schedule) -> str:
    """The facts about a schedule, one per line."""
    problem = schedule.problem
    recomputed = sum(times > 1 for times in Counter(schedule.sequence).values())
    recomputations = len(schedule.sequence) - len(problem)
    facts = {
        "problem": f"{problem.name or '(no name)'}, {len(problem):,} nodes",
        "peak without recomputation": _bytes(problem.peak_bytes),
        "budget": _bytes(schedule.budget_bytes) + _share(schedule.budget_bytes, problem),
        "floor": f"{_bytes(floor_bytes(problem))}; no schedule has a lower peak",
        "peak": _bytes(schedule.peak_bytes) + _share(schedule.peak_bytes, problem),
        "extra time": f"{_percent(schedule.extra_time, problem)} of the sum of times",
        "lower bound": f"{_percent(schedule.bound_extra_time, problem)} for {schedule.bound_kind}",
        "gap": f"{100 * schedule.gap:.3f}%, {'proven least' if schedule.proven else 'not proven'}",
        "recomputations": f"{recomputations:,} of {recomputed:,} nodes",
        "time": f"{schedule.time_s:.1f} s",
    }
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {fact}" for name, fact in facts.items())


@dataclass
class _Search:
    """``solve`` in its own thread, so that the caller's thread can watch and be interrupted."""

    problem: Problem
    budget_bytes: int
    settings: Settings
    _latest: Progress | None = None
    _found: list[Schedule] = field(default_factory=list)
    _failed: list[BaseException] = field(default_factory=list)

    def run(self) -> Schedule:
        thread = threading.Thread(target=self._solve, name="solve", daemon=True)
        thread.start()
        console = Console(stderr=True)
        with console.status("solving") as status:  # shows nothing if stderr is no terminal
            while thread.is_alive():
                thread.join(_LOOK_S)
                status.update(f"solving{self.standing()}")
        if self._failed:
            raise self._failed[0]
        return self._found[0]

    def standing(self) -> str:
        """Where the search stands, for the end of a line."""
        at = self._latest
        if at is None:
            return ""
        bound = f"bound {_percent(at.bound_extra_time, self.problem)}"
        if at.extra_time == float("inf"):
            return f" after {at.time_s:.0f} s: nothing that fits yet, {bound}"
        gap = _percent(max(0.0, at.extra_time - at.bound_extra_time), self.problem)
        best = _percent(at.extra_time, self.problem)
        return f" after {at.time_s:.0f} s: best extra time {best}, {bound}, gap {gap}"

    def _solve(self) -> None:
        try:
            self._found.append(self._schedule())
        except BaseException as error:
            self._failed.append(error)

    def _schedule(self) -> Schedule:
        asked = self.settings
        return solve(
            self.problem,
            self.budget_bytes,
            asked.time_limit_s,
            asked.seed,
            free_order=asked.free_order,
            progress=self._note,
        )

    def _note(self, progress: Progress) -> None:
        self._latest = progress


def _refused(line: str, code: int) -> int:
    print(f"satcompile: {line}", file=sys.stderr)
    return code


def _line(error: Exception, settings: Settings) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or settings.path}: {error.strerror or error}"
    if isinstance(error, ProblemError):
        return f"{settings.path}: {error}"
    return str(error)


def _bytes(num_bytes: int) -> str:
    return f"{format_bytes(num_bytes)} ({num_bytes:,} bytes)"


def _share(num_bytes: int, problem: Problem) -> str:
    peak_bytes = problem.peak_bytes
    return f", {num_bytes / peak_bytes:.1%} of what no recomputation takes" if peak_bytes else ""


def _percent(time: float, problem: Problem) -> str:
    return f"{100 * time / (problem.total_time or 1.0):.3f}%"
