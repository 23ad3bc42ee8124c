"""Relaxations read as schedules: problems on which a reading that is not exact finds nothing."""

from __future__ import annotations

import pytest

from satcompile.solver import Problem, solve
from satcompile.solver.graphs.residency import decode
from tests.solver.oracle import least_extra_time_in_order, replay_sequence

CASES = {
    "what a moment inside a stage drops is made again behind it": (
        [0, 5, 2, 1, 5, 5, 3, 0],
        [6, 6, 3, 2, 4, 6, 2, 6],
        [[0, 1], [1, 2], [2, 3], [2, 5], [4, 5], [1, 6], [4, 6], [5, 6], [6, 7]],
        18,
    ),
    "what is made early has to be there early": (
        [0, 5, 4, 5, 2, 3, 1],
        [6, 2, 6, 4, 6, 4, 6],
        [[0, 1], [0, 2], [2, 3], [3, 4], [1, 5], [4, 5], [5, 6]],
        13,
    ),
    "a reading that fits takes more time than the solution": (
        [4, 2, 1, 3, 1, 3, 2, 0, 3],
        [5, 3, 2, 5, 3, 4, 6, 3, 3],
        [
            [0, 1],
            [0, 2],
            [1, 2],
            [1, 3],
            [2, 3],
            [3, 4],
            [3, 5],
            [4, 5],
            [2, 6],
            [5, 6],
            [1, 7],
            [4, 7],
            [6, 7],
            [2, 8],
            [7, 8],
        ],
        17,
    ),
    "what a stage makes for itself it may drop again": (
        [4, 2, 4, 0, 3, 5, 2],
        [5, 5, 4, 5, 4, 1, 1],
        [[0, 1], [1, 2], [2, 4], [3, 4], [1, 5], [3, 5], [4, 5], [0, 6], [5, 6]],
        16,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_last_relaxation_reads_as_a_schedule_that_fits(name: str) -> None:
    times, num_bytes, edges, budget_bytes = CASES[name]
    problem = Problem.from_dict({"times": times, "bytes": num_bytes, "edges": edges})
    schedule = solve(problem, budget_bytes, time_limit_s=10)
    assert schedule.proven
    assert schedule.extra_time == least_extra_time_in_order(problem, budget_bytes)
    assert replay_sequence(problem, schedule.sequence).peak_bytes <= budget_bytes


CHAIN = Problem.from_dict(
    {"times": [1] * 5, "bytes": [1] * 5, "edges": [[0, 1], [1, 2], [2, 3], [0, 3], [0, 4], [3, 4]]}
)


def test_what_is_dropped_at_a_moment_is_made_again_for_its_next_reader() -> None:
    assert decode(CHAIN, {(2, 2): frozenset({1})}) == [(3, 0)]


def test_late_recomputation_waits_for_a_reader_and_early_does_not() -> None:
    resident = {(1, 1): frozenset[int](), (2, 2): frozenset({0, 1})}
    chain = Problem.from_dict(
        {"times": [1] * 4, "bytes": [1] * 4, "edges": [[1, 2], [0, 3], [2, 3]]}
    )
    assert decode(chain, resident) == [(3, 0)]
    assert decode(chain, resident, early=True) == [(2, 0)]
