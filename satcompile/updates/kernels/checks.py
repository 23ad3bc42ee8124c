"""Checks before a kernel runs, since a kernel has only addresses and checks nothing."""

from __future__ import annotations

import torch

from satcompile.torch_compat.tensors import is_dense
from satcompile.updates.optimizers.rules import Tiles, Update

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_PITCH = 2**24  # offsets within 128 rows are 32 bits long


def check_update(update: Update) -> None:
    """Raises ValueError if an update's tensors do not fit each other."""
    parameter, rule = update.parameter, update.rule
    if len(update.moments) != rule.num_moments:
        raise ValueError(
            f"a rule with {rule.num_moments} moments was given {len(update.moments)} of them"
        )
    if rule.formula == "adam" and update.step is None:
        raise ValueError("Adam's bias corrections need `step`, and this update has none")
    if len({moment.dtype for moment in update.moments}) > 1:
        raise ValueError(f"moments of one dtype are needed, not {_dtypes(update.moments)}")
    tensors = (parameter, update.gradient, *update.moments)
    unknown = {tensor.dtype for tensor in tensors}.difference(DTYPES)
    if unknown:
        raise ValueError(f"no kernel updates {unknown.pop()}; there are kernels for {DTYPES}")
    for tensor in tensors:
        if tensor.shape != parameter.shape or tensor.device != parameter.device:
            raise ValueError(
                f"the parameter is {_text(parameter)}, and its gradient or moment {_text(tensor)}"
            )
    _check_memory(tensors, needs_rows=update.tiles is not None)
    if update.tiles is not None:
        check_tiles(update.tiles, parameter)


def _check_memory(tensors: tuple[torch.Tensor, ...], *, needs_rows: bool) -> None:
    if all(tensor.is_contiguous() for tensor in tensors):
        return
    parameter = tensors[0]
    orders = {_strides(tensor) for tensor in tensors}
    if needs_rows or len(orders) > 1 or not is_dense(parameter):
        wanted = "contiguous" if needs_rows else "of the same strides and without gaps"
        raise ValueError(
            f"parameter, gradient and moments of shape {tuple(parameter.shape)} must be {wanted}; "
            f"their strides are {[tensor.stride() for tensor in tensors]}"
        )


def check_tiles(tiles: Tiles, weight: torch.Tensor) -> None:
    """Raises ValueError if tiles cannot cut the weight, or a kernel cannot read their numbers."""
    if min(tiles.height, tiles.width) < 1 or weight.dim() < 1:
        raise ValueError(f"tiles of {tiles.height} x {tiles.width} cannot cut {_text(weight)}")
    width = weight.numel() // max(weight.shape[0], 1)
    if width > MAX_PITCH:
        raise ValueError(
            f"tiles of rows of at most {MAX_PITCH} elements are supported, not {width}"
        )
    check_numbers("numbers of tiles", tiles.numbers, weight.device)


def check_numbers(name: str, numbers: torch.Tensor, device: torch.device) -> None:
    """Raises ValueError unless a kernel on ``device`` can read these whole numbers."""
    if numbers.dtype != torch.int32 or numbers.device != device or not numbers.is_contiguous():
        raise ValueError(f"{name} must be int32, contiguous and on {device}, not {_text(numbers)}")


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Strides of the dimensions that have more than one element."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tuple(stride for size, stride in sizes if size > 1)


def _dtypes(tensors: tuple[torch.Tensor, ...]) -> str:
    return ", ".join(str(tensor.dtype) for tensor in tensors)


def _text(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
