"""One pass over weights, gradients and moments that updates them in place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from satcompile.updates.kernels import sweep_cpu
from satcompile.updates.optimizers.rules import Update


def sweep(updates: Sequence[Update], scale: torch.Tensor | None = None) -> None:
    """Apply ``updates``: on the CPU one call, on a GPU one launch, per rule, dtype and device.

    Args:
        updates: at most one per parameter.
        scale: no dimensions; multiplies every gradient (clipping).
    """
    groups: defaultdict[Any, list[Update]] = defaultdict(list)
    for update in updates:
        parameter = update.parameter
        if parameter.numel():
            groups[update.rule, parameter.dtype, parameter.device].append(update)
        elif update.step is not None:
            update.step += 1
    for (_, _, device), group in groups.items():
        _sweep_on(device)(group, scale)


def _sweep_on(device: torch.device) -> Any:
    if device.type == "cpu":
        return sweep_cpu.sweep
    from satcompile.updates.kernels import sweep_triton  # Triton comes with torch for the GPU alone

    return sweep_triton.sweep
