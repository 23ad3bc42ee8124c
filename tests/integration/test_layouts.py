"""Copies that a layout asks for: of gradients by autograd, of inputs by convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import satcompile
from satcompile.compile import rounds
from satcompile.compile.generation import Generated
from satcompile.planner.problem import PlanningProblem
from satcompile.solver.training.step import Step


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


LOSSES: dict[str, tuple[Callable[..., torch.Tensor], Callable[[], list[torch.Tensor]]]] = {
    "as the leaf": (lambda x: x.sin().sum(), lambda: [leaf(60, 80)]),
    "turned": (lambda x: (x.t() * 0.5).mean(), lambda: [leaf(60, 80)]),
    "turned in a product": (lambda x, w: (x @ w.t()).sin().sum(), lambda: [leaf(60, 80) for _ in "xw"]),
    "of three leaves": (
        lambda x, y, z: (x + y + z).sin().sum(),
        lambda: [leaf(60, 80) for _ in "xyz"],
    ),
    "of two leaves, turned": (
        lambda x, y: (x + y.t()).sin().sum(),
        lambda: [leaf(60, 80), leaf(80, 60)],
    ),
    "of a part of what is transformed": (
        lambda x: (torch.fft.rfft(x.tanh()).abs().square() * 0.5).mean(),
        lambda: [leaf(60, 80)],
    ),
    "of a leaf with gaps": (
        lambda x: x.sin().sum(),
        lambda: [torch.randn(80, 60)[:, ::2].requires_grad_()],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_that_autograd_copies_are_counted(name: str) -> None:
    loss, make_leaves = LOSSES[name]
    torch.manual_seed(0)
    leaves = make_leaves()
    torch.compiler.reset()
    run = torch.compile(loss, backend="sat", options={"memory_budget": "1MiB"})

    def step() -> torch.Tensor:
        found = run(*leaves)
        found.backward()
        return found

    step()
    for each in leaves:
        each.grad = None
    peak_bytes = satcompile.measure_peak(step)
    (graph,) = satcompile.report(loss).graphs
    assert graph.predicted_peak_bytes == graph.resident_bytes + peak_bytes


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 144, 4),
    )  # fmt: skip


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Generated]]:
    found: list[Generated] = []
    generate = rounds.generate

    def noted(*args: Any) -> Generated:
        made = generate(*args)
        if made.code is not None:
            found.append(made)
        return made

    monkeypatch.setattr(rounds, "generate", noted)
    torch.compiler.reset()
    yield found
    torch.compiler.reset()


def test_plans_save_no_copies_of_weights_that_convolve(generated: list[Generated]) -> None:
    """Inductor by itself saves each such weight, and the pictures, in the layout of its own."""
    torch.manual_seed(0)
    model, pictures = convolutions(), torch.randn(2, 3, 16, 16)
    run = torch.compile(model, backend="sat", options={"memory_budget": "95% of default"})
    loss = run(pictures).square().mean()
    loss.backward()
    ours, wanted = [p.grad.clone() for p in model.parameters()], []
    model.zero_grad()
    loss = model(pictures).square().mean()
    loss.backward()
    wanted = [p.grad for p in model.parameters()]
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    torchs = next(a for a in generated if a.graphs.plan.is_default)
    planned = generated[-1]
    assert not planned.graphs.plan.is_default
    turned_bytes = pictures.nbytes + model[0].weight.nbytes + model[3].weight.nbytes
    assert torchs.graphs.problem.layout_copies_bytes() == turned_bytes
    assert torchs.walk.saved_bytes - torchs.graphs.plan.profile.saved_bytes >= turned_bytes
    assert planned.walk.saved_bytes <= planned.graphs.plan.profile.saved_bytes


def test_torchs_own_plan_is_a_candidate_for_the_floor_whatever_its_simulation_says(
    generated: list[Generated], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = PlanningProblem.step_of

    def far_too_much(problem: PlanningProblem, is_default: bool) -> Step:
        step = step_of(problem, is_default)
        return replace(step, constant_bytes=2**30) if is_default else step

    monkeypatch.setattr(PlanningProblem, "step_of", far_too_much)
    run = torch.compile(convolutions(), backend="sat", options={"memory_budget": 1})
    with pytest.raises(satcompile.BudgetError):
        run(torch.randn(2, 3, 16, 16))
    assert any(made.graphs.plan.is_default for made in generated)


def test_what_operators_take_inside_is_simulated_as_it_is(generated: list[Generated]) -> None:
    """oneDNN's products in half precision take scratch space that no rule knows."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(4)))
    model, rows = model.bfloat16(), torch.randn(96, 64, dtype=torch.bfloat16)
    run = torch.compile(model, backend="sat", options={"memory_budget": "1GiB"})
    run(rows).float().square().mean().backward()
    planned = generated[-1]
    taken = {op.name: op.workspace_bytes for op in planned.graphs.problem.step.operations}
    assert any(taken.values()) and all(b >= 0 for b in taken.values())
    assert planned.walk.peak_bytes == planned.graphs.plan.profile.peak_bytes
