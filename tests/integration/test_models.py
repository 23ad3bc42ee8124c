"""Five families of models: gradients against eager, peaks against the budget and the report."""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from typing import Any

import pytest
import torch

import satcompile
from tests.integration.training import (
    FLOAT32_INSIDE,
    SAME_RANDOM_NUMBERS,
    TOLERANCE,
    assert_same_gradients,
    budget_between,
    compile_within,
    measured,
    only_graph,
    step_gradients,
)
from tests.zoo import build


def _in_dtype(
    name: str, dtype: torch.dtype, **sizes: int
) -> tuple[torch.nn.Module, dict[str, Any]]:
    model, inputs = build(name, **sizes)
    floating = {k: v.to(dtype) for k, v in inputs.items() if v.is_floating_point()}
    return model.to(dtype), {**inputs, **floating}


def _check(name: str, dtype: torch.dtype, tolerance: float, context: Any, **sizes: int) -> None:
    model, inputs = _in_dtype(name, dtype, **sizes)
    eager = copy.deepcopy(model)
    wanted = step_gradients(eager, eager, inputs, context=context)

    unlimited = torch.compile(model, backend="sat", options=dict(SAME_RANDOM_NUMBERS))
    assert_same_gradients(
        step_gradients(unlimited, model, inputs, context=context), wanted, tolerance
    )
    peak_bytes = measured(unlimited, model, inputs, context)
    graph = only_graph(model)
    assert graph.predicted_peak_bytes == graph.default_peak_bytes
    resident_bytes = graph.resident_bytes
    assert resident_bytes + peak_bytes == pytest.approx(graph.predicted_peak_bytes, rel=0.01)
    default_bytes = graph.default_peak_bytes

    budget_bytes = budget_between(graph, 0.4)
    torch.compiler.reset()
    limited = compile_within(
        model,
        budget_bytes,
        lambda run: step_gradients(run, model, inputs, context=context),
        **SAME_RANDOM_NUMBERS,
    )
    assert_same_gradients(
        step_gradients(limited, model, inputs, context=context), wanted, tolerance
    )
    peak_bytes = measured(limited, model, inputs, context)
    graph = satcompile.report(model).graphs[-1]
    budget_bytes = graph.budget_bytes
    print(
        f"{name} {dtype}: default {default_bytes}, budget {budget_bytes}, predicted "
        f"{graph.predicted_peak_bytes}, measured {graph.measured_peak_bytes}"
    )
    assert graph.recomputed, "the budget was to force recomputation"
    assert graph.measured_peak_bytes == graph.resident_bytes + peak_bytes
    assert graph.measured_peak_bytes <= budget_bytes
    assert graph.measured_peak_bytes == pytest.approx(graph.predicted_peak_bytes, rel=0.01)
    with torch.no_grad():  # the default's code is generated here, as for training
        assert graph.default_peak_bytes == pytest.approx(default_bytes, rel=0.01)


@pytest.mark.parametrize("name", ["llama", pytest.param("resnet", marks=pytest.mark.slow)])
def test_float64_gradients_and_peaks(name: str) -> None:
    tolerance = FLOAT32_INSIDE.get(name, TOLERANCE[torch.float64])
    _check(name, torch.float64, tolerance, contextlib.nullcontext)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit"])
def test_float32_gradients_and_peaks(name: str) -> None:
    _check(name, torch.float32, TOLERANCE[torch.float32], contextlib.nullcontext, layers=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert"])
def test_bf16_autocast_gradients_and_peaks(name: str) -> None:
    context = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    _check(name, torch.float32, TOLERANCE[torch.bfloat16], context, layers=1)


def _trained(name: str, in_backward: bool, context: Any) -> list[torch.Tensor]:
    """Parameters after three steps."""
    torch.compiler.reset()
    model, inputs = _in_dtype(name, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4)
    satcompile.fuse_optimizer(optimizer, in_backward)
    run = torch.compile(model, backend="sat", options=dict(SAME_RANDOM_NUMBERS))
    for seed in range(3):
        torch.manual_seed(seed)
        with context():
            value = run(**inputs).loss
        value.backward()
        if in_backward:
            assert all(parameter.grad is None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "resnet"])
def test_updates_inside_the_backward_are_those_of_step(name: str) -> None:
    context = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    precision = context if name == "gpt2" else contextlib.nullcontext
    pairs = zip(_trained(name, True, precision), _trained(name, False, precision), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)
