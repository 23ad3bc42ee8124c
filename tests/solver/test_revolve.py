"""Chains with equal costs, against the closed form of Griewank and Walther's Revolve (ACM TOMS
26(1), 2000).

To reverse l steps with s snapshots, the initial state in one of them, takes at least

    t(l, s) = r l - beta(s + 1, r - 1),  beta(s, r) = C(s + r, s),  beta(s, r-1) < l <= beta(s, r)

evaluations of steps, those of the first sweep (l - 1) included. There a step works in place beside
the snapshots; here its result is made beside what it reads. The two are made the same so:

- States x_0..x_{l-1} of one byte; x_i reads x_{i-1}. Adjoints b_l..b_1 of one byte; b_i reads
  x_{i-1} and b_{i+1}. The first of them reads a seed, which is there from the start on, so that
  one adjoint is alive at any time. x_0, seed and adjoints take so long that they are never made
  twice.
- While a state is made, there are an adjoint, the new state and others; while an adjoint is made,
  there are two adjoints and states. With s + 3 bytes the former has room for s + 1 states beside
  the new one, the latter for s + 1 states: between any two computations any s + 1 states can be
  there, as s snapshots and the state that Revolve works on can be any.
"""

from __future__ import annotations

from math import comb

import pytest

from satcompile.solver import Infeasible, Problem, solve
from tests.solver.oracle import least_extra_time, lowest_peak

NEVER_AGAIN = 100  # time of what is not to be made twice: more than all steps that could be saved


def evaluations(steps: int, snapshots: int) -> int:
    """t(l, s)."""
    repeats = 1
    while comb(snapshots + repeats, snapshots) < steps:
        repeats += 1
    return repeats * steps - comb(snapshots + repeats, snapshots + 1)


def chain(steps: int) -> Problem:
    """The seed, the states, the adjoints."""
    count = 2 * steps + 1
    edges = [[i, i + 1] for i in range(1, count - 1)]  # also x_{l-1} -> b_l, b_{i+1} -> b_i
    edges += [[0, steps + 1]]
    edges += [[state + 1, count - 1 - state] for state in range(steps - 1)]  # x_{i-1} -> b_i
    times = [NEVER_AGAIN, NEVER_AGAIN, *[1] * (steps - 1), *[NEVER_AGAIN] * steps]
    return Problem.from_dict({"times": times, "bytes": [1] * count, "edges": edges})


def budget_bytes(snapshots: int) -> int:
    return snapshots + 3


def test_the_closed_form_is_that_of_the_recursion() -> None:
    def least(steps: int, snapshots: int) -> int:
        if steps == 1:
            return 0
        if snapshots == 1:
            return steps * (steps - 1) // 2
        return min(
            k + least(steps - k, snapshots - 1) + least(k, snapshots) for k in range(1, steps)
        )

    for steps in range(1, 10):
        for snapshots in range(1, 5):
            assert evaluations(steps, snapshots) == least(steps, snapshots)


@pytest.mark.parametrize(
    ("steps", "snapshots"), [(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3), (5, 1), (5, 2)]
)
def test_the_closed_form_is_that_of_all_schedules(steps: int, snapshots: int) -> None:
    extra = least_extra_time(chain(steps), budget_bytes(snapshots))
    assert extra == evaluations(steps, snapshots) - (steps - 1)


@pytest.mark.parametrize(
    ("steps", "snapshots"),
    [(3, 1), (4, 1), (5, 2), (6, 1), (6, 2), (7, 3), (8, 2), (9, 3), (10, 4)],
)
def test_chains_are_solved_to_the_closed_form(steps: int, snapshots: int) -> None:
    schedule = solve(chain(steps), budget_bytes(snapshots), time_limit_s=20)
    assert schedule.extra_time == evaluations(steps, snapshots) - (steps - 1)
    assert schedule.bound_extra_time <= schedule.extra_time + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "snapshots"), [(10, 2), (16, 2), (16, 3), (20, 4), (24, 4), (40, 6)]
)
def test_longer_chains_are_solved_to_the_closed_form(steps: int, snapshots: int) -> None:
    schedule = solve(chain(steps), budget_bytes(snapshots), time_limit_s=20)
    assert schedule.extra_time == evaluations(steps, snapshots) - (steps - 1)


def test_without_a_snapshot_the_initial_state_cannot_be_kept() -> None:
    problem = chain(3)
    assert lowest_peak(problem) <= budget_bytes(0)  # by making the initial state again
    try:
        assert solve(problem, budget_bytes(0), time_limit_s=1).extra_time >= NEVER_AGAIN
    except Infeasible as error:
        assert not error.proven
