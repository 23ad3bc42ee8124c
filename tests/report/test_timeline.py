"""Memory over the step: the planner's simulation, with names."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given

from satcompile.compile.planning import PlannedGraphs
from satcompile.report.memory import default_timeline, plan_timeline
from satcompile.report.timeline import BOUNDARY, Allocation, Timeline, timeline
from satcompile.solver.training.lifetimes import lifetimes
from satcompile.solver.training.step import (
    Phase,
    Step,
    StepOperation,
    backward_order,
    forward_order,
    loads,
    simulate_orders,
)
from tests.partitions import planned_tightly
from tests.passes.vocabulary import Head, cross_entropy, data
from tests.solver.test_step import steps
from tests.zoo import build

KINDS = {
    "saved", "recomputed", "gradient", "output", "tangent", "workspace", "constant", "temporary",
}  # fmt: skip


@pytest.fixture(scope="module")
def gpt2() -> PlannedGraphs:
    torch.compiler.reset()
    return planned_tightly(*build("gpt2"), 0.7)


@pytest.fixture(scope="module")
def resnet() -> PlannedGraphs:
    torch.compiler.reset()
    return planned_tightly(*build("resnet"), 0.8)


# -- lifetimes, of any step --------------------------------------------------------------------


@given(steps())
def test_loads_are_the_simulators_and_the_sum_of_what_is_alive(made):
    step, saved = made
    forward, backward = forward_order(step, saved), backward_order(step, saved)
    found = lifetimes(step, forward, backward, saved)
    profile = simulate_orders(step, forward, backward, saved)
    assert max((*found.loads, step.constant_bytes)) == profile.peak_bytes
    in_forward, in_backward = loads(step, forward, backward, saved)
    expected = [*in_forward, found.loads[found.boundary], *in_backward]
    order = [*forward, None, *backward]
    for position, load in enumerate(found.loads):
        alive = sum(c.num_bytes for c in found.copies if c.first <= position <= c.last)
        assert alive + step.constant_bytes == load
        index = order[position]
        if index is not None and step.operations[index].writes:  # else it counts what is left
            assert load == expected[position]


@given(steps())
def test_what_crosses_is_alive_at_the_boundary(made):
    step, saved = made
    found = lifetimes(step, forward_order(step, saved), backward_order(step, saved), saved)
    at_boundary = {c.storage for c in found.copies if c.first <= found.boundary <= c.last}
    crosses = saved | step.outputs | step.tangents
    assert at_boundary == {s for s in crosses if step.storage_bytes[s]}


def test_a_value_made_again_has_two_lives():
    f, b = Phase.FORWARD, Phase.BACKWARD
    operations = [
        StepOperation("wide", (0,), (1,), f),
        StepOperation("narrow", (1,), (2,), f),
        StepOperation("gradient", (1, 3), (4,), b),
    ]
    step = Step(operations, [0, 100, 10, 10, 40], frozenset([2]), frozenset(), frozenset([4]),
                frozenset([3]))  # fmt: skip
    made = timeline(step, [0, 1], [0, 2], [], [(1.0, 0.5)] * 3, lambda s: (f"s{s}", "m", "f:1"))
    assert made.labels == ("wide", "narrow", BOUNDARY, "wide", "gradient")
    assert made.phases == ("forward",) * 2 + ("backward",) * 3
    assert made.alive_bytes == (100, 110, 20, 120, 160)
    assert made.times_us == (1.5, 1.5, 0.0, 1.5, 1.5)
    assert (made.peak_bytes, made.peak_position) == (160, 4)
    assert set(made.allocations) == {
        Allocation("s1", 100, 0, 1, "temporary", "m", "f:1"),
        Allocation("s2", 10, 1, 4, "output", "m", "f:1"),
        Allocation("s3", 10, 2, 4, "tangent", "m", "f:1"),
        Allocation("s1", 100, 3, 4, "recomputed", "m", "f:1"),
        Allocation("s4", 40, 4, 4, "gradient", "m", "f:1"),
    }
    assert [each.name for each in made.alive_at(4, most=2)] == ["s1", "s4"]
    assert made.above(1000).alive_bytes == (1100, 1110, 1020, 1120, 1160)
    assert made.above(1000).above(7) == made.above(7)


# -- of real models ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "resnet"])
def test_its_maximum_is_the_plans_simulated_peak(name, request):
    made = request.getfixturevalue(name)
    found = plan_timeline(made.problem, made.plan)
    default = default_timeline(made.problem, made.plan)
    assert found.peak_bytes == made.plan.profile.peak_bytes
    assert default.peak_bytes == made.plan.default_profile.peak_bytes
    assert found.peak_bytes < default.peak_bytes
    assert found.labels[found.peak_position] in (made.plan.profile.peak_label, BOUNDARY)


@pytest.mark.parametrize("name", ["gpt2", "resnet"])
def test_what_is_alive_adds_up_at_every_position(name, request):
    made = request.getfixturevalue(name)
    for found in (
        plan_timeline(made.problem, made.plan).above(12345),
        default_timeline(made.problem, made.plan).above(12345),
    ):
        for position, alive_bytes in enumerate(found.alive_bytes):
            alive = [a for a in found.allocations if a.first <= position <= a.last]
            assert 12345 + sum(a.num_bytes for a in alive) == alive_bytes
        assert {a.kind for a in found.allocations} <= KINDS


def test_saved_and_recomputed_values_are_named_with_their_modules(gpt2):
    found = plan_timeline(gpt2.problem, gpt2.plan)
    kinds = {a.kind for a in found.allocations}
    assert {"saved", "recomputed", "gradient", "output", "temporary"} <= kinds
    boundary = found.labels.index(BOUNDARY)
    saved = [a for a in found.allocations if a.kind == "saved"]
    assert all(a.first < boundary <= a.last for a in saved)
    assert sum(a.num_bytes for a in saved) == gpt2.plan.profile.saved_bytes
    assert any(a.module.startswith("transformer.h.1.") for a in saved)
    assert any(a.source.startswith("modeling_gpt2.py:") for a in saved)
    recomputed = {node.name for node in gpt2.plan.recomputed}
    assert {label for label in found.labels if found.labels.count(label) > 1} <= recomputed


def test_recomputation_takes_its_time(gpt2):
    found = plan_timeline(gpt2.problem, gpt2.plan)
    default = default_timeline(gpt2.problem, gpt2.plan)
    assert sum(found.times_us) > sum(default.times_us) > 0


def test_its_data_reads_back_exactly(gpt2):
    found = plan_timeline(gpt2.problem, gpt2.plan).above(7)
    assert Timeline.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_torchs_own_plan_keeps_its_logits_whole_where_ours_has_chunks():
    tokens, targets = data(batch=8, length=128)
    made = planned_tightly(Head(cross_entropy()), {"tokens": tokens, "targets": targets}, 0.55)
    assert made.problem is not made.outcome.whole
    default = default_timeline(made.outcome.whole, made.plan)
    assert default.peak_bytes == made.plan.default_profile.peak_bytes
    found = plan_timeline(made.problem, made.plan)
    assert found.peak_bytes == made.plan.profile.peak_bytes < default.peak_bytes
    assert len(found.labels) > len(default.labels)
    (record,) = (each for each in made.outcome.passes if each.name == "chunked_loss")
    assert record.change is not None and record.change.diff()
    assert len(record.change.after().splitlines()) > len(record.change.before().splitlines())
