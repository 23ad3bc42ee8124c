"""What operators take inside a call, and for which it is tried."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from satcompile.graph.capture import capture
from satcompile.planner import workspace
from satcompile.planner.cost.device import known_gpu
from satcompile.planner.cost.roofline import CostModel
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.workspace import (
    Zeros,
    _cut,
    is_product,
    product_takes_workspace,
    workspace_of,
)


@pytest.mark.parametrize(
    ("shape", "strides", "wanted"),
    [
        ((8, 16), (16, 1), ((8, 16), (16, 1))),
        ((300, 500), (500, 1), ((64, 64), (64, 1))),
        ((300, 500), (1, 300), ((64, 64), (1, 64))),
        ((300, 5), (1024, 1), ((64, 5), (5, 1))),
        ((2, 300, 500), (150_000, 1, 300), ((2, 64, 64), (64 * 64, 1, 64))),
        ((300,), (0,), ((64,), (0,))),
        ((1, 500), (1, 1), ((1, 64), (1, 1))),
    ],
)
def test_products_are_tried_small_in_the_same_order(
    shape: tuple[int, ...], strides: tuple[int, ...], wanted: tuple[tuple[int, ...], ...]
) -> None:
    found = _cut(Zeros(shape, strides, torch.float32))
    assert (found.shape, found.strides) == wanted
    assert found.make().shape == wanted[0]


@pytest.mark.parametrize("stay", [True, False])
def test_which_products_take_any(stay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "blas_workspaces_stay", lambda: stay)
    assert product_takes_workspace(torch.bfloat16, "cpu")
    assert not product_takes_workspace(torch.float32, "cpu")
    assert product_takes_workspace(torch.float32, "cuda") is not stay
    assert is_product(torch.ops.aten.addmm.default) and is_product(torch.addmm)
    assert not is_product(torch.ops.aten.add.Tensor)


def test_a_product_in_full_precision_is_not_tried_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(workspace, "workspace_bytes", lambda op, *how: tried.append(op) or 7)
    graph = fx.Graph()
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        with FakeTensorMode():
            value = torch.empty(8, 8, dtype=dtype)
        x = graph.placeholder(str(dtype).replace(".", "_"))
        product = graph.call_function(torch.ops.aten.mm.default, (x, x))
        x.meta["val"], product.meta["val"] = value, value
        found[dtype] = workspace_of(product)
    assert found == {torch.float32: None, torch.bfloat16: 7}
    assert tried == [torch.ops.aten.mm.default]


def test_beside_a_profiler_a_product_on_a_gpu_takes_the_most_that_it_may(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workspace, "profiler_is_active", lambda: True)
    monkeypatch.setattr(workspace, "blas_workspace_bytes", lambda: 123)
    square = Zeros((3, 3), (3, 1), torch.float32)
    assert workspace.workspace_bytes(torch.ops.aten.mm.default, (square, square), {}, "cuda") == 123
    assert not caplog.records
    assert workspace.workspace_bytes(torch.ops.aten.erf.default, (square,), {}, "cuda") == 0
    assert "profiler" in caplog.text


def test_a_plan_that_tries_nothing_counts_products_by_the_device() -> None:
    """As ``satcompile plan`` does, for a card that is not there."""
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    graph = capture(lambda x: module(x).sum(), torch.randn(4, 8, requires_grad=True))
    card = replace(known_gpu("A100"), product_workspace_bytes=1000)
    problem = PlanningProblem(graph, CostModel(card))
    taken = {
        op.target: problem._workspace_bytes(op)
        for op in problem.operations
        if is_product(op.target)
    }
    assert taken and set(taken.values()) == {1000}
    without = PlanningProblem(graph, CostModel(replace(card, product_workspace_bytes=0)))
    assert not any(without.workspaces_bytes)
