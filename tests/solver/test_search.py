"""From a limit on the peak to a plan: what BudgetSearch promises, over every plan there is."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satcompile.solver.training import two_phase
from satcompile.solver.training.search import STRATEGIES, BudgetSearch, Candidate
from satcompile.solver.training.step import (
    Phase,
    Step,
    StepOperation,
    backward_order,
    forward_order,
    simulate_orders,
)
from tests.solver.steps import simulate

few = settings(max_examples=60, deadline=None)
EFFORT = 1_000
UNLIMITED = 10**9


@st.composite
def chains(draw):
    """Layers, each reading the one before or one further back, and their gradients.

    Storages: the incoming gradient, then a value per layer, then a gradient per layer. The
    last value is the step's output, which the user holds: to save it costs nothing.
    """
    layers = draw(st.integers(1, 5))
    value_bytes = draw(st.lists(st.integers(1, 20), min_size=layers, max_size=layers))
    gradient_bytes = draw(st.lists(st.integers(0, 10), min_size=layers, max_size=layers))
    times = draw(st.lists(st.integers(0, 9), min_size=layers, max_size=layers))
    skip = draw(st.lists(st.integers(1, 2), min_size=layers, max_size=layers))
    workspace = draw(st.lists(st.sampled_from([0, 0, 15]), min_size=layers, max_size=layers))
    fusible = draw(st.lists(st.booleans(), min_size=layers, max_size=layers))
    made = build(value_bytes, gradient_bytes, times, skip, workspace, fusible)
    return replace(made[0], tangents_stay=draw(st.booleans())), *made[1:]


def build(value_bytes, gradient_bytes, times, skip=None, workspace=None, fusible=None):
    layers = len(times)
    skip, workspace = skip or [1] * layers, workspace or [0] * layers
    fusible = fusible or [False] * layers
    values, gradients = range(1, layers + 1), range(layers + 1, 2 * layers + 1)
    read_by = [((values[i - skip[i]],) if i >= skip[i] else ()) for i in range(layers)]
    forward = [
        StepOperation(
            f"layer {i}", read_by[i], (values[i],), Phase.FORWARD,
            fusible=fusible[i], workspace_bytes=workspace[i],
        )
        for i in range(layers)
    ]  # fmt: skip
    backward = []
    for i in reversed(range(layers)):
        incoming = gradients[i + 1] if i + 1 < layers else 0
        reads = (incoming, values[i])
        backward.append(StepOperation(f"gradient {i}", reads, (gradients[i],), Phase.BACKWARD))
    step = Step(
        [*forward, *backward],
        [4, *value_bytes, *gradient_bytes],
        outputs=frozenset([values[-1]]),
        transient_outputs=frozenset(),
        gradients=frozenset(gradients),
        tangents=frozenset([0]),
    )
    problem = two_phase.Problem(
        [
            two_phase.Operation(f"layer {i}", times[i], tuple(s - 1 for s in read_by[i]))
            for i in range(layers)
        ],
        [
            two_phase.Value(i, 0 if i == layers - 1 else value_bytes[i], needed=True)
            for i in range(layers)
        ],
    )
    return step, problem, list(values)


def search_of(made, own_order: bool = True) -> BudgetSearch:
    step, problem, choices = made
    return BudgetSearch(step, problem, choices, 0.0, EFFORT, own_order=own_order)


def candidate_of(step, solution, storages) -> Candidate:
    forward, backward = forward_order(step, storages), backward_order(step, storages)
    profile = simulate_orders(step, forward, backward, storages)
    return Candidate(storages, solution, profile, tuple(forward), tuple(backward))


def every_plan(made) -> list[Candidate]:
    step, problem, choices = made
    plans = []
    for count in range(len(choices) + 1):
        for saved in combinations(range(len(choices)), count):
            storages = frozenset(choices[i] for i in saved)
            solution = two_phase.evaluate(problem, saved)
            plans.append(candidate_of(step, solution, storages))
    return plans


def some_limit(plans: list[Candidate], share: float) -> int:
    peaks = [plan.profile.peak_bytes for plan in plans]
    return int(min(peaks) * 0.8 + share * (max(peaks) * 1.1 - min(peaks) * 0.8))


@few
@given(chains(), st.floats(0, 1))
def test_what_is_found_within_a_limit_fits_it(made, share):
    limit_bytes = some_limit(every_plan(made), share)
    found = search_of(made).within(limit_bytes)
    if found is not None:
        assert found.profile.peak_bytes <= limit_bytes
        assert found.profile == simulate(made[0], found.saved)


@few
@given(chains(), st.floats(0, 1))
def test_a_plan_says_which_strategy_made_it(made, share):
    search = search_of(made)
    found = search.within(some_limit(every_plan(made), share))
    assert found is None or found.source in STRATEGIES
    assert search.floor().source in STRATEGIES


def test_the_docs_list_the_strategies_in_their_order():
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text().lower()
    ladder = page[page.index("## the whole step") : page.index("## what is proven")]
    strategies = STRATEGIES[:-2]  # without those that have no limit
    places = [ladder.index(f"**{name}") for name in strategies]
    assert places == sorted(places)


@few
@given(chains(), st.floats(0, 1), st.integers(0, 60))
def test_no_plan_within_the_limit_beats_the_bound(made, share, most_saved_bytes):
    plans = every_plan(made)
    limit_bytes = some_limit(plans, share)
    bound_us = search_of(made).bound_us(limit_bytes)
    for plan in plans:
        fits = plan.profile.peak_bytes <= limit_bytes
        if fits and plan.solution.saved_bytes <= most_saved_bytes:
            assert bound_us <= plan.solution.time_us + 1e-6


@few
@given(chains(), st.floats(0, 1))
def test_the_bound_is_at_most_the_time_of_what_is_found(made, share):
    limit_bytes = some_limit(every_plan(made), share)
    search = search_of(made)
    found = search.within(limit_bytes)
    if found is not None:
        assert search.bound_us(limit_bytes) <= found.solution.time_us + 1e-6


@few
@given(chains(), st.lists(st.floats(0, 1), max_size=4))
def test_the_floor_is_below_every_plan_that_the_search_has_made(made, shares):
    search, plans = search_of(made), every_plan(made)
    most_bytes = sum(value.num_bytes for value in made[1].values)
    others = [search.within(some_limit(plans, share)) for share in shares]
    others += [search.at_saved_bytes(int(share * most_bytes)) for share in shares]
    floor = search.floor()
    assert all(floor.profile.peak_bytes <= o.profile.peak_bytes for o in others if o is not None)
    assert floor.profile.peak_bytes >= min(plan.profile.peak_bytes for plan in plans)


@few
@given(chains())
def test_a_limit_at_the_floor_is_answered(made):
    floor_bytes = search_of(made).floor().profile.peak_bytes
    assert search_of(made).within(floor_bytes) is not None


@few
@given(chains())
def test_with_room_for_everything_nothing_is_recomputed(made):
    found = search_of(made).within(UNLIMITED)
    assert found is not None
    assert found.solution.time_us == 0


@few
@given(chains(), st.floats(0, 1))
def test_the_same_question_gets_the_same_plan(made, share):
    limit_bytes = some_limit(every_plan(made), share)
    one, other = (search_of(made).within(limit_bytes) for _ in range(2))
    assert one == other


# -- exact numbers: three layers of 10 bytes, a loss of 4 bytes, gradients of 0 bytes --------

LAYERS = build([10, 10, 10, 4], [0, 0, 0, 0], [1, 5, 3, 1])


def test_room_at_the_boundary_is_what_output_and_incoming_gradient_leave():
    assert search_of(LAYERS).room_at_boundary(38) == 30


def test_the_candidate_of_given_storages_counts_only_choices():
    found = search_of(LAYERS).candidate([0, 1, 2])
    assert (found.saved, found.solution.saved_bytes, found.solution.time_us) == ({1, 2}, 20, 4)


def test_all_saved_peak_where_the_backward_begins():
    assert search_of(LAYERS).candidate([1, 2, 3, 4]).profile.peak_bytes == 3 * 10 + 4 + 4


def test_a_limit_below_every_plan_is_answered_by_none():
    assert search_of(LAYERS).within(17) is None


def test_no_plan_at_all_is_said_so():
    step, problem, choices = LAYERS
    stuck = two_phase.Problem(
        [two_phase.Operation(o.name, o.time_us, o.reads, False) for o in problem.operations],
        [
            two_phase.Value(v.producer, v.num_bytes, needed=True, saveable=False)
            for v in problem.values
        ],
    )
    search = BudgetSearch(step, stuck, choices, 0.0, EFFORT)
    assert search.at_saved_bytes(40) is None
    with pytest.raises(two_phase.Infeasible):
        search.floor()
