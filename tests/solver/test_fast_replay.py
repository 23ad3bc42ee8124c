"""Compiled replays give exactly what the readable ones give."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given

from satcompile.solver.training import fast_replay
from satcompile.solver.training import step as readable
from satcompile.solver.training.step import (
    Phase,
    Step,
    StepOperation,
    early_forward_order,
    forward_order,
)
from tests.solver.steps import MadeStep, random_backward, random_step
from tests.solver.test_step import steps_with_orders


@pytest.fixture(autouse=True)
def always_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_replay, "_LARGE", 0)


def assert_same(
    step: Step, forward: Sequence[int], backward: Sequence[int], saved: frozenset[int]
) -> None:
    wanted = readable.simulate_orders(step, forward, backward, saved)
    assert fast_replay.simulate_orders(step, forward, backward, saved) == wanted
    highest = readable.loads(step, forward, backward, saved)
    assert fast_replay.loads(step, forward, backward, saved) == highest


def check(seed: int) -> int:
    """Compare ten plans of a random step; how many there were."""
    made, chance, compared = random_step(seed, most=12), random.Random(seed), 0
    for number in range(10):
        share = chance.choice([0.0, 0.3, 0.7])
        saved = frozenset(s for s in made.choices if chance.random() < share)
        backward = random_backward(made, saved, seed + number)
        if backward is None:
            continue
        for in_order in (forward_order, early_forward_order):
            assert_same(made.step, in_order(made.step, saved), backward, saved)
        assert made.timing.time_us(backward, saved) == made.timing.slow_time_us(backward, saved)
        compared += 1
    return compared


def test_replays_of_entangled_steps_are_the_same():
    assert sum(check(seed) for seed in range(150)) > 500


@pytest.mark.slow
def test_replays_of_thousands_of_entangled_steps_are_the_same():
    assert sum(check(seed) for seed in range(1_000, 3_000)) > 7_500


@given(steps_with_orders())
def test_replays_of_steps_that_repeat_anything_anywhere_are_the_same(made):
    step, saved, backward = made
    assert_same(step, forward_order(step, saved), backward, saved)


def test_what_is_freed_in_any_order_was_there_while_its_reader_ran():
    operations = [
        StepOperation("nothing", (), (0,), Phase.FORWARD),
        StepOperation("a byte", (), (1,), Phase.FORWARD),
        StepOperation("read", (1, 0), (), Phase.FORWARD),
    ]
    step = Step(operations, [0, 1], *[frozenset()] * 4)
    assert_same(step, range(3), (), frozenset())
    assert fast_replay.loads(step, range(3), (), ()) == ([0, 1, 1], [])


def test_kernels_that_read_more_than_there_are_reads_are_the_same():
    """Every reader of many inlined results reads what those were made from: more sources than the
    array for them had room for when it was made."""
    made, readers = 20, 20
    inputs = 4 * made
    middle = [
        StepOperation(
            f"add {i}", tuple(range(4 * i, 4 * i + 4)), (inputs + i,), Phase.FORWARD, True
        )
        for i in range(made)
    ]
    results = range(inputs + made, inputs + made + readers)
    last = [
        StepOperation(f"sum {r}", tuple(range(inputs, inputs + made)), (r,), Phase.FORWARD, True)
        for r in results
    ]
    reads = sum(len(operation.reads) for operation in (*middle, *last))
    assert 4 * made * (1 + readers) > 2 * reads + 64
    sizes = [4] * (inputs + made + readers)
    step = Step([*middle, *last], sizes, frozenset(results), frozenset(), *[frozenset()] * 2)
    assert_same(step, range(made + readers), (), frozenset())
    assert (
        fast_replay.simulate_orders(step, range(made + readers), (), ()).peak_bytes == 4 * readers
    )


def test_an_operation_of_many_results_of_one_size_takes_over_as_many_inputs():
    count = 100  # as in optimizers that update all parameters at once
    operations = [
        StepOperation("make", (), tuple(range(count)), Phase.FORWARD),
        StepOperation("update", tuple(range(count)), tuple(range(count, 2 * count)), Phase.FORWARD, True),
    ]  # fmt: skip
    outputs = frozenset(range(count, 2 * count))
    step = Step(operations, [8] * (2 * count), outputs, frozenset(), *[frozenset()] * 2)
    assert_same(step, range(2), (), frozenset())
    assert fast_replay.simulate_orders(step, range(2), (), ()).peak_bytes == 8 * count


def test_small_steps_are_replayed_without_compiled_code(monkeypatch: pytest.MonkeyPatch):
    made: MadeStep = random_step(1)
    monkeypatch.setattr(fast_replay, "_LARGE", 1_000)
    monkeypatch.delattr(fast_replay, "_replayed")
    saved = frozenset(made.choices)
    order = forward_order(made.step, saved), readable.backward_order(made.step, saved)
    assert fast_replay.simulate_orders(made.step, *order, saved).peak_bytes >= 0
