"""The compiled replay against the readable ones: of plain problems and of training steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from satcompile.solver import Problem
from satcompile.solver.problem import loads
from satcompile.solver.replay import replay, workspace
from satcompile.solver.schedule import sequence_of
from satcompile.solver.step import Phase, backward_order, forward_order, simulate_orders
from satcompile.solver.step_tape import step_tape
from satcompile.solver.tape import plain_tape
from satcompile.solver.timing import Timing
from tests.solver import oracle
from tests.solver.problems import problems
from tests.solver.test_search import chains

MOST_KEYS = 40
some = settings(max_examples=400, deadline=None)


@st.composite
def plans(draw):
    """A problem, and any recomputations of it."""
    problem = draw(problems(most=12))
    pairs = [(stage, node) for stage in range(len(problem)) for node in range(stage)]
    return problem, sorted(draw(st.sets(st.sampled_from(pairs), max_size=MOST_KEYS)))


@some
@given(plans(), st.integers(0, 40))
def test_replays_of_plain_problems(made, limit_bytes):
    problem, plan = made
    count = len(problem)
    tape = plain_tape(problem.times, problem.num_bytes, problem.inputs)
    work = workspace(tape, MOST_KEYS)
    keys = np.array([stage * count + node for stage, node in plan], np.int64)
    found = replay(tape, work, keys, len(keys), limit_bytes)
    sequence = sequence_of(problem, plan)
    expected = loads(problem, sequence)
    assert found.valid
    assert work.operation[: found.positions].tolist() == list(sequence)
    assert work.load[: found.positions].tolist() == expected
    assert found.peak_bytes == max(expected)
    assert found.over_bytes == sum(max(0, load - limit_bytes) for load in expected)
    naive = oracle.replay_sequence(problem, sequence)
    assert (found.peak_bytes, found.time) == (naive.peak_bytes, naive.extra_time)


@some
@given(problems(most=8))
def test_a_plan_longer_than_the_arrays_is_refused(problem: Problem):
    count = len(problem)
    tape = plain_tape(problem.times, problem.num_bytes, problem.inputs)
    pairs = [stage * count + node for stage in range(count) for node in range(stage)]
    keys = np.array(pairs, np.int64)
    found = replay(tape, workspace(tape, 0), keys, len(keys), 0)
    assert found.valid == (len(keys) == 0)


def in_phases(step, problem, choices):
    """Layers that the output does not need may run on either side."""
    needed = set(forward_order(step, ()))
    operations = [
        replace(o, phase=Phase.EITHER) if o.phase is Phase.FORWARD and i not in needed else o
        for i, o in enumerate(step.operations)
    ]
    return replace(step, operations=operations), problem, choices


def with_times(draw, step, problem, choices):
    """Saving a value takes time, too, and so does writing one that might have been fused."""
    times = st.integers(0, 5)
    makers = step.makers()
    values = [
        replace(
            value,
            save_time_us=draw(times),
            materialize_time_us=draw(times) * step.operations[makers[storage]].fusible,
        )
        for storage, value in zip(choices, problem.values, strict=True)
    ]
    return step, replace(problem, values=values), choices


@st.composite
def step_plans(draw):
    """A training step, and any operations of its forward that run again in its backward."""
    made = with_times(draw, *in_phases(*draw(chains())))
    tape = step_tape(*made)
    begin, count = tape.tape.num_forward, len(tape.operations)
    pairs = [stage * count + i for stage in range(begin, count) for i in range(begin)]
    plan = sorted(draw(st.sets(st.sampled_from(pairs), max_size=MOST_KEYS)))
    return made, tape, without_unread(made[0], tape, plan)


def without_unread(step, tape, plan):
    """The search takes out computations that nobody reads, and the compiled replay keeps what
    only such a one reads, in one kernel with nothing, longer than need be."""
    count = len(tape.operations)
    while True:
        spine = [stage * count + stage for stage in range(tape.tape.num_forward, count)]
        order, wanted, read = sorted([*plan, *spine]), [], set(step.gradients)
        for key in reversed(order):
            operation = step.operations[tape.operations[key % count]]
            if key in spine or read & set(operation.writes):
                wanted.append(key)
            read = read - set(operation.writes) | set(operation.reads)
        if len(wanted) == len(order):
            return plan
        plan = sorted(set(wanted) - set(spine))


@some
@given(step_plans(), st.integers(0, 100))
def test_replays_of_training_steps(made, limit_bytes):
    (step, problem, choices), tape, plan = made
    work = workspace(tape.tape, MOST_KEYS)
    keys = np.array(plan, np.int64)
    found = replay(tape.tape, work, keys, len(keys), limit_bytes)
    assert found.valid
    saved, forward, backward = tape.orders(work, found)
    assert saved == saved_by(step, backward)
    assert list(forward) == forward_order(step, saved)
    assert [i for i in backward if step.operations[i].phase is Phase.BACKWARD] == [
        i for i in backward_order(step, choices) if step.operations[i].phase is Phase.BACKWARD
    ]
    assert found.peak_bytes == simulate_orders(step, forward, backward, saved).peak_bytes
    assert found.time == Timing(step, problem, choices).time_us(backward, saved)
    assert tape.keys(backward).tolist() == plan
    assert (found.over_bytes > 0) == (found.peak_bytes > limit_bytes)


def saved_by(step, backward):
    """Results of the forward that a backward reads, or returns, before it made them itself."""
    made, saved = set(), set()
    makers = {s: i for i, o in enumerate(step.operations) for s in o.writes}
    for index in backward:
        saved |= {s for s in step.operations[index].reads if s in makers and s not in made}
        made |= set(step.operations[index].writes)
    saved |= {s for s in step.gradients if s in makers and s not in made}
    return {s for s in saved if step.operations[makers[s]].phase is not Phase.BACKWARD}
