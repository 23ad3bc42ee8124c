"""Plans that are changed a computation at a time, against replays of the whole."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from satcompile.solver import Problem
from satcompile.solver.graphs import incremental
from satcompile.solver.graphs.annealing import Annealing
from satcompile.solver.graphs.problem import loads
from satcompile.solver.graphs.schedule import sequence_of
from tests.solver.problems import problems

several = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def assert_up_to_date(plan: incremental.Plan, problem: Problem, limit_bytes: int) -> None:
    length, again, over, _ = plan.numbers
    keys = [divmod(int(key), len(problem)) for key in plan.again[:again]]
    found = loads(problem, sequence_of(problem, keys))
    assert plan.load[:length].tolist() == found
    assert over == sum(max(0, num_bytes - limit_bytes) for num_bytes in found)
    assert np.all(np.diff(plan.key[:length]) > 0)


@several
@given(problems(), st.data())
def test_changes_keep_bytes_up_to_date_and_can_be_taken_back(
    problem: Problem, data: st.DataObject
) -> None:
    n, limit_bytes = len(problem), problem.peak_bytes * 3 // 4
    graph, plan = incremental.graph_of(problem, limit_bytes), incremental.empty_plan(problem)
    assert incremental.fill(plan, problem, limit_bytes, [])
    for _ in range(data.draw(st.integers(1, 4))):
        before = plan.load.copy(), set(plan.again[: plan.numbers[incremental.AGAIN]].tolist())
        plan.numbers[incremental.CHANGES] = 0
        for _ in range(data.draw(st.integers(1, 5))):
            again = plan.again[: plan.numbers[incremental.AGAIN]].tolist()
            if again and data.draw(st.booleans()):
                stage, node = divmod(data.draw(st.sampled_from(again)), n)
                assert incremental.take(graph, plan, n, node, stage)
            else:
                stage = data.draw(st.integers(1, n - 1))
                incremental.put(graph, plan, n, data.draw(st.integers(0, stage - 1)), stage)
            assert_up_to_date(plan, problem, limit_bytes)
        if data.draw(st.booleans()):
            incremental.take_back(graph, plan, n)
            length = plan.numbers[incremental.LENGTH]
            assert plan.load[:length].tolist() == before[0][:length].tolist()
            assert set(plan.again[: plan.numbers[incremental.AGAIN]].tolist()) == before[1]
            assert_up_to_date(plan, problem, limit_bytes)


@several
@given(problems(), st.integers(0, 1_000))
def test_a_search_ends_in_a_plan_that_is_what_it_says(problem: Problem, seed: int) -> None:
    limit_bytes = problem.peak_bytes * 9 // 10
    search = Annealing(problem, limit_bytes, max(problem.total_time, 1) / 100, seed)
    search.run(300, 1.0, 0.01)
    assert_up_to_date(search._plan, problem, limit_bytes)
    if search.best is not None:
        sequence = sequence_of(problem, search.best)
        assert max(loads(problem, sequence)) <= limit_bytes
        assert sum(problem.times[node] for _, node in search.best) == search.best_time


def test_a_plan_with_more_recomputations_than_there_is_room_for_is_left_alone() -> None:
    count = 40
    chain = Problem.from_dict(
        {
            "times": [1.0] * count,
            "bytes": [1] * count,
            "edges": [[i, i + 1] for i in range(count - 1)],
        }
    )
    search = Annealing(chain, 2, 1.0)
    search.start([(stage, 0) for stage in range(1, 20)])
    assert search.best == []
