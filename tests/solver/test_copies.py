"""Plans with several copies: decoded, nested and filled orders run, cost what they are said to,
and keep to their limits."""

from __future__ import annotations

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from satcompile.solver.training import two_phase
from satcompile.solver.training.filling import filled, orders
from satcompile.solver.training.moments import Choice, Model, Moment, Spine, decode, redecoded
from satcompile.solver.training.nested import nested_plans
from satcompile.solver.training.peaks import PeakSearch
from satcompile.solver.training.step import (
    Phase,
    backward_order,
    forward_order,
    loads,
    simulate_orders,
)
from satcompile.solver.training.timing import Timing
from tests.solver.test_search import UNLIMITED, build, chains, every_plan, search_of, some_limit

few = settings(max_examples=60, deadline=None)
NO_GAP, NODES = 0.0, 1_000


def assert_runs(spine: Spine, saved, backward) -> None:
    """Every operation finds what it reads, the backward's own keep their order, and all
    gradients come out."""
    step = spine.step
    there = {s for s in range(len(step.storage_bytes)) if s not in spine.makers} | set(saved)
    for index in backward:
        assert set(step.operations[index].reads) <= there
        there |= set(step.operations[index].writes)
    own = [i for i in backward if step.operations[i].phase is Phase.BACKWARD]
    assert own == spine.operations
    assert step.gradients <= there


@st.composite
def choices(draw):
    """A chain, and a choice that need not be a good one."""
    made = draw(chains())
    spine, storages = Spine(*made), made[2]
    positions = draw(st.sets(st.integers(0, len(spine.operations) - 1), max_size=3))

    def some():
        return draw(st.frozensets(st.sampled_from(storages)))

    return spine, Choice(some(), {position: some() for position in positions})


@few
@given(choices())
def test_any_choice_decodes_to_an_order_that_runs(made):
    spine, choice = made
    backward = decode(spine, choice)
    assert_runs(spine, choice.saved, backward)
    # Nothing that crosses is needed beyond what one copy of each needs.
    assert set(backward) == set(backward_order(spine.step, choice.saved))


@few
@given(choices())
def test_keeping_everything_decodes_to_one_copy_of_each(made):
    spine, choice = made
    everything = frozenset(spine.choices)
    backward = decode(spine, Choice(choice.saved, dict.fromkeys(choice.resident, everything)))
    assert backward == backward_order(spine.step, choice.saved)


@few
@given(chains(), st.data())
def test_one_copy_takes_the_time_of_the_two_phase_problem(made, data):
    step, problem, storages = made
    saved = data.draw(st.frozensets(st.sampled_from(storages)))
    solution = two_phase.evaluate(problem, [storages.index(s) for s in saved])
    assert Timing(*made).time_us(backward_order(step, saved), saved) == solution.time_us


@few
@given(choices())
def test_every_further_copy_takes_its_operations_time(made):
    spine, choice = made
    timing = Timing(spine.step, spine.problem, spine.choices)
    backward = decode(spine, choice)
    times = {spine.maker_of[i]: o.time_us for i, o in enumerate(spine.problem.operations)}
    assert timing.time_us(backward, choice.saved) == sum(times.get(i, 0) for i in backward)


@few
@given(choices())
def test_the_highest_load_is_the_peak(made):
    spine, choice = made
    step, saved = spine.step, choice.saved
    both = forward_order(step, saved), decode(spine, choice)
    profile = simulate_orders(step, *both, saved)
    forward, backward = loads(step, *both, saved)
    assert max(forward) == profile.forward.peak_bytes
    start_bytes = sum(step.storage_bytes[s] for s in saved | step.outputs | step.tangents)
    assert max([start_bytes, *backward]) == profile.backward.peak_bytes


@few
@given(chains(), st.floats(0, 1), st.data())
def test_rows_at_moments_are_kept(made, share, data):
    spine = Spine(*made)
    limit_bytes = some_limit(every_plan(made), share)
    last = len(spine.operations) - 1
    positions = data.draw(st.sets(st.integers(0, last), min_size=1, max_size=3))
    model = Model(spine, limit_bytes, UNLIMITED, [Moment(position) for position in positions])
    choice = model.solve(NO_GAP, NODES)
    assume(choice is not None)
    for position in positions:
        assert model.seen_bytes((position, False), choice) <= limit_bytes


@few
@given(chains(), st.floats(0, 1))
def test_rounds_give_plans_that_run_and_are_replayed_exactly(made, share):
    spine, timing = Spine(*made), Timing(*made)
    limit_bytes = some_limit(every_plan(made), share)
    for _, plan in PeakSearch(spine, timing, NO_GAP, NODES).within(limit_bytes, UNLIMITED):
        assert_runs(spine, plan.saved, plan.backward)
        assert plan.profile == simulate_orders(spine.step, plan.forward, plan.backward, plan.saved)
        assert plan.time_us == timing.time_us(plan.backward, plan.saved)


@few
@given(chains())
def test_nested_checkpoints_run_whatever_else_is_saved(made):
    spine, timing = Spine(*made), Timing(*made)
    for nested in nested_plans(spine):
        for saved in (nested.saved, nested.saved | frozenset(spine.choices[:2])):
            backward = nested.backward(saved)
            assert_runs(spine, saved, backward)
            assert set(backward) == set(backward_order(spine.step, saved))
            assert orders(spine, timing, saved, backward).backward == tuple(backward)


@few
@given(choices(), st.integers(0, 60))
def test_filling_keeps_to_the_limit_and_takes_no_more_time(made, room_bytes):
    spine, choice = made
    timing = Timing(spine.step, spine.problem, spine.choices)
    plan = orders(spine, timing, choice.saved, decode(spine, choice))
    limit_bytes = plan.profile.peak_bytes + room_bytes
    better = filled(
        spine, timing, plan, lambda saved: redecoded(spine, choice, saved), limit_bytes, 20
    )
    assert better.profile.peak_bytes <= limit_bytes
    assert better.time_us <= plan.time_us
    assert plan.saved <= better.saved
    assert_runs(spine, better.saved, better.backward)


@few
@given(chains(), st.floats(0, 1))
def test_what_the_search_finds_runs(made, share):
    limit_bytes = some_limit(every_plan(made), share)
    found = search_of(made).within(limit_bytes)
    if found is not None:
        assert_runs(Spine(*made), found.saved, found.backward_order)


@few
@given(chains(), st.floats(0, 1))
def test_without_an_order_of_its_own_there_is_one_copy_of_each(made, share):
    limit_bytes = some_limit(every_plan(made), share)
    search = search_of(made, own_order=False)
    for found in (search.within(limit_bytes), search.floor()):
        if found is not None:
            assert list(found.backward_order) == backward_order(made[0], found.saved)


# -- exact numbers ---------------------------------------------------------------------------


def test_a_copy_is_dropped_where_room_is_short_and_made_again():
    # The third layer reads the first one's value: to make it again, that value is made, too.
    made = build([10, 10, 10, 4], [0, 0, 0, 0], [1, 1, 1, 1], skip=[1, 1, 2, 1])
    spine, timing = Spine(*made), Timing(*made)
    one = orders(spine, timing, frozenset(), decode(spine, Choice(frozenset(), {})))
    two = orders(spine, timing, frozenset(), decode(spine, Choice(frozenset(), {2: frozenset()})))
    assert (one.time_us, two.time_us) == (4, 5)
    assert [one.backward.count(0), two.backward.count(0)] == [1, 2]
