"""A linear layer's weight is updated while its gradient is computed, which never exists.

Each program computes one part of the gradient, in float32, and applies it to weight and moments:
no memory for the gradient, and neither its write nor its read. (In bfloat16 torch rounds the
gradient before it is used; here it is not rounded.) Every part needs the whole sum over tokens,
so a small weight with many tokens leaves processors idle; there a matrix product that splits the
sum, and a sweep after it, may be faster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from satcompile.updates.kernels.checks import MAX_PITCH, check_update
from satcompile.updates.kernels.launch import (
    count_up,
    is_aligned,
    launching_on,
    mark_written,
    placed,
)
from satcompile.updates.kernels.scalars import scalars_of
from satcompile.updates.optimizers.rules import Update

_GROUP_ROWS = 8  # rows of parts that are computed together, for the cache's sake
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Blocks:
    """How the work is cut.

    Attributes:
        rows, columns: part of the gradient that one program computes; powers of two from 16.
        depth: tokens read at once; a power of two from 16.
        num_warps: of a program.
        num_stages: loads under way at once.
        slices: in which weight and moments are updated, so that they fit the registers.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    slices: int


# Built ahead of time for sm_80 and sm_90, none spills. On sm_90 two programs of the large kind
# share a processor in bfloat16 (AdamW: 125 registers), so that one computes while one updates.
LARGE = Blocks(rows=128, columns=128, depth=64, num_warps=8, num_stages=3, slices=4)
SMALL = Blocks(rows=64, columns=64, depth=64, num_warps=4, num_stages=3, slices=2)


def linear_update(
    rows: torch.Tensor,
    columns: torch.Tensor,
    update: Update,
    scale: torch.Tensor | None = None,
    *,
    tf32: bool = False,
    blocks: Blocks | None = None,
) -> None:
    """Updates a weight in place with the gradient ``rows.T @ columns``.

    Args:
        rows: (T, n), of any strides: the output's gradient of ``nn.Linear``, the input of a layer
            whose weight is (in, out).
        columns: (T, k), of the same dtype: the other one of the two.
        update: of a contiguous (n, k) weight; ``gradient`` is not looked at and may be empty.
            ``step`` is counted up by one. With tiles, only those of the list are computed; their
            height and width must be multiples of 16, and none may stand in the list twice.
        scale: no dimensions: multiplies the gradient.
        tf32: float32 inputs are rounded to TF32 for the tensor cores.
        blocks: by default chosen by the weight's size and alignment.

    Raises:
        ValueError: tensors that do not fit each other. Nothing was changed then.
    """
    _check(rows, columns, update)
    blocks = _fitted(blocks or _chosen(rows, columns, update), update)
    count_up([update])
    with launching_on(rows.device):
        _launch(rows, columns, update, placed(scale, rows.device), blocks, tf32)
    mark_written([update])


def _check(rows: torch.Tensor, columns: torch.Tensor, update: Update) -> None:
    check_update(update, has_gradient=False)
    parameter = update.parameter
    are_matrices = all(tensor.dim() == 2 for tensor in (rows, columns, parameter))
    fit = are_matrices and (rows.shape[1], columns.shape[1]) == parameter.shape
    if not fit or rows.shape[0] != columns.shape[0]:
        raise ValueError(
            f"a weight (n, k) needs rows (T, n) and columns (T, k); theirs are "
            f"{tuple(parameter.shape)}, {tuple(rows.shape)} and {tuple(columns.shape)}"
        )
    longest = max(*rows.stride(), *columns.stride(), parameter.shape[1])
    if longest > MAX_PITCH:
        raise ValueError(f"strides of at most {MAX_PITCH} are supported, not {longest}")
    dtypes = {rows.dtype, columns.dtype}
    if len(dtypes) > 1 or not dtypes.issubset(_DTYPES) or parameter.dtype not in _DTYPES:
        raise ValueError(
            f"rows and columns of one dtype among {_DTYPES} and a weight of one of these are "
            f"needed, not {rows.dtype}, {columns.dtype} and {parameter.dtype}"
        )
    if rows.device != parameter.device or columns.device != parameter.device:
        raise ValueError(
            f"the weight is on {parameter.device}, rows on {rows.device}, "
            f"columns on {columns.device}"
        )


def _chosen(rows: torch.Tensor, columns: torch.Tensor, update: Update) -> Blocks:
    """The largest parts of which there is one for every processor, else small ones."""
    device = rows.device
    processors = 1
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks = LARGE if _num_programs(update, _fitted(LARGE, update)) >= processors else SMALL
    if rows.dtype == torch.float32:
        blocks = replace(blocks, depth=32)
    if is_aligned(rows) and is_aligned(columns) and is_aligned(update.parameter):
        return blocks
    # Nothing is read 16 bytes at once then, and addresses need registers.
    return replace(blocks, depth=32, slices=blocks.slices * 2)


def _fitted(blocks: Blocks, update: Update) -> Blocks:
    """Parts of which whole numbers make up a tile."""
    if update.tiles is None:
        return blocks
    height, width = update.tiles.height, update.tiles.width
    if height % 16 or width % 16:
        raise ValueError(
            f"tiles of {height} x {width} cannot be computed: multiples of 16 are needed"
        )
    rows = min(blocks.rows, height & -height)  # the largest power of two in it
    columns = min(blocks.columns, width & -width)
    return replace(blocks, rows=rows, columns=columns, slices=min(blocks.slices, columns // 16))


def _num_programs(update: Update, blocks: Blocks) -> int:
    if update.tiles is not None:
        tiles = update.tiles
        parts = (tiles.height // blocks.rows) * (tiles.width // blocks.columns)
        return tiles.numbers.numel() * parts if update.parameter.numel() else 0
    height, width = update.parameter.shape
    return -(-height // blocks.rows) * -(-width // blocks.columns)


def _launch(
    rows: torch.Tensor,
    columns: torch.Tensor,
    update: Update,
    scale: torch.Tensor | None,
    blocks: Blocks,
    tf32: bool,
) -> None:
    from satcompile.updates.kernels.device_code import linear_update_kernel

    num_programs = _num_programs(update, blocks)
    if num_programs == 0:
        return
    tiles = update.tiles
    none = [None] * (3 - len(update.moments))
    linear_update_kernel[(num_programs,)](
        rows,
        columns,
        update.parameter,
        *update.moments,
        *none,
        None if tiles is None else tiles.numbers,
        scale,
        rows.shape[0],
        *update.parameter.shape,
        *rows.stride(),
        *columns.stride(),
        *scalars_of(update),
        TILE_HEIGHT=1 if tiles is None else tiles.height,
        TILE_WIDTH=1 if tiles is None else tiles.width,
        ROWS=blocks.rows,
        COLUMNS=blocks.columns,
        DEPTH=blocks.depth,
        GROUP=_GROUP_ROWS,
        SLICES=blocks.slices,
        PRECISION="tf32" if tf32 else "ieee",
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
        RULE=update.rule,
    )
