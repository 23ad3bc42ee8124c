"""Orders and memory of a step against their definitions, written down a second time as plainly
as possible; exact numbers for what fusion and in-place reuse change."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from satcompile.solver.training.step import (
    Phase,
    Step,
    StepOperation,
    backward_order,
    captured_backward_order,
    forward_order,
    simulate_orders,
)
from tests.solver.steps import simulate

F, E, B = Phase.FORWARD, Phase.EITHER, Phase.BACKWARD


@st.composite
def steps(draw):
    """A step of up to nine operations that no kernel fuses, and storages that cross.

    Storage 0 is a parameter (no bytes), storage 1 an incoming gradient. What an operation may
    read follows from its phase, as in a traced graph.
    """
    sizes, operations = [0, draw(st.integers(0, 9))], []
    made = {F: [0], E: [], B: [1]}
    for index in range(draw(st.integers(1, 9))):
        phase = draw(st.sampled_from([F, F, E, B, B]))
        readable = {F: made[F], E: made[F] + made[E], B: made[F] + made[E] + made[B]}[phase]
        reads = draw(st.lists(st.sampled_from(readable), max_size=3, unique=True))
        if phase is B and not set(reads) & set(made[B]):
            reads.append(draw(st.sampled_from(made[B])))  # or no gradient would go into it
        num_writes = draw(st.sampled_from([1, 1, 1, 2, 0] if phase is F else [1, 1, 2]))
        writes = tuple(range(len(sizes), len(sizes) + num_writes))
        sizes += [draw(st.integers(0, 20)) for _ in writes]
        workspace_bytes = draw(st.sampled_from([0, 0, 7]))
        operations.append(
            StepOperation(
                f"op {index}", tuple(reads), writes, phase, workspace_bytes=workspace_bytes
            )
        )
        made[phase] = [*made[phase], *writes]

    def some_of(storages, most=3):
        if not storages:
            return frozenset()
        return draw(st.frozensets(st.sampled_from(sorted(storages)), max_size=most))

    outputs = some_of(made[F])
    step = Step(
        operations,
        sizes,
        outputs=outputs,
        transient_outputs=some_of(made[F], most=1) - outputs - {0},
        gradients=some_of(set(made[B]) - {1} | set(made[E])),
        tangents=frozenset([1]),
        tangents_stay=draw(st.booleans()),
    )
    return step, some_of(set(made[F]) | set(made[E]))


def needed_for(step, targets, given):
    """Operations that ``targets`` need when ``given`` is there: grown to a fixed point."""
    wanted, needed = set(targets) - set(given), set()
    while True:
        more = {
            i for i, o in enumerate(step.operations) if wanted & set(o.writes) and i not in needed
        }
        if not more:
            return needed
        needed |= more
        wanted |= {r for i in more for r in step.operations[i].reads} - set(given)


def run(step, order, given):
    """Storages there are after running ``order``; every operation finds what it reads."""
    existing = {s for s in range(len(step.storage_bytes)) if s not in step.makers()}
    there = (existing - step.tangents) | set(given)
    for index in order:
        assert set(step.operations[index].reads) <= there
        there |= set(step.operations[index].writes)
    return there


@given(steps())
def test_the_forward_runs_what_its_results_and_effects_need_and_nothing_else(made):
    step, saved = made
    order = forward_order(step, saved)
    effects = {i for i, o in enumerate(step.operations) if not o.writes}
    read_by_effects = {r for i in effects for r in step.operations[i].reads}
    targets = step.outputs | step.transient_outputs | saved | read_by_effects
    assert order == sorted(needed_for(step, targets, ()) | effects)
    assert targets <= run(step, order, given=())


@given(steps())
def test_the_backward_runs_what_its_gradients_need_and_nothing_else(made):
    step, saved = made
    order = backward_order(step, saved)
    assert len(order) == len(set(order))
    assert set(order) == needed_for(step, step.gradients, saved)
    assert step.gradients - step.tangents <= run(step, order, given=saved | step.tangents) | saved


@given(steps())
def test_recomputation_waits_for_its_first_reader(made):
    step, saved = made
    order = backward_order(step, saved)
    gradients = [i for i in order if step.operations[i].phase is B]
    assert gradients == sorted(gradients)
    waiting = []
    for index in order:
        if step.operations[index].phase is not B:
            waiting.append(index)
            continue
        assert set(waiting) <= needed_for(step, step.operations[index].reads, saved)
        waiting = []


def oracle_peaks(step, forward, backward, saved):
    """Peaks of forward and backward, by which copies are alive at each position of the orders.

    A copy is a storage and the position that makes it, -1 for what is there at the start.
    """
    sizes = step.storage_bytes

    def maker_of(order, storage, reader):
        """The last position before ``reader`` that makes the storage."""
        makes = (p for p in range(reader) if storage in step.operations[order[p]].writes)
        return max(makes, default=-1)

    def scan(order, start, kept):
        copies = {(s, -1) for s in start}
        copies |= {(s, p) for p, i in enumerate(order) for s in step.operations[i].writes}
        during = [sum(sizes[s] for s in start)] if start else [0]
        for now, index in enumerate(order):
            alive = {
                (s, made)
                for s, made in copies
                if made <= now
                and (
                    made == now
                    or (s, made) in kept
                    or any(
                        s in step.operations[order[p]].reads and maker_of(order, s, p) == made
                        for p in range(now, len(order))
                    )
                )
            }
            workspace_bytes = step.operations[index].workspace_bytes
            during.append(sum(sizes[s] for s, _ in alive) + workspace_bytes)
        return max(during)

    def latest(order, storages):
        return {(s, maker_of(order, s, len(order))) for s in storages}

    kept = latest(forward, saved | step.outputs | step.transient_outputs)
    start = saved | step.outputs | step.tangents
    stay = step.tangents if step.tangents_stay else frozenset()
    held = {(s, -1) for s in step.outputs | stay} | latest(backward, step.gradients)
    return scan(forward, (), kept), scan(backward, start, held)


@st.composite
def steps_with_orders(draw):
    """A step, what it saves, and a backward that computes some of the forward several times."""
    step, saved = draw(steps())
    there = {s for s in range(len(step.storage_bytes)) if s not in step.makers()} | saved
    backward = []
    for index in backward_order(step, saved):
        possible = [
            i
            for i, o in enumerate(step.operations)
            if o.phase is not B and o.writes and set(o.reads) <= there
        ]
        again = draw(st.lists(st.sampled_from(possible), max_size=2)) if possible else []
        backward += [*again, index]
        there.update(s for i in backward for s in step.operations[i].writes)
    return step, saved, backward


@given(steps())
def test_simulated_peaks_equal_those_of_scanning_both_orders(made):
    step, saved = made
    profile = simulate(step, saved)
    orders = forward_order(step, saved), backward_order(step, saved)
    oracle = oracle_peaks(step, *orders, saved)
    assert (profile.forward.peak_bytes, profile.backward.peak_bytes) == oracle
    assert profile.peak_bytes == max(oracle)
    assert profile.saved_bytes == sum(step.storage_bytes[s] for s in saved - step.outputs)


@given(steps_with_orders())
def test_copies_are_alive_from_their_making_to_their_last_reader(made):
    step, saved, backward = made
    forward = forward_order(step, saved)
    profile = simulate_orders(step, forward, backward, saved)
    oracle = oracle_peaks(step, forward, backward, saved)
    assert (profile.forward.peak_bytes, profile.backward.peak_bytes) == oracle


@given(steps())
def test_the_step_ends_with_its_outputs_and_gradients(made):
    step, saved = made
    held = step.outputs | step.gradients | (step.tangents if step.tangents_stay else set())
    assert simulate(step, saved).backward.end_bytes == sum(step.storage_bytes[s] for s in held)


# -- exact numbers ---------------------------------------------------------------------------

PARAMETER, TANGENT, X, Y, LOSS, DX = range(6)
SIZES = [0, 4, 100, 100, 4, 100]


def chain(reducing: bool = True, fusible: bool = True) -> Step:
    """x = product; y = pointwise(x); loss = reduction(y); dx = pointwise(tangent, y)."""
    return Step(
        [
            StepOperation("product", (PARAMETER,), (X,), F),
            StepOperation("pointwise", (X,), (Y,), F, fusible=fusible),
            StepOperation("loss", (Y,), (LOSS,), F, fusible=fusible, reduces=reducing),
            StepOperation("gradient", (TANGENT, Y), (DX,), B, fusible=fusible),
        ],
        SIZES,
        outputs=frozenset([LOSS]),
        transient_outputs=frozenset(),
        gradients=frozenset([DX]),
        tangents=frozenset([TANGENT]),
    )


def peaks(step: Step, saved: set[int]) -> tuple[int, int]:
    profile = simulate(step, saved)
    return profile.forward.peak_bytes, profile.backward.peak_bytes


def test_without_fusion_every_result_is_in_memory():
    # Forward: x, y and the loss. Backward: loss, tangent, x to make y; then y to make dx.
    assert peaks(chain(fusible=False), {X}) == (204, 4 + 4 + 200)


def test_a_result_that_only_fused_readers_read_never_reaches_memory():
    # Forward: y is inlined into the loss's kernel, so that only x and the loss are there.
    # Backward: y is inlined into dx's kernel, which works in x's place.
    assert peaks(chain(), {X}) == (104, 4 + 4 + 100)


def test_a_saved_result_is_written_even_where_its_readers_fuse():
    # y takes x's place, as x dies there; so does dx take y's in the backward.
    assert peaks(chain(), {Y}) == (104, 4 + 4 + 100)
    # With both saved, nothing dies in the forward; the backward begins with both.
    assert peaks(chain(), {X, Y}) == (204, 4 + 4 + 200)


def test_inlined_results_prolong_the_life_of_what_they_are_made_of():
    step = chain()
    between = StepOperation("unrelated", (PARAMETER,), (6,), F)
    read_late = StepOperation("late", (6,), (7,), F)
    longer = Step(
        [step.operations[0], step.operations[1], between, read_late, *step.operations[2:]],
        [*SIZES, 50, 50],
        outputs=step.outputs | {7},
        transient_outputs=frozenset(),
        gradients=step.gradients,
        tangents=step.tangents,
    )
    # x, not y, is alive while the unrelated pair runs, until the loss reads it through y.
    assert simulate(longer, {X}).forward.peak_bytes == 200


def test_a_copy_is_freed_before_the_next_one_is_made():
    # The backward reads y at its start and at its end; between them, 200 bytes are in use.
    first, wide, wide_read, last = 6, 7, 8, 9
    step = Step(
        [
            StepOperation("product", (PARAMETER,), (Y,), F),
            StepOperation("first", (TANGENT, Y), (first,), B),
            StepOperation("wide", (first,), (wide,), B),
            StepOperation("wide read", (wide,), (wide_read,), B),
            StepOperation("last", (wide_read, Y), (last,), B),
        ],
        [*SIZES, 4, 200, 4, 4],
        outputs=frozenset(),
        transient_outputs=frozenset(),
        gradients=frozenset([last]),
        tangents=frozenset([TANGENT]),
    )

    def peak(order):
        return simulate_orders(step, [], order, ()).backward.peak_bytes

    assert peak([0, 1, 2, 3, 4]) == 100 + 4 + 200
    assert peak([0, 1, 2, 3, 0, 4]) == 4 + 200


def test_a_reduction_is_never_inlined_nor_done_in_place():
    step = Step(
        [
            StepOperation("product", (PARAMETER,), (X,), F),
            StepOperation("reduction", (X,), (Y,), F, fusible=True, reduces=True),
            StepOperation("pointwise", (Y,), (LOSS,), F, fusible=True),
        ],
        SIZES,
        outputs=frozenset([LOSS]),
        transient_outputs=frozenset(),
        gradients=frozenset(),
        tangents=frozenset(),
    )
    assert simulate(step, ()).forward.peak_bytes == 200


def test_incoming_gradients_are_not_written_over():
    # dx has the tangent's size, and the tangent dies there, but it is autograd's memory.
    step = Step(
        [StepOperation("gradient", (0,), (1,), B, fusible=True)],
        [10, 10],
        outputs=frozenset(),
        transient_outputs=frozenset(),
        gradients=frozenset([1]),
        tangents=frozenset([0]),
    )
    assert simulate(step, ()).peak_bytes == 20


def test_incoming_gradients_stay_where_the_caller_holds_them():
    last, held = 6, 100
    step = Step(
        [
            StepOperation("first", (TANGENT,), (X,), B),
            StepOperation("second", (X,), (Y,), B),
            StepOperation("third", (Y,), (last,), B),
        ],
        [0, held, 10, 50, 0, 0, 50],
        outputs=frozenset(),
        transient_outputs=frozenset(),
        gradients=frozenset([last]),
        tangents=frozenset([TANGENT]),
    )
    assert peaks(step, set()) == (0, held + 10)
    assert peaks(replace(step, tangents_stay=True), set()) == (0, held + 100)


def test_transient_outputs_are_gone_when_the_backward_begins():
    step = Step(
        [
            StepOperation("product", (PARAMETER,), (X,), F),
            StepOperation("updated buffer", (PARAMETER,), (Y,), F),
            StepOperation("gradient", (TANGENT, X), (DX,), B),
        ],
        SIZES,
        outputs=frozenset(),
        transient_outputs=frozenset([Y]),
        gradients=frozenset([DX]),
        tangents=frozenset([TANGENT]),
    )
    assert peaks(step, {X}) == (200, 204)


def test_the_peak_is_labelled_with_the_phase_that_has_it():
    in_backward = simulate(chain(fusible=False), {X})
    assert (in_backward.forward.peak_label, in_backward.peak_label) == ("loss", "pointwise")
    at_its_start = simulate(chain(), {X, Y})
    assert (at_its_start.forward.peak_label, at_its_start.peak_label) == ("loss", "")


def test_a_sum_of_gradients_runs_right_behind_what_it_adds_up() -> None:
    """The capture may have it at its end; then the products' operands would be kept until there."""
    step = Step(
        [
            StepOperation("layer", (0,), (1,), Phase.FORWARD),
            StepOperation("first", (2, 1), (3,), Phase.BACKWARD),
            StepOperation("second", (2, 1), (4,), Phase.BACKWARD),
            StepOperation("more", (2, 1), (5,), Phase.BACKWARD),
            StepOperation("both", (3, 4), (6,), Phase.BACKWARD, fusible=True),
        ],
        [0, 8, 8, 8, 8, 8, 8],
        outputs=frozenset(),
        transient_outputs=frozenset(),
        gradients=frozenset([5, 6]),
        tangents=frozenset([2]),
    )
    assert backward_order(step, [1]) == [1, 2, 4, 3]
    assert captured_backward_order(step, [1]) == [1, 2, 3, 4]


def test_torch_leaves_what_the_backward_makes_of_constants_where_it_was_captured() -> None:
    step = Step(
        [
            StepOperation("layer", (0,), (1,), Phase.FORWARD),
            StepOperation("first", (2, 1), (3,), Phase.BACKWARD),
            StepOperation("zeros", (), (4,), Phase.EITHER, fusible=True),
            StepOperation("second", (3, 1), (5,), Phase.BACKWARD),
        ],
        [0, 8, 8, 8, 8, 8],
        outputs=frozenset(),
        transient_outputs=frozenset(),
        gradients=frozenset([4, 5]),
        tangents=frozenset([2]),
    )
    assert captured_backward_order(step, [1]) == [1, 2, 3]
    assert backward_order(step, [1]) == [1, 3, 2]


def test_a_long_chain_of_sums_whose_operands_are_there_is_no_deep_recursion() -> None:
    count = 3000
    products = [
        StepOperation(f"product {i}", (2, 1), (3 + i,), Phase.BACKWARD) for i in range(count)
    ]
    sums, latest = [], 3 + count - 1
    for i in range(count - 2, -1, -1):
        result = 3 + count + len(sums)
        reads = (latest, 3 + i)
        sums.append(StepOperation(f"sum {i}", reads, (result,), Phase.BACKWARD, fusible=True))
        latest = result
    step = Step(
        [StepOperation("layer", (0,), (1,), Phase.FORWARD), *products, *sums],
        [0, 8, 8, *[8] * (2 * count - 1)],
        outputs=frozenset(),
        transient_outputs=frozenset(),
        gradients=frozenset([latest]),
        tangents=frozenset([2]),
    )
    assert backward_order(step, [1]) == list(range(1, 2 * count))
