"""Plans as paths over demands: against the mixed-integer program, on identical layers, and in
what does not show in the objective (ties, determinism, limits on work)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satcompile.solver.training import demands, two_phase
from satcompile.solver.training.two_phase import Operation, Problem, Solution, Value, solve
from tests.solver.test_two_phase import chain, problems

few = settings(max_examples=80, deadline=None)


def by_milp(problem: Problem, limit_bytes: int, gap_us: float = 0.0) -> Solution:
    with mock.patch.object(demands, "expand", return_value=None):
        return solve(replace(problem), limit_bytes, gap_us)


@st.composite
def layered(draw, most_layers: int = 6) -> Problem:
    """Identical layers: each reads the layer before, values of its own, and one that all share."""
    size, layers = draw(st.integers(2, 5)), draw(st.integers(2, most_layers))
    reads = [draw(st.sets(st.integers(-2, k - 1), min_size=1, max_size=3)) for k in range(size)]
    reads[0].add(-1)  # the layer before
    time_us = [float(draw(st.integers(0, 9))) for _ in range(size)]
    recomputable = [draw(st.sampled_from([True, True, True, False])) for _ in range(size)]
    value = [
        Value(
            0,
            num_bytes=draw(st.integers(0, 9)),
            needed=draw(st.booleans()),
            save_time_us=float(draw(st.sampled_from([0, 0, 1]))),
            materialize_time_us=float(draw(st.sampled_from([0, 0, 2]))),
        )
        for _ in range(size)
    ]
    unfused = [draw(st.booleans()) for _ in range(size)]
    operations = [Operation("shared", 1.0, ())]
    values = [Value(0, draw(st.integers(1, 9)))]
    for layer in range(layers):
        start = layer * size + 1
        for k in range(size):
            made_of = {0 if r == -2 else max(0, start + r) for r in reads[k]}
            name = f"layer {layer}, op {k}"
            operations.append(Operation(name, time_us[k], tuple(made_of), recomputable[k]))
            readers = [start + j for j in range(k + 1, size) if k in reads[j] and unfused[j]]
            made = replace(value[k], producer=start + k, unfused_readers=tuple(readers))
            values.append(made)
    return Problem(operations, values)


@few
@given(layered(), st.integers(0, 100))
def test_identical_layers_have_the_optimum_of_the_whole_program(problem, percent):
    limit_bytes = sum(value.num_bytes for value in problem.values) * percent // 100
    try:
        whole = by_milp(problem, limit_bytes)
    except two_phase.Infeasible:
        with pytest.raises(two_phase.Infeasible):
            solve(problem, limit_bytes)
        return
    folded = solve(problem, limit_bytes)
    assert folded.time_us == pytest.approx(whole.time_us, abs=1e-4)
    assert folded.bound_us == pytest.approx(folded.time_us, abs=1e-4)
    assert folded.saved_bytes <= limit_bytes


@few
@given(layered(), st.integers(0, 100), st.floats(0, 20), st.integers(1, 3))
def test_little_work_still_gives_a_plan_and_a_bound(problem, percent, gap_us, node_limit):
    limit_bytes = sum(value.num_bytes for value in problem.values) * percent // 100
    with mock.patch.object(two_phase, "_PARTIAL_PLANS_PER_NODE", 1):
        try:
            hurried = solve(problem, limit_bytes, gap_us, node_limit=node_limit)
        except two_phase.Infeasible:
            return
    best = solve(replace(problem), limit_bytes)
    assert hurried.bound_us <= best.time_us + 1e-4
    assert best.time_us <= hurried.time_us + 1e-6
    assert hurried.saved_bytes <= limit_bytes


@few
@given(layered(), st.integers(0, 100), st.floats(0, 20))
def test_a_gap_is_honoured_and_its_bound_holds(problem, percent, gap_us):
    limit_bytes = sum(value.num_bytes for value in problem.values) * percent // 100
    try:
        best = solve(problem, limit_bytes)
    except two_phase.Infeasible:
        return
    found = solve(problem, limit_bytes, gap_us)
    assert found.time_us <= best.time_us + gap_us + 1e-4
    assert found.bound_us <= best.time_us + 1e-4
    assert found.gap_us <= gap_us + 1e-4


@few
@given(problems(), st.data())
def test_what_must_be_saved_is_saved_or_useless(problem, data):
    saveable = [i for i, value in enumerate(problem.values) if value.saveable]
    forced = data.draw(st.sets(st.sampled_from(saveable), max_size=3)) if saveable else set()
    limit_bytes = data.draw(st.integers(0, 60))
    try:
        with mock.patch.object(demands, "expand", return_value=None):
            whole = solve(replace(problem), limit_bytes, forced=forced)
    except two_phase.Infeasible:
        with pytest.raises(two_phase.Infeasible):
            solve(problem, limit_bytes, forced=forced)
        return
    found = solve(problem, limit_bytes, forced=forced)
    assert found.time_us == pytest.approx(whole.time_us, abs=1e-4)
    read = {i for i, value in enumerate(problem.values) if value.needed}
    read |= {i for index in found.recomputed for i in problem.operations[index].reads}
    assert forced & read <= found.saved


@few
@given(problems())
def test_the_order_of_looking_keeps_what_is_read_first(problem):
    order = demands.looking_order(problem)
    assert sorted(order) == list(range(len(problem.operations)))
    place = {index: position for position, index in enumerate(order)}
    for index, operation in enumerate(problem.operations):
        for i in operation.reads:
            assert place[problem.values[i].producer] < place[index]


# -- identical layers ------------------------------------------------------------------------


def layers(count: int) -> Problem:
    """Layers of two values each; at any limit some identical ones do not quite fit."""
    operations, values = [], []
    for layer in range(count):
        start = 2 * layer
        operations += [
            Operation("wide", 7.0, (start - 1,) if layer else ()),
            Operation("narrow", 5.0, (start,)),
        ]
        values += [Value(start, 30, needed=True), Value(start + 1, 20, needed=True)]
    return Problem(operations, values)


def test_the_optimum_of_identical_layers_is_counted_out():
    # 7 us for 30 bytes, 5 us for 20: all the narrow ones, and 9 bytes stay unused.
    found = solve(layers(40), 40 * 20 + 9)
    assert found.time_us == 40 * 7
    assert found.gap_us == pytest.approx(0, abs=1e-6)
    # One byte more: 39 narrow ones and a wide one.
    found = solve(layers(40), 40 * 20 + 10)
    assert found.time_us == 39 * 7 + 5
    assert found.gap_us == pytest.approx(0, abs=1e-6)


def test_work_grows_gently_with_the_number_of_identical_layers():
    few_layers, many = solve(layers(10), 10 * 20 + 10), solve(layers(80), 80 * 20 + 10)
    assert many.gap_us == pytest.approx(0, abs=1e-6)
    assert many.nodes <= 100 * max(1, few_layers.nodes)  # and not two to the 70th


def test_of_equal_layers_the_later_ones_are_saved():
    assert solve(chain(1, 1, 1, 1), 20).saved == {2, 3}
    assert solve(chain(2, 1, 1, 2), 25).saved == {0, 3}


def entangled_problem() -> Problem:
    """Each of eight values is read far below where it is made, if its reader runs again."""
    operations = [Operation("root", 1.0, (), recomputable=False)]
    operations += [Operation(f"upper {i}", 1.0 + i, (0,)) for i in range(8)]
    operations += [Operation(f"lower {i}", 2.0, (i + 1, i + 8)) for i in range(8)]
    return Problem(operations, [Value(i, 10 + i, needed=i > 8) for i in range(17)])


def test_graphs_with_too_many_demands_are_left_to_the_program():
    problem = entangled_problem()
    with mock.patch.multiple(demands, _MOST_DEMANDS=16, _TAIL=0):
        assert demands.expand(problem, ()) is None
        entangled = solve(problem, 100)
    assert entangled.time_us == pytest.approx(solve(replace(problem), 100).time_us)
    assert entangled.time_us > 0


def test_more_demands_than_effort_is_no_obstacle():
    problem = entangled_problem()
    with (
        mock.patch.multiple(demands, _TAIL=0),
        mock.patch.object(two_phase, "_PARTIAL_PLANS_PER_NODE", 1),
    ):
        hurried = solve(problem, 100, node_limit=1)
    best = solve(replace(problem), 100)
    assert hurried.bound_us <= best.time_us <= hurried.time_us


def test_sizes_far_apart_are_counted_to_the_byte():
    values = [Value(0, 1, needed=True), Value(1, 2**40, needed=True)]
    operations = [Operation("small", 1e-3, ()), Operation("large", 1e6, ())]
    assert solve(Problem(operations, values), 2**40).saved == {1}
    assert solve(Problem(operations, values), 2**40 + 1).saved == {0, 1}


def test_a_hundred_layers_are_solved_in_a_moment():
    problem, started_s = layers(100), time.process_time()
    for percent in range(10, 100, 10):
        solve(problem, 100 * 50 * percent // 100)
    assert time.process_time() - started_s < 20


# -- determinism -----------------------------------------------------------------------------

_PLAN_IN_ANOTHER_PROCESS = """
from tests.solver.test_constrained_path import layers
from satcompile.solver.training.two_phase import solve
problem = layers(12)
print([sorted(solve(problem, limit).saved) for limit in (0, 95, 250, 333, 500)])
"""


def test_the_plan_does_not_depend_on_the_seed_of_hashes():
    plans = {
        subprocess.run(
            [sys.executable, "-c", _PLAN_IN_ANOTHER_PROCESS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(plans) == 1 and plans.pop().count("[") == 6
