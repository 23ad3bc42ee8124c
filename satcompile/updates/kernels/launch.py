"""Work on the host around every launch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch

from satcompile.torch_compat.operators import add_to_each
from satcompile.updates.optimizers.rules import Update

_ALIGNED = 16  # bytes, and elements: the divisor that the compiler looks for


def count_up(updates: Sequence[Update]) -> None:
    """Count one more update of each parameter."""
    steps = [update.step for update in updates if update.step is not None]
    if steps:
        add_to_each(steps, 1.0)


def mark_written(updates: Iterable[Update]) -> None:
    """Tell autograd: a graph that saved one of these weights must not run backward now."""
    tensors = chain.from_iterable((update.parameter, *update.moments) for update in updates)
    torch.autograd.graph.increment_version(tuple(tensors))


def launching_on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device. (On the CPU, its interpreter takes any device.)"""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def is_aligned(matrix: torch.Tensor) -> bool:
    """Whether the compiler, given address, sizes and strides, reads 16 bytes at once."""
    by_rows = matrix if matrix.stride(1) == 1 else matrix.t()
    pitch, step = by_rows.stride()
    numbers = (pitch, by_rows.shape[1], matrix.data_ptr())
    return step == 1 and not any(number % _ALIGNED for number in numbers)


def placed(scale: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if scale is None else scale.to(device, non_blocking=True)
