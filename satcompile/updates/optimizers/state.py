"""An optimizer's state, laid out as torch's own optimizers lay it out.

So ``state_dict()`` is torch's: it loads into a plain optimizer, and a plain optimizer's loads here.
The state of a parameter begins with its first update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from satcompile.updates.optimizers.rules import Update
from satcompile.updates.optimizers.support import numbers_of, rule_of
from satcompile.updates.sparsity.masks import tiles_of

_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def update_of(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    torch_class: type,
    parameter: torch.Tensor,
    gradient: torch.Tensor,
) -> Update:
    """The update of ``parameter`` by ``gradient``; makes state where there is none."""
    rule, state = rule_of(group, torch_class), optimizer.state[parameter]
    update = Update(
        rule,
        numbers_of(group, torch_class),
        parameter.detach(),
        _alike(gradient, parameter),
        tiles=tiles_of(parameter),
    )
    if rule.formula == "adam":
        update.step = _step(state)
        names = _ADAM_MOMENTS[: rule.num_moments]
        update.moments = tuple(_moment(state, name, parameter) for name in names)
    elif rule.num_moments:
        update.is_first = state.get("momentum_buffer") is None
        update.moments = (_moment(state, "momentum_buffer", parameter),)
    return update


def _step(state: dict[str, Any]) -> torch.Tensor:
    step = state.get("step")
    if (
        not isinstance(step, torch.Tensor)
        or step.dtype != torch.float32
        or step.device.type != "cpu"
    ):
        # Torch keeps it on the GPU for its own fused kernel, in float64 where that is the
        # default dtype, and as a number in old checkpoints.
        step = torch.tensor(float(step or 0), dtype=torch.float32, device="cpu")
        state["step"] = step
    return step


def _moment(state: dict[str, Any], name: str, parameter: torch.Tensor) -> torch.Tensor:
    moment = state.get(name)
    if not isinstance(moment, torch.Tensor):
        moment = state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    elif not _is_alike(moment, parameter):  # loaded from elsewhere
        moment = state[name] = _alike(moment, parameter)
    return moment


def _is_alike(tensor: torch.Tensor, parameter: torch.Tensor) -> bool:
    return (
        tensor.stride() == parameter.stride()
        and tensor.dtype == parameter.dtype
        and tensor.device == parameter.device
    )


def _alike(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """``tensor`` in the parameter's dtype, strides and device; a copy if any of these differs."""
    if _is_alike(tensor, parameter):
        return tensor
    return torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(tensor)
