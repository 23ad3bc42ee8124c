"""Which optimizers, settings and parameters can be fused; all others are refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from satcompile.errors import UnsupportedError
from satcompile.torch_compat.tensors import is_dense, is_wrapper_tensor
from satcompile.updates.optimizers.rules import Numbers, Rule

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_KNOWN = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)


def check_class(optimizer: torch.optim.Optimizer) -> None:
    """Refuse optimizers whose formula is not known here; a subclass may compute anything."""
    if type(optimizer) not in _KNOWN:
        names = ", ".join(f"torch.optim.{known.__name__}" for known in _KNOWN)
        raise UnsupportedError(
            f"fuse_optimizer knows {names}, not {type(optimizer).__module__}."
            f"{type(optimizer).__qualname__}. Leave it as it is: its own step() works with "
            "backend='sat', and its state is counted in the memory_budget."
        )


def check_groups(groups: Iterable[Mapping[str, Any]], torch_class: type) -> None:
    """Refuse settings and parameters that the kernels do not support."""
    for number, group in enumerate(groups):
        name = f"param_groups[{number}] of {torch_class.__name__}"
        for setting in ("capturable", "differentiable"):
            if group.get(setting):
                raise UnsupportedError(f"{name} has {setting}=True, which fuse_optimizer lacks.")
        for setting in ("betas", "momentum", "weight_decay", "eps", "dampening"):
            values = group.get(setting)
            values = values if isinstance(values, (tuple, list)) else (values,)
            if any(isinstance(value, torch.Tensor) for value in values):
                raise UnsupportedError(
                    f"{name} has {setting} in a tensor; fuse_optimizer takes numbers (only lr may "
                    "be a tensor)."
                )
        for parameter in group["params"]:
            _check_parameter(parameter, name)


def _check_parameter(parameter: torch.Tensor, name: str) -> None:
    shape = tuple(parameter.shape)
    if is_wrapper_tensor(parameter):
        raise UnsupportedError(
            f"{name} holds a {type(parameter).__name__} of shape {shape}. fuse_optimizer updates "
            "plain tensors; with FSDP2 and tensor parallelism leave the optimizer as it is."
        )
    if parameter.dtype not in _DTYPES:
        raise UnsupportedError(
            f"{name} holds a parameter of {parameter.dtype} and shape {shape}; fuse_optimizer "
            f"knows {', '.join(str(dtype).removeprefix('torch.') for dtype in _DTYPES)}."
        )
    if not is_dense(parameter):
        raise UnsupportedError(
            f"{name} holds a parameter of shape {shape} and strides {parameter.stride()}, which "
            "is a part of a larger tensor. Give the optimizer the whole tensor."
        )


def rule_of(group: Mapping[str, Any], torch_class: type) -> Rule:
    """The formula that torch's optimizer would use for a group."""
    maximize = bool(group.get("maximize"))
    if torch_class is torch.optim.SGD:
        has_momentum = group["momentum"] != 0
        return Rule("sgd", int(has_momentum), nesterov=bool(group["nesterov"]), maximize=maximize)
    decoupled = group.get("decoupled_weight_decay", torch_class is torch.optim.AdamW)
    num_moments = 3 if group["amsgrad"] else 2
    return Rule("adam", num_moments, decoupled=bool(decoupled), maximize=maximize)


def numbers_of(group: Mapping[str, Any], torch_class: type) -> Numbers:
    """A group's numbers as they are now."""
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    if torch_class is torch.optim.SGD:
        return Numbers(lr, decay, float(group["momentum"]), float(group["dampening"]))
    beta1, beta2 = group["betas"]
    return Numbers(lr, decay, float(beta1), float(beta2), float(group["eps"]))


def check_gradients(parameters: Iterable[torch.Tensor]) -> None:
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise UnsupportedError(
                f"A parameter of shape {tuple(parameter.shape)} has a gradient of layout "
                f"{parameter.grad.layout}; fuse_optimizer takes dense ones (Embedding: "
                "sparse=False)."
            )
