"""Bounds from single moments, against thousands of plans of entangled random steps: at a limit
that a plan keeps to, no moment may claim that less time is impossible."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import pytest

from satcompile.solver.training.filling import orders
from satcompile.solver.training.search import BudgetSearch
from satcompile.solver.training.single_moments import SingleMoments, worst_moments
from satcompile.solver.training.step import (
    Phase,
    backward_order,
    early_forward_order,
    forward_order,
    simulate_orders,
)
from tests.solver.steps import MadeStep, random_backward, random_step
from tests.solver.test_search import build

EFFORT = 1_000


@dataclass(frozen=True)
class SomePlan:
    peak_bytes: int
    time_us: float


def some_plans(made: MadeStep, count: int, seed: int) -> Iterator[SomePlan]:
    chance = random.Random(seed)
    values = zip(made.choices, made.problem.values, strict=True)
    saveable = [s for s, value in values if value.saveable and s not in made.step.outputs]
    for number in range(count):
        share = chance.choice([0.2, 0.5, 0.8])
        saved = frozenset(s for s in saveable if chance.random() < share)
        saved |= made.step.outputs & set(made.choices)
        backward = random_backward(made, saved, seed + number)
        if backward is not None:
            in_order = chance.choice([forward_order, early_forward_order])
            forward = in_order(made.step, saved)
            profile = simulate_orders(made.step, forward, backward, saved)
            yield SomePlan(profile.peak_bytes, made.timing.time_us(backward, saved))


def cheapest(plans: Iterator[SomePlan]) -> dict[int, float]:
    """The least time by peak."""
    found: dict[int, float] = {}
    for plan in plans:
        found[plan.peak_bytes] = min(found.get(plan.peak_bytes, inf), plan.time_us)
    return found


def highest_bound(made: MadeStep, moments: SingleMoments, limit_bytes: int) -> float:
    bounds = [0.0]
    for position in range(len(made.spine.operations)):
        if moments.is_written(position):
            bounds.append(moments.in_backward(position, limit_bytes).time_us)
    for position in range(len(made.spine.forward_operations)):
        if moments.is_written_in_forward(position):
            bounds.append(moments.in_forward(position, limit_bytes).time_us)
    return max(bounds)


def check(seed: int) -> tuple[int, int]:
    """How many limits were asked about, and at how many of them a plan met the bound."""
    made = random_step(seed)
    moments = SingleMoments(made.spine, 0.0, EFFORT)
    plans = cheapest(some_plans(made, 40, seed))
    met = 0
    for peak_bytes, time_us in plans.items():
        bound_us = highest_bound(made, moments, peak_bytes)
        assert bound_us <= time_us + 1e-6, (seed, peak_bytes)
        assert moments.least_peak_bytes <= peak_bytes, seed
        met += 0 < time_us <= bound_us + 1e-6
    return len(plans), met


def test_no_plan_beats_the_bound_of_any_moment():
    found = [check(seed) for seed in range(120)]
    assert sum(limits for limits, _ in found) > 300
    assert sum(met for _, met in found) > 30, "bounds that are never met prove little"


@pytest.mark.slow
def test_no_plan_beats_the_bound_of_any_moment_of_thousands():
    for seed in range(1_000, 2_500):
        check(seed)


@pytest.mark.parametrize("seed", range(40))
def test_no_plan_beats_what_the_search_reports(seed):
    made = random_step(seed)
    for peak_bytes, time_us in cheapest(some_plans(made, 40, seed)).items():
        search = BudgetSearch(
            made.step, made.problem, made.choices, 0.0, EFFORT, again_us=made.again_us
        )
        assert search.bound_us(peak_bytes) <= time_us + 1e-6
        assert search.least_peak_bytes <= peak_bytes


@pytest.mark.parametrize("seed", range(200))
def test_the_early_order_runs_and_moves_only_what_the_backward_needs(seed):
    made = random_step(seed)
    saved = frozenset(s for s in made.choices if random.Random(seed).random() < 0.5)
    order = early_forward_order(made.step, saved)
    operations = made.step.operations
    makers = made.step.makers()
    there: set[int] = set()
    for index in order:
        assert {s for s in operations[index].reads if s in makers} <= there
        there.update(operations[index].writes)
    joint = forward_order(made.step, saved)
    assert sorted(order) == joint
    own = [i for i in order if operations[i].phase is Phase.FORWARD]
    assert own == sorted(own)


# -- exact numbers: three layers of 10 bytes, an output of 4, an incoming gradient of 4 ----------

WIDE_GRADIENT = build([10, 10, 10, 4], [0, 0, 0, 20], [1, 5, 3, 1])


def search_of(made) -> BudgetSearch:
    return BudgetSearch(*made, gap_us=0.0, effort=EFFORT)


def test_what_stands_together_after_the_boundary_is_seen():
    """Where the backward begins there is room for all three layers; beside the gradient of 20
    bytes there is room for two, and the cheapest to run again takes 1."""
    search = search_of(WIDE_GRADIENT)
    assert search.at_saved_bytes(search.room_at_boundary(50)).solution.bound_us == 0
    assert search.bound_us(50) == pytest.approx(1)
    assert search.bound_us(4 + 4 + 20 + 30) == 0


def test_the_least_peak_is_what_one_moment_holds_of_itself():
    """Behind the first operation: output, gradient of 20, and the layer that it reads."""
    assert search_of(WIDE_GRADIENT).least_peak_bytes == 4 + 20 + 10


def test_below_the_least_peak_the_search_says_that_there_is_nothing():
    search = search_of(WIDE_GRADIENT)
    assert search.bound_us(33) == inf
    assert search.within(33) is None


@pytest.mark.parametrize("seed", range(300))
def test_plans_made_of_moments_repeat_only_what_may_run_again(seed):
    """Values in memory at one moment are no plan by themselves: what cannot run again is saved."""
    made, fixed = random_step(seed), set()
    indices = sorted({made.spine.makers[s] for s in made.choices})
    for index, operation in zip(indices, made.problem.operations, strict=True):
        fixed |= set() if operation.recomputable else {index}
    values = zip(made.choices, made.problem.values, strict=True)
    everything = frozenset(s for s, value in values if value.saveable)
    start = orders(made.spine, made.timing, everything, backward_order(made.step, everything))
    if fixed & set(start.backward):
        return  # what cannot run again cannot be saved either
    moments = SingleMoments(made.spine, 0.0, EFFORT)
    for share in (0.5, 0.7, 0.9):
        limit_bytes = int(share * start.profile.peak_bytes)
        for _, plan in worst_moments(moments, made.timing, start, limit_bytes):
            assert not fixed & set(plan.backward)
