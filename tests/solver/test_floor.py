"""The floor of a search: met when it is asked for, never above torch's own plan, and the same
whatever was asked before."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from satcompile.solver.training.search import BudgetSearch
from satcompile.solver.training.two_phase import Infeasible
from tests.solver.steps import MadeStep, random_step

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10**6)
EFFORT = 100


def search_of(made: MadeStep, own_order: bool = True) -> BudgetSearch:
    return BudgetSearch(
        made.step, made.problem, made.choices, 0.0, EFFORT, made.again_us, own_order, saved(made)
    )


def saved(made: MadeStep) -> list[int]:
    """What stands for torch's own plan: everything that the backward reads and may save."""
    pairs = zip(made.choices, made.problem.values, strict=True)
    return [storage for storage, value in pairs if value.saveable]


def floor_bytes(search: BudgetSearch) -> int | None:
    try:
        return search.floor().profile.peak_bytes
    except Infeasible:
        return None


def default_bytes(search: BudgetSearch) -> int | None:
    try:
        return search.default.profile.peak_bytes
    except Infeasible:
        return None


@few
@given(seeds, st.booleans())
def test_the_floor_is_not_above_torch_s_own_plan(seed: int, own_order: bool) -> None:
    search = search_of(random_step(seed), own_order)
    default = default_bytes(search)
    if default is not None:
        assert floor_bytes(search) is not None
        assert floor_bytes(search) <= default


@few
@given(seeds, st.booleans())
def test_a_limit_of_the_floor_is_met_and_none_below_it_is(seed: int, own_order: bool) -> None:
    made = random_step(seed)
    floor = floor_bytes(search_of(made, own_order))
    if floor is None:
        return
    for limit_bytes in (floor, floor + 1):
        found = search_of(made, own_order).within(limit_bytes)
        assert found is not None
        assert floor <= found.profile.peak_bytes <= limit_bytes
    assert search_of(made, own_order).within(floor - 1) is None


questions = st.lists(
    st.tuples(st.sampled_from(["within", "saved", "bound", "least saved", "floor"]), st.floats(0, 1.2)),
    max_size=5,
)  # fmt: skip


def ask(search: BudgetSearch, question: tuple[str, float], most_bytes: int) -> object:
    kind, share = question
    num_bytes = int(share * most_bytes)
    try:
        return {
            "within": lambda: search.within(num_bytes),
            "saved": lambda: search.at_saved_bytes(num_bytes),
            "bound": lambda: search.bound_us(num_bytes),
            "least saved": search.least_saved,
            "floor": search.floor,
        }[kind]()
    except (Infeasible, ValueError):  # nothing can be saved at all
        return None


@few
@given(seeds, questions, st.randoms(use_true_random=False))
def test_answers_do_not_depend_on_what_was_asked_before(seed, asked, chance) -> None:
    made = random_step(seed)
    most_bytes = sum(made.step.storage_bytes)
    first = search_of(made)
    alone = [ask(search_of(made), question, most_bytes) for question in asked]
    order = list(range(len(asked)))
    chance.shuffle(order)
    for number in order:
        assert ask(first, asked[number], most_bytes) == alone[number]
    assert floor_bytes(first) == floor_bytes(search_of(made))


@few
@given(seeds)
def test_searches_of_the_same_numbers_know_each_other(seed: int) -> None:
    one, same, other = random_step(seed), random_step(seed), random_step(seed + 1)
    assert search_of(one).is_of_same_numbers(search_of(same))
    assert one.step == other.step or not search_of(one).is_of_same_numbers(search_of(other))
    assert not search_of(one).is_of_same_numbers(search_of(one, own_order=False))
