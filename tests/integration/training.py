"""What the integration tests share: gradients, their comparison, and measured steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

import satcompile
from satcompile.report.data import GraphReport

# Random numbers as eager draws them, so that dropout can be compared.
SAME_RANDOM_NUMBERS = {"inductor": {"fallback_random": True}}

# Of the whole gradient's norm. Llama computes norms and rotations in float32 whatever its dtype.
FLOAT32_INSIDE = {"llama": 1e-6}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def clear_gradients(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def step_gradients(
    run: Callable[..., Any],
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    seed: int = 7,
    context: Callable[[], Any] = contextlib.nullcontext,
) -> dict[str, torch.Tensor]:
    """Gradients of one step of ``run`` (the model, or what it was compiled to)."""
    clear_gradients(model)
    torch.manual_seed(seed)
    with context():
        loss = run(**inputs).loss
    loss.backward()
    found = gradients(model)
    clear_gradients(model)
    return found


def assert_same_gradients(
    found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], tolerance: float
) -> None:
    """Every entry within ``tolerance`` of the whole gradient's norm: what is near zero by
    cancellation is not held to a relative error of its own."""
    assert found.keys() == wanted.keys()
    norm = torch.sqrt(sum((g.double() ** 2).sum() for g in wanted.values()))
    assert torch.isfinite(norm) and norm > 0
    for name, gradient in wanted.items():
        error = (found[name].double() - gradient.double()).abs().max() / norm
        assert error <= tolerance, f"{name}: off by {error:.2e} of the gradient's norm"


def measured(
    run: Callable[..., Any],
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    context: Callable[[], Any] = contextlib.nullcontext,
    loss_of: Callable[[Any], torch.Tensor] = lambda output: output.loss,
) -> int:
    """Peak bytes of a step as the budget counts it: the output is held, no gradient is set."""

    def step() -> Any:
        with context():
            output = run(**inputs)
        loss_of(output).backward()
        return output

    clear_gradients(model)
    step()
    clear_gradients(model)
    peak_bytes = satcompile.measure_peak(step)
    clear_gradients(model)
    return peak_bytes


def only_graph(compiled: Any) -> GraphReport:
    graphs = satcompile.report(compiled).graphs
    assert len(graphs) == 1, [graph.name for graph in graphs]
    return graphs[0]


def budget_between(graph: GraphReport, share: float) -> int:
    """A budget between the floor (0) and the default's peak (1) of an unlimited graph."""
    return int(graph.floor_bytes + share * (graph.default_peak_bytes - graph.floor_bytes))


def compile_within(
    model: torch.nn.Module, budget: Any, run: Callable[[Any], Any], **options: Any
) -> Any:
    """The model compiled under a budget; where that is below the floor, at the floor + 1%."""
    compiled = torch.compile(model, backend="sat", options={"memory_budget": budget, **options})
    try:
        run(compiled)
    except satcompile.BudgetError as error:
        assert error.floor_bytes > error.budget_bytes
        torch.compiler.reset()
        options["memory_budget"] = int(error.floor_bytes * 1.01)
        compiled = torch.compile(model, backend="sat", options=options)
        run(compiled)
    return compiled
