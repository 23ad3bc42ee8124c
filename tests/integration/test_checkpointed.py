"""The user's own ``torch.utils.checkpoint`` regions: kept, seen through, or taken as advice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import satcompile
from satcompile.errors import OptionError
from satcompile.planner.recompute import Recompute
from tests.integration.training import SAME_RANDOM_NUMBERS, only_graph
from tests.partitions import planned
from tests.torch_compat.versions import TORCH


class Attending(nn.Module):
    """Blocks of attention and a wide middle, each a region, gone through ``rounds`` times."""

    def __init__(self, blocks: int = 2, dropout: float = 0.0, rounds: int = 1) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(16, 48) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(16, 64) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(64, 16) for _ in range(blocks))
        self.dropout, self.rounds = dropout, rounds

    def block(self, number: int, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv[number](x).view(2, -1, 2, 24).transpose(1, 2).split(8, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)
        x = x + mixed.transpose(1, 2).reshape(x.shape)
        return x + self.down[number](nn.functional.gelu(self.up[number](x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        loss = torch.zeros((), dtype=x.dtype)
        for _ in range(self.rounds):
            inner = x
            for number in range(len(self.qkv)):
                inner = checkpoint(self.block, number, inner, use_reentrant=False)
            loss = loss + inner.sin().sum()
        return loss


def _gradients(run: Any, model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    run(x).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    tolerance = 1e-10 if wanted[0].dtype == torch.float64 else 1e-5
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_attention_in_a_region(dropout: float) -> None:
    torch.manual_seed(0)
    dtype = torch.float64 if TORCH >= (2, 13) else torch.float32  # torch.compile of 2.11 fails, too
    model, x = Attending(1, dropout).to(dtype), torch.randn(2, 8, 16, dtype=dtype)
    eager = copy.deepcopy(model)
    wanted = _gradients(eager, eager, x)
    torch.compiler.reset()
    run = torch.compile(model, backend="sat", options=dict(SAME_RANDOM_NUMBERS))
    _same(_gradients(run, model, x), wanted)
    (note,) = (n for n in only_graph(model).notes if "checkpoint regions" in n)
    assert "of the forward's time" in note and "'checkpoints': 'advice'" in note


def test_attention_without_dropout_leaves_the_plan_its_order() -> None:
    made = planned(Attending(1).double(), {"x": torch.randn(2, 8, 16).double()})
    assert made.plan.order_kept is None
    again = planned(Attending(1, dropout=0.3).double(), {"x": torch.randn(2, 8, 16).double()})
    assert again.plan.order_kept is None or "random" in again.plan.order_kept


def test_regions_that_are_gone_through_twice_are_planned_one_at_a_time() -> None:
    """Torch's own order keeps what several regions compute again alive at once: with one traversal
    more the lowest plan grows by what is saved, not by another copy of a block's insides."""

    def lowest_bytes(rounds: int) -> int:
        model, x = Attending(3, rounds=rounds).double(), torch.randn(2, 64, 16).double()
        made = planned(model, {"x": x})
        return Recompute(lowest_peak=True, limit_bytes=0).run(made.problem).profile.peak_bytes

    once, twice = lowest_bytes(1), lowest_bytes(2)
    a_region_saves = 2 * 64 * 16 * 8
    gradients = sum(p.numel() * 8 for p in Attending(3).parameters())
    assert twice <= once + 3 * a_region_saves + gradients


@pytest.mark.slow
def test_regions_as_advice_are_within_what_they_take_and_compute_less_again() -> None:
    torch.manual_seed(0)
    model, x = Attending(3, rounds=2).double(), torch.randn(2, 64, 16).double()
    eager = copy.deepcopy(model)
    wanted = _gradients(eager, eager, x)

    def step(run: Any) -> Any:
        loss = run(x)
        loss.backward()
        return loss

    eager.zero_grad()
    eager_bytes = satcompile.measure_peak(lambda: step(eager))
    resident = sum(p.nbytes for p in model.parameters()) + x.nbytes
    torch.compiler.reset()
    options = {"memory_budget": eager_bytes + resident, "checkpoints": "advice"}
    run = torch.compile(model, backend="sat", options=options)
    _same(_gradients(run, model, x), wanted)
    model.zero_grad()
    assert satcompile.measure_peak(lambda: step(run)) <= eager_bytes
    graph = only_graph(model)
    assert any("taken as advice" in note for note in graph.notes)
    assert graph.recompute_time_us < graph.forward_time_us  # which regions around all would take


class Twice(nn.Module):
    """Blocks that two inputs go through in one step, each of their uses a region."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(16, 64) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(64, 16) for _ in range(blocks))

    def block(self, number: int, x: torch.Tensor) -> torch.Tensor:
        return x + self.down[number](nn.functional.gelu(self.up[number](x)))

    def through(self, x: torch.Tensor) -> torch.Tensor:
        for number in range(len(self.up)):
            x = checkpoint(self.block, number, x, use_reentrant=False)
        return x

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.through(x).sin().mean() + self.through(y).cos().mean()


def test_blocks_gone_through_twice_take_a_fifth_less_than_eager_with_its_regions() -> None:
    """A gradient that is a sum of both passes' must not keep the first one's operands."""
    torch.manual_seed(0)
    model, x, y = Twice(3).double(), torch.randn(256, 16).double(), torch.randn(256, 16).double()
    eager = copy.deepcopy(model)

    def step(run: Any) -> Any:
        loss = run(x, y)
        loss.backward()
        return loss

    peak_bytes = int(0.8 * satcompile.measure_peak(lambda: step(eager)))
    resident = sum(p.nbytes for p in model.parameters()) + x.nbytes + y.nbytes
    torch.compiler.reset()
    options = {"memory_budget": peak_bytes + resident}
    run = torch.compile(model, backend="sat", options=options)
    step(run)
    gradients = zip(model.parameters(), eager.parameters(), strict=True)
    _same(*zip(*((p.grad, q.grad) for p, q in gradients), strict=True))
    model.zero_grad()
    assert satcompile.measure_peak(lambda: step(run)) <= peak_bytes


def test_advice_needs_a_budget_and_a_word_that_is_known() -> None:
    for options in ({"checkpoints": "advice"}, {"memory_budget": "1GB", "checkpoints": "maybe"}):
        with pytest.raises(OptionError, match="checkpoints"):
            torch.compile(Attending(1), backend="sat", options=options)(torch.randn(2, 8, 16))


def test_a_retained_graph_runs_again() -> None:
    """What the backward would overwrite is copied where the graph is kept; torch's own refuses."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 64), nn.Softplus(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1)]
    model = nn.Sequential(*layers).double()
    eager, x = copy.deepcopy(model), torch.randn(32, 16).double()
    torch.compiler.reset()
    run = torch.compile(model, backend="sat")
    for call in (run, eager):
        loss = call(x).square().mean()
        loss.backward(retain_graph=True)
        loss.backward()
    _same([p.grad for p in model.parameters()], [p.grad for p in eager.parameters()])
