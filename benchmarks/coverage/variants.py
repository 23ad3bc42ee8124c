"""Ways to train one model: as it is, with checkpoints, under autocast, with adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.coverage.architecture import Scored

RANK = 4


class NotApplicable(Exception):
    """The variant means nothing for this model; the message says why."""


def applied(variant: str, model: nn.Module) -> nn.Module:
    """The model as the variant trains it, changed in place.

    Raises:
        NotApplicable: there is nothing to checkpoint or to adapt.
    """
    change: dict[str, Callable[[nn.Module], nn.Module]] = {
        "checkpointed": _checkpointed,
        "LoRA": _with_adapters,
    }
    return change[variant](model) if variant in change else model


def context_of(variant: str) -> contextlib.AbstractContextManager[Any]:
    """What a forward runs in."""
    if variant == "bf16 autocast":
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


def _checkpointed(model: nn.Module) -> nn.Module:
    """Checkpoint by the model's own switch where it has one, else around each block of its lists."""
    inner = model.model if isinstance(model, Scored) else model
    if getattr(inner, "supports_gradient_checkpointing", False):
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model
    if hasattr(inner, "enable_gradient_checkpointing"):  # of diffusers
        with contextlib.suppress(ValueError):  # which it raises where a model has no switch
            inner.enable_gradient_checkpointing()
            return model
    blocks = _blocks(model)
    if not blocks:
        raise NotApplicable("it has no list of blocks to checkpoint")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists and sequences of at least two modules with weights."""
    found: list[nn.Module] = []
    for child in model.children():
        members = list(child.children())
        is_list = isinstance(child, (nn.ModuleList, nn.Sequential)) and len(members) > 1
        if is_list and all(any(True for _ in member.parameters()) for member in members):
            found += members
        else:
            found += _blocks(child)
    return found


def _with_adapters(model: nn.Module) -> nn.Module:
    """LoRA on every linear layer but heads that share their weight; the rest is frozen."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    shared = _shared_weights(model)
    names = [
        name
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and id(module.weight) not in shared
    ]
    if not names:
        raise NotApplicable("it has no linear layer of its own to adapt")
    model.requires_grad_(False)
    model = inject_adapter_in_model(LoraConfig(r=RANK, target_modules=names), model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first: half of the gradients would be zero as well
            nn.init.normal_(parameter, std=0.05)
    return model


def _shared_weights(model: nn.Module) -> set[int]:
    """Weights that belong to several modules, by ``id``."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {key for key, count in owners.items() if count > 1}
