"""Bytes of an optimizer's state, for an optimizer that need not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import torch

from satcompile.errors import OptionError
from satcompile.runtime.known_optimizers import predict_state_bytes

# A class of torch.optim or one like it, its name, or an optimizer, whose settings count.
Optimizer = type[torch.optim.Optimizer] | torch.optim.Optimizer | str | None


def state_bytes(optimizer: Optimizer, parameters: Iterable[torch.Tensor]) -> int:
    """Bytes that it keeps for these parameters after its first step, taken on fake tensors.

    Raises:
        OptionError: there is no such optimizer, or its state cannot be found that way.
    """
    if optimizer is None or (isinstance(optimizer, str) and optimizer.lower() == "none"):
        return 0
    one = _instance(optimizer)
    group = one.param_groups[0]
    total = 0
    for parameter in parameters:
        num_bytes = predict_state_bytes(one, group, parameter)
        if num_bytes is None:
            raise OptionError(
                f"The state of {type(one).__name__} cannot be predicted: its step does not run on "
                "fake tensors. Plan without an optimizer, and keep bytes free by 'reserve'."
            )
        total += num_bytes
    return total


def _instance(optimizer: Any) -> torch.optim.Optimizer:
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer
    kind = _class_named(optimizer) if isinstance(optimizer, str) else optimizer
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise OptionError(
            f"optimizer is {optimizer!r}; it takes a class of torch.optim, its name, an optimizer, "
            "or None."
        )
    weight = torch.nn.Parameter(torch.zeros(1))
    try:
        return kind([weight], lr=1e-3)  # type: ignore[call-arg]
    except TypeError:
        return kind([weight])  # type: ignore[call-arg]


def _class_named(name: str) -> type[torch.optim.Optimizer]:
    known = {
        each.lower(): getattr(torch.optim, each)
        for each in dir(torch.optim)
        if isinstance(getattr(torch.optim, each), type)
        and issubclass(getattr(torch.optim, each), torch.optim.Optimizer)
        and getattr(torch.optim, each) is not torch.optim.Optimizer
    }
    if name.lower() in known:
        return known[name.lower()]
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    nearest = f"Did you mean {close[0]!r}? " if close else ""
    raise OptionError(
        f"There is no optimizer {name!r} in torch.optim. {nearest}Optimizers: "
        f"{', '.join(sorted(known))}, none."
    )
