"""Planned graphs follow from a joint graph and a request, and from nothing else."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import nn

from satcompile.compile.planning import PlannedGraphs, plan_graphs
from satcompile.graph.capture import capture_with_inputs
from satcompile.options import Options, parse
from satcompile.planner.request import Request, Subject
from satcompile.planner.searches import Searches


class Net(nn.Module):
    """Layers whose activations are worth computing again, and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.nn.functional.gelu(layer(x)).sin()
        return x.square().sum()


def planned(request: Request | None = None, searches: Searches | None = None) -> PlannedGraphs:
    torch.compiler.reset()
    captured = capture_with_inputs(Net(), (torch.randn(64, 32),), {})
    trained = frozenset(
        i for i, value in enumerate(captured.inputs) if isinstance(value, nn.Parameter)
    )
    if request is None:
        request = Request(Options(), Subject(len(captured.inputs)))
    subject = replace(request.subject, num_inputs=len(captured.inputs), trained=trained)
    updates = trained if request.updates else frozenset[int]()
    return plan_graphs(captured.graph, replace(request, subject=subject, updates=updates), searches)


@pytest.fixture(scope="module")
def default() -> PlannedGraphs:
    return planned()


def half(default: PlannedGraphs) -> Request:
    low_bytes = default.plan.profile.peak_bytes * 7 // 10
    return replace(default.request, limit_bytes=low_bytes)


def test_a_request_does_not_change(default: PlannedGraphs) -> None:
    with pytest.raises(FrozenInstanceError):
        default.request.limit_bytes = 1  # type: ignore[misc]


def test_the_same_request_has_the_same_plan_whatever_was_asked_before(
    default: PlannedGraphs,
) -> None:
    searches = Searches()
    lowest = replace(default.request, limit_bytes=0, lowest_peak=True)
    first = planned(half(default))
    planned(lowest, searches)
    planned(default.request, searches)
    again = planned(half(default), searches)
    assert first.key == again.key != default.key
    assert first.plan.is_like(again.plan)
    assert first.plan.profile.peak_bytes == again.plan.profile.peak_bytes


def test_a_limit_that_cannot_be_kept_is_seen_before_any_code(default: PlannedGraphs) -> None:
    kept = planned(half(default))
    assert kept.is_within_request and kept.plan.profile.peak_bytes <= kept.request.limit_bytes
    broken = planned(replace(default.request, limit_bytes=1, accept_bytes=1))
    assert not broken.is_within_request
    lowest = planned(replace(default.request, limit_bytes=0, lowest_peak=True))
    assert lowest.is_within_request  # whatever it is, it was asked for
    assert lowest.key == broken.key


def test_what_tells_code_apart_is_in_the_key_of_a_request(default: PlannedGraphs) -> None:
    request = default.request
    others = [
        replace(request, limit_bytes=5),
        replace(request, saved_limit_bytes=5),
        replace(request, default_within_bytes=5),
        replace(request, lowest_peak=True),
        replace(request, low_way=1),
        replace(request, updates=frozenset({0})),
        replace(request, options=parse({"inductor": {"max_autotune": True}})),
    ]
    assert len({each.key for each in (request, *others)}) == 1 + len(others)
    # What is accepted of the code does not change it.
    assert replace(request, accept_bytes=5).key == request.key


def test_updates_are_planned_for_the_parameters_that_ask_for_them(default: PlannedGraphs) -> None:
    assert default.updates is None and default.consumed == ()
    made = planned(replace(default.request, updates=frozenset({0})))
    assert made.updates is not None and set(made.consumed) == made.request.updates
    assert set(made.update_edges) == set(made.consumed)
    returned_bytes = default.plan.profile.backward.end_bytes
    assert made.plan.profile.backward.end_bytes < returned_bytes


def test_updates_are_left_out_where_positions_are_not_known(
    default: PlannedGraphs, caplog: pytest.LogCaptureFixture
) -> None:
    captured = capture_with_inputs(Net(), (torch.randn(64, 32),), {})
    asked = replace(default.request, updates=frozenset({0}), subject=Subject(99))
    made = plan_graphs(captured.graph, asked)
    assert made.updates is None and made.with_gradient is None
    assert "share memory" in caplog.text


def test_without_a_limit_torchs_own_plan_is_taken(default: PlannedGraphs) -> None:
    assert default.plan.is_default and default.is_within_request
    assert default.parts.num_outputs == 1
    assert default.regions_forgotten == 0 and default.sparse is None
