"""What tests of sparse training share: a trained model, and what eager mode says of each step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import satcompile

Loss = Callable[..., torch.Tensor]


class Trained:
    """A model that is trained sparsely, checked step by step.

    Attributes:
        model, optimizer, run: the module, its fused optimizer, and the compiled module.
        eager: what says what is expected, if not the model.
        tolerance: of the loss, and of gradients relative to the largest of them all.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
        make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        loss_of: Loss = lambda result: result.square().mean(),
        tolerance: float = 1e-10,
        context: Callable[[], Any] = contextlib.nullcontext,
        fuse: Mapping[str, Any] | None = None,
        eager: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        self.eager = eager or model
        self.model, self.loss_of, self.tolerance, self.context = model, loss_of, tolerance, context
        settings = {"lr": 1e-2, "weight_decay": 0.1, **settings}
        self.optimizer = satcompile.fuse_optimizer(
            make(model.parameters(), **settings), **(fuse or {})
        )
        self.sparsity = {"block": 8, "interval": 2, **sparsity}
        self.run = torch.compile(
            model, backend="sat", options={"sparsity": self.sparsity, **(options or {})}
        )

    @property
    def state(self) -> satcompile.SparsityState:
        return satcompile.sparsity_state(self.run)

    def backward(self, *inputs: Any, **keywords: Any) -> torch.Tensor:
        with self.context():
            loss = self.loss_of(self.run(*inputs, **keywords))
        loss.backward()
        return loss.detach()

    def end_step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self, *inputs: Any, **keywords: Any) -> torch.Tensor:
        loss = self.backward(*inputs, **keywords)
        self.end_step()
        return loss

    def expected(self, *inputs: Any, **keywords: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Loss and gradients of eager mode: weights count as zero outside the forward set, and
        gradients are taken of the weights that count, frozen tiles' set to zero."""
        state = self.state
        masks, forward = state.masks, state.forward_masks
        leaves = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        used = {
            name: (leaf * forward[name] if name in forward else leaf).requires_grad_()
            for name, leaf in leaves.items()
        }
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with self.context():
            result = torch.func.functional_call(self.eager, (used, buffers), inputs, keywords)
            loss = self.loss_of(result)
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, [used[name] for name in names], allow_unused=True)
        gradients = {
            name: gradient * masks[name] if name in masks and gradient is not None else gradient
            for name, gradient in zip(names, found, strict=True)
        }
        return loss.detach(), gradients

    def checked_step(self, *inputs: Any, **keywords: Any) -> None:
        """A step; its loss and gradients are those expected, and what is frozen does not move."""
        loss, gradients = self.expected(*inputs, **keywords)
        masks, before = self.state.masks, self.snapshot()
        found = self.backward(*inputs, **keywords)
        torch.testing.assert_close(found, loss, rtol=self.tolerance, atol=self.tolerance)
        scale = max(float(g.abs().max()) for g in gradients.values() if g is not None)
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self.check_gradient(name, parameter.grad, gradients[name], masks.get(name), scale)
        self.end_step()
        assert_frozen(before, self.snapshot(), masks)

    def check_gradient(
        self,
        name: str,
        found: torch.Tensor,
        wanted: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float = 1.0,
    ) -> None:
        """Within the tolerance of ``scale``: what is zero by cancellation has no error of its own."""
        error = float((found - wanted).abs().max()) / scale
        assert error <= self.tolerance, f"{name}: off by {error:.1e}"
        assert mask is None or not found[~mask].any(), f"{name}: a frozen tile has a gradient"

    def snapshot(self) -> dict[str, list[torch.Tensor]]:
        """Weights and moments."""
        return {
            name: [
                parameter.detach().clone(),
                *(
                    value.clone()
                    for value in self.optimizer.state.get(parameter, {}).values()
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape
                ),
            ]
            for name, parameter in self.model.named_parameters()
        }


def assert_frozen(
    before: Mapping[str, list[torch.Tensor]],
    after: Mapping[str, list[torch.Tensor]],
    masks: Mapping[str, torch.Tensor],
) -> None:
    """Bit for bit, weights and moments of frozen tiles."""
    for name, mask in masks.items():
        for old, new in zip(before[name], after[name], strict=False):
            assert torch.equal(old[~mask], new[~mask]), f"{name}: a frozen tile moved"
