"""Budgets from the floor to the default's peak: each is held, and less of it is never more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import satcompile
from tests.integration.test_use import Net
from tests.integration.training import measured

BUDGETS = 5


def peak(run: Any, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[int, Any]:
    """Measured peak with what is resident, and the report of the graph."""
    peak_bytes = measured(run, model, inputs, loss_of=lambda output: output.square().sum())
    graph = satcompile.report(model).graphs[-1]
    torch.compiler.reset()
    return graph.resident_bytes + peak_bytes, graph


@pytest.mark.slow
def test_every_budget_is_held_and_a_lower_one_has_no_higher_peak() -> None:
    model, inputs = Net(layers=4, width=32), {"x": torch.randn(512, 32)}
    default_bytes, _ = peak(torch.compile(model, backend="sat"), model, inputs)
    with pytest.raises(satcompile.BudgetError) as caught:
        torch.compile(model, backend="sat", options={"memory_budget": 1})(**inputs)
    torch.compiler.reset()
    floor_bytes = caught.value.floor_bytes
    lowest = default_bytes
    for i in reversed(range(BUDGETS)):
        budget_bytes = floor_bytes + (default_bytes - floor_bytes) * i // (BUDGETS - 1)
        options = {"memory_budget": budget_bytes}
        run = torch.compile(model, backend="sat", options=options)
        measured_bytes, graph = peak(run, model, inputs)
        outside_bytes = 16  # of the loss, which is not compiled
        assert measured_bytes <= budget_bytes + outside_bytes
        assert graph.predicted_peak_bytes == pytest.approx(measured_bytes, rel=0.01)
        assert graph.default_peak_bytes == pytest.approx(default_bytes, rel=0.01)
        assert measured_bytes <= 1.01 * lowest
        lowest = min(lowest, measured_bytes)
