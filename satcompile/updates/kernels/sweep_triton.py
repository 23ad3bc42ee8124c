"""One launch that updates many parameters, like torch's fused optimizers; active tiles, too.

The kernel reads and writes weights and moments once and reads the gradient once, so it is as fast
as memory allows. Arithmetic is in float32, and in float64 for float64 parameters; each result is
rounded once, when it is stored. (torch's unfused optimizers round after every operation, which
differs for bfloat16 and float16.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from satcompile.updates.kernels.checks import check_update
from satcompile.updates.kernels.launch import count_up, launching_on, mark_written, placed
from satcompile.updates.kernels.scalars import Scalars, scalars_of
from satcompile.updates.kernels.table import num_programs, table_of
from satcompile.updates.optimizers.rules import Update

CHUNK = 8192  # elements of a whole parameter for one program
ELEMENTS_AT_ONCE = 1024
NUM_WARPS = 4  # eight elements per thread
_MAX_COLUMNS, _MIN_COLUMNS = 128, 16


def sweep(updates: Sequence[Update], scale: torch.Tensor | None = None) -> None:
    """Apply the updates in place, with one launch for each rule and set of dtypes.

    Nothing waits for the GPU: the numbers travel in one small tensor from pinned memory.

    Args:
        updates: of different parameters. No list may hold a tile twice. Parameters without tiles
            need not be contiguous, as long as their memory has no gaps and gradient and moments
            have the same strides. Each ``step`` is incremented by one.
        scale: no dimensions, on the parameters' device: multiplies every gradient.

    Raises:
        ValueError: tensors of an update do not fit each other. Nothing is changed then.
    """
    for update in updates:
        check_update(update)
    count_up(updates)
    for device, on_device in _grouped(updates, lambda update: update.parameter.device):
        with launching_on(device):
            _sweep_device(on_device, placed(scale, device), device)
    mark_written(updates)


def _grouped(updates: Iterable[Update], key: Any) -> Iterable[tuple[Any, list[Update]]]:
    groups: dict[Any, list[Update]] = {}
    for update in updates:
        groups.setdefault(key(update), []).append(update)
    return groups.items()


def _kind(update: Update) -> tuple[Any, ...]:
    """Updates of one kind share a launch."""
    moment = update.moments[0] if update.moments else update.parameter
    return update.rule, update.parameter.dtype, update.gradient.dtype, moment.dtype


def _sweep_device(
    updates: Sequence[Update], scale: torch.Tensor | None, device: torch.device
) -> None:
    at_work = [update for update in updates if num_programs(update, CHUNK)]
    groups = [group for _, group in _grouped(at_work, _kind)]
    if not groups:
        return
    table = torch.cat([_table(group) for group in groups])
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    first = 0
    for group in groups:
        _launch(group, table[first : first + len(group)], scale)
        first += len(group)


def _table(group: Sequence[Update]) -> torch.Tensor:
    scalars: list[Scalars] = [scalars_of(update) for update in group]
    return table_of(group, scalars, CHUNK)


def _launch(group: Sequence[Update], table: torch.Tensor, scale: torch.Tensor | None) -> None:
    from satcompile.updates.kernels.device_code import sweep_kernel, triton_dtype

    first = group[0]
    moment = first.moments[0] if first.moments else first.parameter
    is_double = first.parameter.dtype == torch.float64
    columns = _columns(group)
    sweep_kernel[(sum(num_programs(update, CHUNK) for update in group),)](
        table,
        len(group),
        scale,
        CHUNK=CHUNK,
        ROWS=ELEMENTS_AT_ONCE // columns,
        COLUMNS=columns,
        COMPUTE=triton_dtype(torch.float64 if is_double else torch.float32),
        PARAMETER=triton_dtype(first.parameter.dtype),
        GRADIENT=triton_dtype(first.gradient.dtype),
        MOMENT=triton_dtype(moment.dtype),
        num_warps=NUM_WARPS,
        RULE=first.rule,
    )


def _columns(group: Sequence[Update]) -> int:
    """Columns that are updated at once: the widest tile's, within limits; a power of two."""
    widest = max(_line(update) for update in group)
    next_power = 1 << (widest - 1).bit_length()
    return min(max(next_power, _MIN_COLUMNS), _MAX_COLUMNS)


def _line(update: Update) -> int:
    """Elements that follow each other; whole rows count like whole parameters."""
    parameter, tiles = update.parameter, update.tiles
    if tiles is None or tiles.width >= parameter.numel() // max(parameter.shape[0], 1):
        return _MAX_COLUMNS
    return tiles.width
