"""What a report says of gradients that the backward hands to their optimizer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import satcompile
from satcompile.report.updates import LatestCall, PlannedUpdates, SavedUpdates, UpdateReport


def rows(report: UpdateReport | SavedUpdates) -> dict[str, tuple[bool, str]]:
    return {row.name: (row.consumed, row.reason) for row in report.parameters}


def test_a_report_says_which_gradients_the_backward_consumed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    first, last = model[0], model[2]
    compiled = torch.compile(model, backend="sat")
    x = torch.randn(4, 8)
    optimizer = torch.optim.AdamW([first.weight, first.bias, last.weight, last.bias])
    satcompile.fuse_optimizer(optimizer, in_backward=True)
    last.bias.register_hook(lambda gradient: None)
    loss = compiled(x).sum()
    found = satcompile.report(compiled).graphs[0].updates
    assert found is not None
    hook = (False, "a hook is to see them")
    assert not found.observed
    assert rows(found) == {
        "0.weight": (True, ""), "0.bias": (True, ""), "2.weight": (True, ""), "2.bias": hook,
    }  # fmt: skip
    assert found.unplanned_bytes == 0

    late = first.bias.register_hook(lambda gradient: None)  # after the forward: at run time
    loss.backward()
    assert found.observed
    assert rows(found) == {
        "0.weight": (True, ""), "0.bias": hook, "2.weight": (True, ""), "2.bias": hook,
    }  # fmt: skip
    assert found.unplanned_bytes == first.bias.nbytes
    late.remove()
    returned = [p for p in model.parameters() if p.grad is not None]
    assert returned == [first.bias, last.bias]
    assert found.returned_bytes == sum(p.grad.nbytes for p in returned if p.grad is not None)
    assert found.consumed_bytes == first.weight.nbytes + last.weight.nbytes
    assert {row.optimizer for row in found.parameters} == {"AdamW"}
    data = satcompile.report(compiled).to_dict()["graphs"][0]["updates"]
    assert data == found.to_dict()
    assert set(data) >= {
        "observed", "consumed_bytes", "returned_bytes", "unplanned_bytes", "parameters",
    }  # fmt: skip
    again = SavedUpdates.from_dict(json.loads(json.dumps(data)))
    assert again.to_dict() == data
    assert rows(again) == rows(found)
    row_keys = {"name", "shape", "bytes", "optimizer", "consumed", "reason"}
    assert row_keys <= set(data["parameters"][0])


def report_of(module: nn.Module, changed: Any = None, **withheld: str) -> UpdateReport:
    """The report of a graph that hands over no gradient."""
    planned = PlannedUpdates(None, frozenset(), frozenset(), {0: "weight", 1: "bias"}, False)
    planned = replace(planned, **(changed or {}))
    call = LatestCall(
        dict(enumerate(module.parameters())), {int(p[1:]): r for p, r in withheld.items()}
    )
    return UpdateReport(planned, lambda: call, lambda: None)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "in_backward=False"),
        ({"in_backward": True, "accumulate": 3}, "accumulate=3: backwards are summed first"),
        (
            {"in_backward": True, "max_grad_norm": 1.0},
            "max_grad_norm: the norm is of all gradients together",
        ),
        ({"in_backward": True}, "the optimizer asked for it after the latest forward"),
    ],
)
def test_what_is_returned_says_why(settings: dict[str, Any], reason: str) -> None:
    module = nn.Linear(2, 3)
    optimizer = satcompile.fuse_optimizer(torch.optim.SGD(module.parameters()), **settings)
    found = report_of(module)
    assert found.is_fused
    assert rows(found) == {"weight": (False, reason), "bias": (False, reason)}
    assert [row.optimizer for row in found.parameters] == ["SGD", "SGD"]
    assert (found.consumed_bytes, found.returned_bytes) == (0, 24 + 12)
    del optimizer


def test_what_the_graph_could_not_do_is_told() -> None:
    module = nn.Linear(2, 3)
    optimizer = satcompile.fuse_optimizer(torch.optim.SGD(module.parameters()), in_backward=True)
    asked = {"offered": frozenset({0, 1})}
    left_out = {"is_disabled": True}
    assert rows(report_of(module, asked, p1="a hook is to see them")) == {
        "weight": (False, "inputs of the graph share memory"),
        "bias": (False, "a hook is to see them"),
    }
    assert rows(report_of(module, asked | left_out))["weight"] == (
        False,
        "disable_passes names 'fused_update'",
    )
    other = satcompile.fuse_optimizer(torch.optim.SGD([module.weight]), in_backward=True)
    assert "two optimizers" in rows(report_of(module, asked))["weight"][1]
    del optimizer, other


def test_parameters_of_nobody_and_without_a_gradient() -> None:
    module = nn.Linear(2, 3)
    assert not report_of(module).is_fused  # and the graph's report has no updates
    optimizer = satcompile.fuse_optimizer(torch.optim.SGD([module.bias]), in_backward=True)
    planned = {"consumed": frozenset({1}), "offered": frozenset({1})}
    found = report_of(module, planned)
    assert found.is_fused
    assert rows(found) == {"weight": (False, "no fused optimizer has it"), "bias": (True, "")}
    assert rows(report_of(module, planned | {"with_gradient": frozenset({1})})) == {
        "bias": (True, "")
    }
    module.weight.requires_grad_(False)
    assert rows(report_of(module, planned)) == {"bias": (True, "")}
    del optimizer
