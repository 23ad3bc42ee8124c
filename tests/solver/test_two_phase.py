"""The two-phase solver against every subset of saved values, judged by an evaluation of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satcompile.solver.training import demands, two_phase
from satcompile.solver.training.two_phase import Infeasible, Operation, Problem, Value, solve

# Each example calls HiGHS, which takes milliseconds at best.
few = settings(max_examples=120, deadline=None)

SMALL_BYTES = st.integers(0, 12)
# Sizes of real tensors, some a few bytes apart: the limit must hold to the byte all the same.
REAL_BYTES = st.builds(
    lambda base, more: base + more, st.sampled_from([0, 4, 2**20, 2**30]), st.integers(0, 64)
)


@st.composite
def problems(draw, num_bytes=SMALL_BYTES):
    """Up to eight operations in a random graph, some with two results."""
    operations, values = [], []
    for index in range(draw(st.integers(1, 8))):
        earlier = list(range(len(values)))
        reads = draw(st.lists(st.sampled_from(earlier), max_size=3, unique=True)) if earlier else []
        recomputable = draw(st.sampled_from([True, True, True, False]))
        time_us = float(draw(st.integers(0, 20)))
        operations.append(Operation(f"op {index}", time_us, tuple(reads), recomputable))
        for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
            values.append(
                Value(
                    producer=index,
                    num_bytes=draw(num_bytes),
                    needed=draw(st.booleans()),
                    saveable=draw(st.sampled_from([True, True, True, True, False])),
                    save_time_us=float(draw(st.sampled_from([0, 0, 1, 3]))),
                    materialize_time_us=float(draw(st.sampled_from([0, 0, 2, 5]))),
                )
            )
    return Problem(operations, [draw_readers(draw, operations, i, v) for i, v in enumerate(values)])


def draw_readers(draw, operations, index, value):
    """Which of the value's readers cannot fuse it."""
    readers = [r for r, operation in enumerate(operations) if index in operation.reads]
    unfused = draw(st.lists(st.sampled_from(readers), unique=True)) if readers else []
    unfused_backward = value.needed and draw(st.booleans())
    return replace(value, unfused_backward=unfused_backward, unfused_readers=tuple(unfused))


def time_of(problem: Problem, saved: frozenset[int]) -> float | None:
    """What saving exactly ``saved`` costs; None where the backward lacks something then."""
    again: set[int] = set()
    while True:  # grow the operations that run again until everything that is read is there
        read = {i for i, v in enumerate(problem.values) if v.needed}
        read |= {i for operation in again for i in problem.operations[operation].reads}
        missing = {problem.values[i].producer for i in read - saved} - again
        if not missing:
            break
        again |= missing
    if not all(problem.operations[o].recomputable for o in again):
        return None
    time_us = sum(problem.operations[o].time_us for o in again)
    time_us += sum(problem.values[i].save_time_us for i in saved)
    for i, value in enumerate(problem.values):
        unfused = value.unfused_backward or bool(again & set(value.unfused_readers))
        if i not in saved and value.producer in again and unfused:
            time_us += value.materialize_time_us
    return time_us


def least_time(problem: Problem, limit_bytes: int) -> float | None:
    saveable = [i for i, value in enumerate(problem.values) if value.saveable]
    times = [
        time_of(problem, frozenset(saved))
        for count in range(len(saveable) + 1)
        for saved in combinations(saveable, count)
        if sum(problem.values[i].num_bytes for i in saved) <= limit_bytes
    ]
    return min((time for time in times if time is not None), default=None)


def check_against_every_subset(problem: Problem, limit_bytes: int) -> None:
    best = least_time(problem, limit_bytes)
    if best is None:
        with pytest.raises(Infeasible):
            solve(problem, limit_bytes)
        return
    found = solve(problem, limit_bytes)
    assert found.time_us == pytest.approx(best, abs=1e-6)
    assert time_of(problem, found.saved) == pytest.approx(found.time_us)
    assert found.saved_bytes == sum(problem.values[i].num_bytes for i in found.saved)
    assert found.saved_bytes <= limit_bytes
    assert found.bound_us <= found.time_us
    assert found.bound_us == pytest.approx(best, abs=1e-4)
    assert all(problem.values[i].saveable for i in found.saved)
    assert all(problem.operations[o].recomputable for o in found.recomputed)


@few
@given(problems(), st.integers(0, 60))
def test_the_optimum_is_that_of_every_subset(problem, limit_bytes):
    check_against_every_subset(problem, limit_bytes)


@few
@given(problems(), st.integers(0, 60))
def test_so_is_that_of_the_program_for_graphs_with_too_many_demands(problem, limit_bytes):
    with mock.patch.object(demands, "expand", return_value=None):
        check_against_every_subset(problem, limit_bytes)


@settings(max_examples=60, deadline=None)
@given(problems(num_bytes=REAL_BYTES), st.data())
def test_the_limit_holds_to_the_byte_at_sizes_of_real_tensors(problem, data):
    # A byte below what some choice saves is where rounding would show.
    some = data.draw(st.sets(st.sampled_from(range(len(problem.values)))))
    limit_bytes = max(0, sum(problem.values[i].num_bytes for i in some) - 1)
    # A solver that counts in floating point may forgo choices this close to the limit.
    close_bytes = max(v.num_bytes for v in problem.values) // 100_000
    best, easily = (least_time(problem, limit_bytes - less) for less in (0, close_bytes))
    try:
        found = solve(problem, limit_bytes)
    except Infeasible:
        assert easily is None
        return
    assert found.saved_bytes <= limit_bytes
    assert best is not None
    assert found.bound_us <= best + 1e-4
    assert best - 1e-6 <= found.time_us
    assert easily is None or found.time_us <= easily + 1e-6


@few
@given(problems(), st.integers(0, 40), st.integers(0, 40))
def test_a_higher_limit_never_costs_time(problem, limit_bytes, more_bytes):
    try:
        tight = solve(problem, limit_bytes)
    except Infeasible:
        return
    assert solve(problem, limit_bytes + more_bytes).time_us <= tight.time_us + 1e-6


@few
@given(problems(), st.data())
def test_evaluate_agrees_with_the_definition(problem, data):
    saveable = [i for i, value in enumerate(problem.values) if value.saveable]
    saved = frozenset(data.draw(st.sets(st.sampled_from(saveable)))) if saveable else frozenset()
    expected = time_of(problem, saved)
    if expected is None:
        with pytest.raises(Infeasible):
            two_phase.evaluate(problem, saved)
        return
    assert two_phase.evaluate(problem, saved).time_us == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(0, 60), st.floats(0, 10))
def test_a_gap_is_honoured(problem, limit_bytes, gap_us):
    best = least_time(problem, limit_bytes)
    if best is None:
        return
    found = solve(problem, limit_bytes, gap_us)
    assert best - 1e-6 <= found.time_us <= best + gap_us + 1e-6
    assert found.bound_us <= best + 1e-4


# -- exact numbers ---------------------------------------------------------------------------


def chain(*times: float, num_bytes: int = 10) -> Problem:
    """Operation i reads value i - 1 and makes value i, which the backward reads."""
    operations = [
        Operation(f"op {i}", time_us, (i - 1,) if i else ()) for i, time_us in enumerate(times)
    ]
    return Problem(operations, [Value(i, num_bytes, needed=True) for i in range(len(times))])


def test_with_room_for_everything_nothing_is_recomputed():
    found = solve(chain(1, 2, 3), 30)
    assert (found.saved, found.recomputed, found.time_us) == ({0, 1, 2}, frozenset(), 0)


def test_with_room_for_one_the_dearest_is_saved():
    found = solve(chain(1, 5, 3), 10)
    assert (found.saved, found.time_us, found.saved_bytes) == ({1}, 4, 10)


def test_with_no_room_everything_runs_again():
    found = solve(chain(1, 2, 3), 0)
    assert (found.saved, found.recomputed, found.time_us) == (frozenset(), {0, 1, 2}, 6)


def test_what_may_not_run_again_is_saved_first():
    problem = chain(1, 5, 3)
    operations = [replace(problem.operations[0], recomputable=False), *problem.operations[1:]]
    assert solve(Problem(operations, problem.values), 10).saved == {0}
    with pytest.raises(Infeasible):
        solve(Problem(operations, problem.values), 9)


def test_a_value_that_stays_alive_anyway_costs_no_bytes():
    values = [Value(0, 0, needed=True), Value(1, 10, needed=True)]
    problem = Problem(chain(1, 2).operations, values)
    assert solve(problem, 0).time_us == 2


def test_one_run_of_an_operation_gives_both_its_results():
    problem = Problem([Operation("split", 4, ())], [Value(0, 10, True), Value(0, 10, True)])
    assert solve(problem, 10).time_us == 4
    assert solve(problem, 20).time_us == 0


def test_materializing_is_paid_only_for_readers_that_cannot_fuse():
    fused = Value(0, 10, needed=True, materialize_time_us=3)
    problem = Problem([Operation("pointwise", 1, ())], [fused])
    assert solve(problem, 0).time_us == 1
    assert solve(replace(problem, values=[replace(fused, unfused_backward=True)]), 0).time_us == 4


def test_saving_what_fusion_would_not_write_competes_with_recomputing_it():
    dear_to_save = Value(0, 10, needed=True, save_time_us=3)
    assert solve(Problem([Operation("cheap", 1, ())], [dear_to_save]), 10).time_us == 1
    assert solve(Problem([Operation("dear", 9, ())], [dear_to_save]), 10).time_us == 3


def test_a_small_value_next_to_a_large_one_still_counts():
    values = [Value(0, 4, needed=True), Value(1, 2**30, needed=True)]
    found = solve(Problem([Operation("small", 1, ()), Operation("large", 1, ())], values), 0)
    assert (found.saved, found.saved_bytes, found.time_us) == (frozenset(), 0, 2)


def test_a_problem_without_values_is_solved():
    assert solve(Problem([], []), 0).time_us == 0
