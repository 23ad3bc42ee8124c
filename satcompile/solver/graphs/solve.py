"""The entry for published problems: a schedule of least time within a budget."""

from __future__ import annotations

from collections.abc import Callable

from satcompile.solver.graphs.problem import Problem
from satcompile.solver.graphs.race import Progress, Race
from satcompile.solver.graphs.reorder import reordered
from satcompile.solver.graphs.schedule import Schedule

_DEFAULT_LIMIT_S = 60.0


def solve(
    problem: Problem,
    budget_bytes: int,
    time_limit_s: float | None = None,
    seed: int = 0,
    *,
    free_order: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Schedule:
    """The schedule of least time within a budget, or the best found in the time given.

    Args:
        problem: nodes in the order of their first computation.
        budget_bytes: for the results of nodes; ``problem.fixed_bytes`` are not counted.
        time_limit_s: 60 s where None. A second may come on top, and in a new installation the
            time to compile the search, once.
        seed: of the search. How far it gets depends on the machine all the same.
        free_order: first computations may change their order, as far as edges allow. The bound is
            then zero, as none is known.
        progress: called a few times a second, from another thread too.

    Raises:
        Infeasible: no schedule within the budget was found; ``.proven`` says whether none exists.
        ValueError: the budget is not a whole number from 0 on.
    """
    if isinstance(budget_bytes, bool) or budget_bytes != int(budget_bytes) or budget_bytes < 0:
        raise ValueError(f"a budget is a whole number of bytes from 0 on, not {budget_bytes!r}")
    if free_order:
        return reordered(problem, int(budget_bytes), time_limit_s or _DEFAULT_LIMIT_S, seed)
    race = Race(problem, int(budget_bytes), time_limit_s or _DEFAULT_LIMIT_S, seed, progress)
    return race.run()
