"""Buffers that the forward overwrites: the backward sees what the forward read.

Torch's own backend gets wrong gradients for most of these; eager is the reference.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import satcompile
from satcompile.compile.verify import check_partition, reference
from satcompile.errors import VerificationError
from tests.partitions import planned


class Reading(nn.Module):
    """A layer whose results meet a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("kept", torch.randn(8, 8))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))


class Queue(Reading):
    """MoCo: negatives come from a queue, into which the keys of this step go."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.layer(x)
        loss = (features @ self.kept.clone()).sin().sum()
        with torch.no_grad():
            at = (self.position + torch.arange(4)) % 8
            self.kept.index_copy_(1, at, features[:4].T.contiguous())
            self.position.add_(4)
        return loss


class Views(Reading):
    """Reads by views and by parts, a part is written, and the whole read again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.layer(x)
        mixed = (features @ self.kept.t().clone()).sin()
        rows = self.kept[2:4].clone()
        with torch.no_grad():
            self.kept[2:4] = features[:2]
        return (mixed * rows.sum(0)).cos().sum() + (self.kept.clone() * features[:8]).sum()


class Statistics(Reading):
    """A region, to be computed again, has an operation of several results read the buffer. (Eager's
    would read again, what was written since.)"""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def region(x: torch.Tensor) -> torch.Tensor:
            variance, mean = torch.var_mean(self.kept, 1)
            return (self.layer(x) * variance - mean).sin()

        is_compiling = torch.compiler.is_compiling()
        features = checkpoint(region, x, use_reentrant=False) if is_compiling else region(x)
        with torch.no_grad():
            self.kept.add_(features[:8])
        return features.cos().sum()


class Codebook(Reading):
    """A moving average of what is nearest: read by the forward alone, then written."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.layer(x)
        far = (features.detach()[:, None] - self.kept[None]).square().sum(-1)
        nearest = far.argmin(1)
        code = self.kept[nearest]
        with torch.no_grad():
            chosen = nn.functional.one_hot(nearest, 8).to(features.dtype)
            self.kept.mul_(0.9).add_(chosen.T @ features, alpha=0.1)
        return (features - code).square().sum() + (
            features + (code - features).detach()
        ).sin().sum()


class Pointwise(Reading):
    """What is made of the buffer is cheap to compute again, and must not be."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.layer(x)
        loss = (features[:8] * self.kept.sin()).exp().sum() + (
            features[:8] * self.kept.clone()
        ).sum()
        with torch.no_grad():
            self.kept.add_(1)
        return loss


class Momentum(Reading):
    """A second encoder that follows the first is written first and read afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.follower = copy.deepcopy(self.layer).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for followed, following in zip(
                self.layer.parameters(), self.follower.parameters(), strict=True
            ):
                following.mul_(0.9).add_(followed, alpha=0.1)
        return (self.layer(x) * self.follower(x)).sin().sum()


def _trained(run: Any, model: nn.Module) -> list[torch.Tensor]:
    """Gradients of three steps, and the buffers after them."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(3):
        run(torch.randn(12, 8, generator=generator).double()).backward()
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
    return [*found, *(buffer.clone() for buffer in model.buffers())]


def _tightly(model: nn.Module) -> Any:
    """Compiled within the lowest budget that is met."""
    first = torch.compile(copy.deepcopy(model), backend="sat", options={"memory_budget": 1})
    with pytest.raises(satcompile.BudgetError) as refused:
        first(torch.randn(12, 8).double())
    torch.compiler.reset()
    floor_bytes = refused.value.floor_bytes
    return torch.compile(model, backend="sat", options={"memory_budget": floor_bytes})


@pytest.mark.parametrize(
    ("kind", "tight"),
    [
        (Queue, False),
        (Codebook, False),
        (Statistics, False),
        *(
            pytest.param(kind, True, marks=pytest.mark.slow)
            for kind in (Queue, Codebook, Views, Pointwise, Momentum)
        ),
    ],
)
def test_the_backward_sees_what_the_forward_read(kind: type[Reading], tight: bool) -> None:
    torch.manual_seed(0)
    eager = kind().double()
    model = copy.deepcopy(eager)
    torch.compiler.reset()
    run = _tightly(model) if tight else torch.compile(model, backend="sat")
    found = _trained(run, model)
    for one, other in zip(found, _trained(eager, eager), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", [Queue, Views, Codebook, Pointwise])
def test_the_graphs_alone_compute_eagers_gradients(kind: type[Reading]) -> None:
    """Forward and backward as they go to Inductor, run in order on real tensors, writes included."""
    torch.manual_seed(0)
    model = kind().double()
    x = torch.randn(12, 8).double()
    made = planned(copy.deepcopy(model), {"x": x})
    eager = copy.deepcopy(model)
    eager(x).backward()
    wanted = {tuple(p.grad.shape): p.grad for p in eager.parameters() if p.grad is not None}
    names = {str(p.shape): p.detach() for p in model.parameters()}
    values = {str(b.shape): b.clone() for b in model.buffers()}
    primals = list(made.parts.forward.graph.find_nodes(op="placeholder"))
    candidates = {**values, **names, str(x.shape): x}
    given = []
    for node in primals:
        value = node.meta["val"]
        if tuple(value.shape) == (8, 8):  # the weight, or the buffer: told apart by its writer
            written = any("copy_" in str(user.target) for user in node.users)
            given.append(model.kept.clone() if written else model.layer.weight.detach())
        else:
            given.append(candidates[str(value.shape)].clone())
    results = list(made.parts.forward(*given))
    count = made.parts.num_outputs
    gradients = made.parts.backward(*results[count:], torch.ones((), dtype=torch.float64))
    found = [g for g in gradients if g is not None]
    assert len(found) == 2
    for gradient in found:
        torch.testing.assert_close(gradient, wanted[tuple(gradient.shape)], rtol=1e-11, atol=1e-11)


def test_a_view_that_was_taken_before_a_write_is_another_value_after_it() -> None:
    """The verifier's numbers tell the two apart: a backward that reads such a view is refused."""
    made = planned(Queue().double(), {"x": torch.randn(12, 8).double()})
    joint = made.problem.graph.module
    before = reference(joint)
    taken = 0
    for module in (made.parts.forward, made.parts.backward):
        for node in module.graph.find_nodes(
            op="call_function", target=torch.ops.aten.clone.default
        ):
            if node.args[0].op == "placeholder":
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
                taken += 1
    assert taken
    with pytest.raises(VerificationError):
        check_partition(before, made.parts, made.plan, None)
