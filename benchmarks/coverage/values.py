"""What a step computes, and how far two ways to run it are apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.coverage.architecture import loss_of

Values = dict[str, torch.Tensor | None]

# Rounding in a few hundred operations, of the largest value of a tensor. By the least precise
# type that the forward computes in: many models compute norms and angles in float32 throughout.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
# Where torch.compile rounds otherwise than eager does, ours may by as much, and a little more.
OF_TORCH = 4.0
# Gradients that are zero but for rounding (of the bias of a key) are compared at this share of
# the model's largest one, not with themselves.
NEGLIGIBLE = 1e-3


def clear(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def step(run: Callable[[], Any], model: nn.Module) -> Any:
    """Forward and backward from cleared gradients; the output stays alive with the caller."""
    clear(model)
    torch.manual_seed(7)
    output = run()
    loss_of(output).backward()
    return output


def values_after(model: nn.Module, output: Any) -> Values:
    """Loss, every parameter's gradient and every buffer, by kind and name."""
    found: Values = {"the loss": loss_of(output).detach().clone()}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        found[f"gradient of {name}"] = None if grad is None else grad.detach().clone()
    for name, buffer in model.named_buffers():
        found[f"buffer {name}"] = buffer.detach().clone()
    return found


@dataclass(frozen=True)
class Distance:
    """The largest of all values' distances, as a share of the value, and where it is."""

    share: float
    where: str


def distance(found: Values, wanted: Values) -> Distance:
    """How far values are from eager's. A gradient that one has and the other has not is infinitely
    far, as is one that is not finite where eager's is."""
    largest = max(
        (_size(value) for name, value in wanted.items() if name.startswith("gradient")), default=0.0
    )
    worst = Distance(0.0, "")
    for name, value in wanted.items():
        floor = NEGLIGIBLE * largest if name.startswith("gradient") else 0.0
        share = _share(found.get(name), value, floor)
        if share > worst.share:
            worst = Distance(share, name)
    return worst


def _share(found: torch.Tensor | None, wanted: torch.Tensor | None, floor: float) -> float:
    if found is None or wanted is None:
        return 0.0 if found is wanted else float("inf")
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if not wanted.is_floating_point() and not wanted.is_complex():
        return 0.0 if torch.equal(found, wanted) else float("inf")
    if torch.equal(torch.nan_to_num(found), torch.nan_to_num(wanted)):
        return 0.0 if torch.equal(found.isnan(), wanted.isnan()) else float("inf")
    apart = _size(found - wanted) / max(_size(wanted), floor, 1e-30)
    return apart if apart == apart else float("inf")


def _size(value: torch.Tensor | None) -> float:
    if value is None or not value.numel():
        return 0.0
    value = torch.view_as_real(value) if value.is_complex() else value
    return float(value.double().abs().max())


class _Types(TorchDispatchMode):
    """Collects the floating types of all that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 1:
                self.seen.add(value.dtype)
        return result


def least_precise(run: Callable[[], Any]) -> torch.dtype:
    """The least precise of the types in which ``run()`` computes."""
    with _Types() as types, torch.no_grad():
        run()
    return max(types.seen, key=lambda dtype: TOLERANCES.get(dtype, 0.0))
