"""The simulator against an oracle that knows no events: what is alive is found at each position
by scanning the whole order. Plus exact numbers for in-place reuse."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from satcompile.solver.base.simulator import Computation, Event, Profile, liveness_events, replay

STORAGES = st.integers(0, 5)


@st.composite
def orders(draw):
    """Any order at all: storages may be read before they are written, or never be written."""
    steps = draw(
        st.lists(
            st.tuples(
                st.lists(STORAGES, max_size=3),
                st.lists(STORAGES, max_size=2, unique=True),
                st.integers(0, 9),
            ),
            max_size=8,
        )
    )
    return [
        Computation(f"step {index}", reads, writes, workspace_bytes)
        for index, (reads, writes, workspace_bytes) in enumerate(steps)
    ]


def alive_during(order, position, kept, initially_alive):
    """Storages that occupy memory while ``order[position]`` runs."""

    def uses(steps):
        return {s for step in steps for s in (*step.reads, *step.writes)}

    born = set(initially_alive) | {s for step in order[: position + 1] for s in step.writes}
    return born & (set(kept) | uses(order[position:]))


def oracle(order, sizes, kept, initially_alive):
    start_bytes = sum(sizes.get(s, 0) for s in initially_alive)
    during = [
        sum(sizes.get(s, 0) for s in alive_during(order, i, kept, initially_alive))
        + step.workspace_bytes
        for i, step in enumerate(order)
    ]
    peak_bytes = max([start_bytes, *during])
    label = "" if peak_bytes == start_bytes else order[during.index(peak_bytes)].label
    born = set(initially_alive) | {s for step in order for s in step.writes}
    return start_bytes, peak_bytes, label, sum(sizes.get(s, 0) for s in born & set(kept))


@given(
    orders(),
    st.dictionaries(STORAGES, st.integers(0, 20)),
    st.sets(STORAGES),
    st.sets(STORAGES),
)
def test_liveness_of_any_order_equals_scanning_it(order, sizes, kept, initially_alive):
    start_bytes, peak_bytes, label, end_bytes = oracle(order, sizes, kept, initially_alive)
    events = liveness_events(order, sizes, kept, sorted(initially_alive))
    found = replay(events, start_bytes)
    assert (found.peak_bytes, found.peak_label, found.end_bytes) == (peak_bytes, label, end_bytes)


@given(st.lists(st.integers(-50, 50), max_size=20), st.integers(0, 100))
def test_replay_equals_prefix_sums(changes, start_bytes):
    found = replay([Event(change, str(i)) for i, change in enumerate(changes)], start_bytes)
    sums = [start_bytes + sum(changes[:stop]) for stop in range(len(changes) + 1)]
    first = sums.index(max(sums)) - 1
    label = str(first) if first >= 0 else ""
    assert found == Profile(max(sums), label, first, sums[-1])


@given(
    orders(),
    st.dictionaries(STORAGES, st.integers(0, 20)),
    st.sets(STORAGES),
    st.sets(STORAGES),
)
def test_working_in_place_never_costs_memory(order, sizes, kept, initially_alive):
    in_place = [
        Computation(c.label, c.reads, c.writes, c.workspace_bytes, in_place=True) for c in order
    ]
    start_bytes = sum(sizes.get(s, 0) for s in initially_alive)
    given_kept = (kept, sorted(initially_alive))
    apart = replay(liveness_events(order, sizes, *given_kept), start_bytes)
    together = replay(liveness_events(in_place, sizes, *given_kept), start_bytes)
    assert together.peak_bytes <= apart.peak_bytes
    assert together.end_bytes == apart.end_bytes


@given(orders(), st.dictionaries(STORAGES, st.integers(0, 20)), st.sets(STORAGES))
def test_bytes_alive_never_fall_below_zero(order, sizes, kept):
    alive = 0
    for event in liveness_events(order, sizes, kept):
        alive += event.num_bytes
        assert alive >= 0


def copies(in_place: bool) -> list[Computation]:
    """a -> b -> c, each of one read and one write."""
    return [
        Computation("make a", (), ("a",)),
        Computation("a to b", ("a",), ("b",), in_place=in_place),
        Computation("b to c", ("b",), ("c",), in_place=in_place),
    ]


def peak(order, sizes, **where) -> int:
    return replay(liveness_events(order, sizes, **where)).peak_bytes


def test_inputs_and_outputs_of_a_step_are_alive_together():
    assert peak(copies(in_place=False), {"a": 10, "b": 10, "c": 10}) == 20


def test_in_place_steps_need_one_buffer():
    assert peak(copies(in_place=True), {"a": 10, "b": 10, "c": 10}) == 10


def test_in_place_takes_over_only_memory_of_the_same_size():
    assert peak(copies(in_place=True), {"a": 10, "b": 12, "c": 12}) == 22


def test_in_place_leaves_an_input_alone_that_is_read_later():
    order = [*copies(in_place=True), Computation("read a", ("a",), ())]
    assert peak(order, {"a": 10, "b": 10, "c": 10}) == 20


def test_in_place_leaves_a_kept_input_alone():
    assert peak(copies(in_place=True), {"a": 10, "b": 10, "c": 10}, kept={"a"}) == 20


def test_in_place_takes_over_each_dying_input_once():
    order = [
        Computation("make", (), ("a", "b")),
        Computation("two to two", ("a", "b"), ("c", "d"), in_place=True),
        Computation("two to one", ("c", "d"), ("e",), in_place=True),
    ]
    assert peak(order, dict.fromkeys("abcde", 10)) == 20
    three = [order[0], Computation("two to three", ("a", "b"), ("c", "d", "e"), in_place=True)]
    assert peak(three, dict.fromkeys("abcde", 10)) == 30


def test_memory_that_belongs_to_others_is_not_taken_over():
    order = [Computation("a to b", ("a",), ("b",), in_place=True)]
    sizes, given_alive = {"a": 10, "b": 10}, {"initially_alive": ["a"]}
    ours = replay(liveness_events(order, sizes, **given_alive), 10)
    others = replay(liveness_events(order, sizes, **given_alive, never_reused={"a"}), 10)
    assert (ours.peak_bytes, others.peak_bytes) == (10, 20)


def test_workspace_is_alive_during_its_step_only():
    order = [
        Computation("make a", (), ("a",)),
        Computation("a to b", ("a",), ("b",), workspace_bytes=100),
        Computation("b to c", ("b",), ("c",)),
    ]
    found = replay(liveness_events(order, {"a": 10, "b": 10, "c": 10}, kept={"c"}))
    assert (found.peak_bytes, found.peak_label, found.end_bytes) == (120, "a to b", 10)


def test_what_is_given_and_never_read_is_freed_before_the_first_step():
    order = [Computation("make a", (), ("a",))]
    events = liveness_events(order, {"a": 10, "idle": 30}, initially_alive=["idle"])
    assert replay(events, start_bytes=30) == Profile(30, "", -1, 0)
