"""Plans for a step of several graphs: the mix of what each offers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from satcompile.compile.allocation import Figures
from satcompile.runtime.balance import _Calls
from satcompile.runtime.residency import Residency

NOTHING_RESIDENT = Residency(0, 0, 0, 0, ())


class Graph:
    """Stands for a compiled graph, of which a mix only asks whether it is the same."""


def plan(backward_bytes: int, held_bytes: int) -> Figures:
    return Figures(
        forward_bytes=held_bytes, backward_bytes=backward_bytes, held_bytes=held_bytes,
        output_bytes=0, gradient_bytes=0,
    )  # fmt: skip


def calls_of(graphs: list[Graph]) -> _Calls:
    return _Calls(graphs, [()] * len(graphs), [NOTHING_RESIDENT] * len(graphs))


def peak_of(calls: _Calls, offers: list[list[Figures]], choice: dict[int, int]) -> int:
    return calls.together(calls.chosen(choice, offers)).peak_bytes


def test_graphs_take_plans_of_different_numbers_where_that_is_lower() -> None:
    """What the first keeps is there while the second's backward runs."""
    first, second = Graph(), Graph()
    calls = calls_of([first, second])
    keeps_little, runs_low = plan(100, 10), plan(60, 50)
    offers = [[runs_low, keeps_little], [runs_low, plan(200, 0)]]
    choice = calls.lowest_mix(offers)
    assert choice == {id(first): 1, id(second): 0}
    assert peak_of(calls, offers, choice) == 100
    assert min(peak_of(calls, offers, dict.fromkeys(choice, n)) for n in (0, 1)) == 110


def test_calls_of_one_graph_take_one_plan() -> None:
    graph = Graph()
    calls = calls_of([graph] * 4)
    offers = [[plan(60, 50), plan(80, 20)]] * 4
    choice = calls.lowest_mix(offers)
    assert choice == {id(graph): 1}
    assert peak_of(calls, offers, choice) == 3 * 20 + 80


sizes_bytes = st.integers(0, 1_000)
plans = st.builds(plan, sizes_bytes, sizes_bytes)


@given(st.data(), st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(1, 4))
def test_a_mix_is_never_above_plans_of_the_same_number(data, order, count) -> None:
    graphs = [Graph() for _ in range(3)]
    by_graph = [data.draw(st.lists(plans, min_size=count, max_size=count)) for _ in graphs]
    calls = calls_of([graphs[k] for k in order])
    offers = [by_graph[k] for k in order]
    choice = calls.lowest_mix(offers)
    mixed = peak_of(calls, offers, choice)
    assert all(mixed <= peak_of(calls, offers, dict.fromkeys(choice, n)) for n in range(count))
    # No single graph could do better by another of its plans.
    for key in choice:
        for n in range(count):
            assert mixed <= peak_of(calls, offers, {**choice, key: n})
