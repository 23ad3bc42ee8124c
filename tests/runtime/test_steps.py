"""Calls of a step added up, against the sum over every call that they stand for."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from satcompile.compile.allocation import Figures
from satcompile.runtime.residency import Residency
from satcompile.runtime.shares import Share, step_peak_bytes, stretch_of
from satcompile.runtime.steps import Alone, Call, Step, Steps


@st.composite
def shares(draw: st.DrawFn) -> Share:
    few = st.integers(0, 60)
    residency = Residency(draw(few), draw(few), draw(few), draw(few))
    output_bytes = draw(few)
    held_bytes = output_bytes + draw(few)
    peaks = (held_bytes + draw(few), held_bytes + draw(few))
    return Share(residency, Figures(*peaks, held_bytes, output_bytes, draw(few)))


def _peak_by_definition(calls: Sequence[Share]) -> int:
    """Forwards in order, then backwards in the opposite order, beside what the others hold."""
    lasting = sum(call.residency.total_bytes - call.residency.inputs for call in calls)
    peaks = [0]
    for position, call in enumerate(calls):
        later = calls[position + 1 :]
        before = sum(c.figures.held_bytes for c in calls[:position])
        before += sum(c.residency.inputs for c in calls[: position + 1])
        after = sum(c.figures.gradient_bytes for c in later)
        after += later[-1].figures.output_bytes if later else 0
        peaks += [before + call.figures.forward_bytes, before + call.figures.backward_bytes + after]
    return lasting + max(peaks)


@given(st.lists(shares(), min_size=1, max_size=6))
def test_a_step_s_peak_is_that_of_its_calls(calls: list[Share]) -> None:
    assert step_peak_bytes(calls) == _peak_by_definition(calls)


@given(st.lists(shares(), max_size=6), st.integers(0, 6))
def test_it_does_not_matter_where_a_step_is_cut(calls: list[Share], cut: int) -> None:
    assert stretch_of(calls[:cut]).then(stretch_of(calls[cut:])) == stretch_of(calls)


# -- calls under way -------------------------------------------------------------------------


class CompiledFunction(torch.autograd.Function):
    """Its node is told from others by its name, as AOTAutograd's is."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


@pytest.fixture
def graph() -> SimpleNamespace:
    return SimpleNamespace(last_step=None, is_counted_with=lambda other: True)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def called(steps: Steps, graph: Any) -> torch.Tensor:
    x = torch.ones(2, requires_grad=True)
    call = steps.begin(graph, [x])
    result = CompiledFunction.apply(x)
    steps.opened(call, [result])
    return result


def test_a_call_is_open_until_its_results_are_gone(graph: SimpleNamespace) -> None:
    steps = Steps()
    result = called(steps, graph)
    assert len(steps.open_calls()) == 1
    del result
    assert not steps.open_calls()


def test_calls_of_one_step_are_the_next_one_s_model(graph: SimpleNamespace) -> None:
    steps = Steps()
    results = [called(steps, graph) for _ in range(3)]
    assert graph.last_step is None
    results.clear()
    called(steps, graph)
    assert len(graph.last_step.calls) == 3


def test_forwards_whose_backward_never_comes_are_no_long_step(graph: SimpleNamespace) -> None:
    """As of an evaluation without ``no_grad``, in which one loss lives until the next is there."""
    steps = Steps()
    result = called(steps, graph)
    for _ in range(20):
        result = called(steps, graph)
        assert len(steps._current[threading.get_ident()].calls) <= 2
    del result
    called(steps, graph)
    assert len(graph.last_step.calls) == 2


def test_steps_beside_a_result_that_stays_are_no_long_step(graph: SimpleNamespace) -> None:
    steps = Steps()
    kept = called(steps, graph)
    for _ in range(20):
        result = called(steps, graph)
        steps.backward_begins(graph)
        del result
        assert len(steps._current[threading.get_ident()].calls) <= 2
    assert len(steps.open_calls()) == 1
    del kept


def call_of(step: Step, who: Any, lasting: Residency, **settings: Any) -> Call:
    call = Call(step.graph, step, len(step.calls), 0, who, 0, lasting=lasting, **settings)
    call.share = Share(lasting.with_inputs(7), Figures(50, 60, 40, 4, 5))
    step.calls.append(call)
    return call


def test_what_a_dropped_call_counted_is_counted_with_others(graph: SimpleNamespace) -> None:
    step = Step(graph)
    first = call_of(step, "one", Residency(parameters=100, gradients=30, optimizer_state=200))
    second = call_of(step, "other", Residency(parameters=10), borrowed_bytes=8)
    third = call_of(step, "one", Residency())
    step.drop(first)
    assert step.gone == Residency(parameters=100, optimizer_state=200)
    assert (second.position, third.position) == (0, 1)
    assert second.share is not None and third.share is not None
    assert second.share.residency == Residency(parameters=10, inputs=7 + 8)
    assert third.share.residency == Residency(inputs=7, gradients=30)
    assert stretch_of(third.beside().earlier) == third.before()
    assert third.before().lasting_bytes == 310
    step.drop(third)
    assert step.gone == Residency(parameters=100, gradients=30, optimizer_state=200)


@pytest.mark.usefixtures("no_collector")
def test_steps_leave_nothing_to_the_collector(graph: SimpleNamespace) -> None:
    """Its runs would cost more than the calls: they grow with all that is alive."""
    steps = Steps()
    for _ in range(20):
        result = called(steps, graph)
        steps.backward_begins(graph)
        del result
    calls = [found for found in gc.get_objects() if type(found) is Call]
    assert sum(call.graph is graph for call in calls) <= 1


# -- calls alone -----------------------------------------------------------------------------


def called_alone(steps: Steps, graph: Any, share: Share, counted: frozenset[int]) -> torch.Tensor:
    assert steps.is_idle()
    x = torch.ones(2, requires_grad=True)
    place = SimpleNamespace(residency=share.residency.with_inputs(0), counted=counted)
    decided = SimpleNamespace(share=lambda: share)
    result = CompiledFunction.apply(x)
    alone = Alone(graph, "one", (), place, decided, [weakref.ref(x)])
    steps.opened_alone(alone, [result])
    return result


def test_a_call_alone_is_the_first_of_a_step_that_another_joins(graph: SimpleNamespace) -> None:
    steps = Steps()
    share = Share(Residency(parameters=100, inputs=8), Figures(50, 60, 40, 8, 20))
    result = called_alone(steps, graph, share, frozenset({1, 2}))
    assert not steps.is_idle()
    second = steps.begin(graph, [result])
    assert second.position == 1
    assert second.before() == stretch_of([share])
    assert {1, 2} <= second.step.counted
    assert second.step.new_bytes(result) == 0  # the first call counts it
    steps.backward_begins(graph)
    assert second.before() == stretch_of([share.closed])


def test_a_call_alone_is_over_when_its_backward_begins_or_its_results_are_gone(
    graph: SimpleNamespace,
) -> None:
    steps = Steps()
    share = Share(Residency(), Figures(0, 0, 0, 0, 0))
    result = called_alone(steps, graph, share, frozenset())
    steps.backward_begins(graph)
    assert steps.is_idle()
    result = called_alone(steps, graph, share, frozenset())
    assert len(steps.open_calls()) == 1
    del result
    assert steps.is_idle()
    assert not steps.open_calls()


def test_the_step_before_a_call_alone_has_ended(graph: SimpleNamespace) -> None:
    steps = Steps()
    results = [called(steps, graph) for _ in range(3)]
    results.clear()
    assert steps.is_idle()
    assert len(graph.last_step.calls) == 3


def test_steps_that_are_alike_are_one_model(graph: SimpleNamespace) -> None:
    """So that what was decided by it is found again."""
    steps = Steps()
    share = Share(Residency(), Figures(1, 2, 3, 4, 5))

    def step(num_calls: int) -> Any:
        results = []
        for _ in range(num_calls):
            results.append(called(steps, graph))
            steps.open_calls()[-1].share = share
        results.clear()
        assert steps.is_idle()
        return graph.last_step

    first = step(3)
    assert step(3) is first
    assert len(step(2).calls) == 2


def test_a_step_is_named_after_the_first_call_that_did_not_fail() -> None:
    steps = Steps()
    held, failing, graph = (
        SimpleNamespace(last_step=None, is_counted_with=lambda other: False) for _ in range(3)
    )
    results = [called(steps, held)]
    steps.failed(steps.begin(failing, [torch.ones(2)]))
    continued = torch.ones(2, requires_grad=True) * 2
    assert steps.begin(graph, [continued]).step.graph is graph
    assert results


def test_results_may_go_while_the_lock_is_held(graph: SimpleNamespace) -> None:
    """The collector runs wherever something is allocated, and may find a forward's node then."""
    steps = Steps()
    results = [called(steps, graph)]
    with steps._lock:
        results.clear()
    assert not steps.open_calls()
