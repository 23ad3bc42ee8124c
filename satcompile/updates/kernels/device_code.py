# mypy: allow-untyped-defs
# (Triton types what it compiles.)
"""The updates in Triton. Importing device_code* needs triton; nothing else here does.

Names in capitals are constants when a kernel is built. The numbers of an update are the eight
fields of :class:`satcompile.updates.kernels.scalars.Scalars`, in that order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from satcompile.updates.kernels.scalars import NUM_SCALARS
from satcompile.updates.kernels.table import Word

_TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}

_FIRST_PROGRAM = tl.constexpr(Word.FIRST_PROGRAM.value)
_PARAMETER = tl.constexpr(Word.PARAMETER.value)
_GRADIENT = tl.constexpr(Word.GRADIENT.value)
_MOMENTS = tl.constexpr(Word.MOMENTS.value)
_TILES = tl.constexpr(Word.TILES.value)
_NUM_ELEMENTS = tl.constexpr(Word.NUM_ELEMENTS.value)
_HEIGHT = tl.constexpr(Word.HEIGHT.value)
_WIDTH = tl.constexpr(Word.WIDTH.value)
_TILE_HEIGHT = tl.constexpr(Word.TILE_HEIGHT.value)
_TILE_WIDTH = tl.constexpr(Word.TILE_WIDTH.value)
_IN_VECTORS = tl.constexpr(Word.IN_VECTORS.value)
_SCALARS = tl.constexpr(Word.SCALARS.value)
_NUM_WORDS = tl.constexpr(Word.SCALARS.value + NUM_SCALARS)


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    return _TRITON_DTYPES[dtype]


@triton.jit
def _adam(pointers, offsets, mask, p, g, scalars, RULE: tl.constexpr):
    """The new weights; the function reads and writes the moments itself."""
    _, mean, square, largest = pointers
    rate, decay, pull, take, beta2, root, eps, _ = scalars
    if RULE.decoupled:
        p *= decay
    else:
        g = tl.where(decay != 0, g + decay * p, g)
    m = tl.load(mean + offsets, mask=mask).to(g.dtype)
    m += (g - m) * pull
    tl.store(mean + offsets, m, mask=mask)
    v = tl.load(square + offsets, mask=mask).to(g.dtype)
    v = beta2 * v + take * g * g
    tl.store(square + offsets, v, mask=mask)
    if RULE.num_moments == 3:
        before = tl.load(largest + offsets, mask=mask).to(g.dtype)
        v = tl.maximum(before, v, propagate_nan=tl.PropagateNan.ALL)
        tl.store(largest + offsets, v, mask=mask)
    return p - rate * m / (tl.sqrt(v) / root + eps)


@triton.jit
def _sgd(pointers, offsets, mask, p, g, scalars, RULE: tl.constexpr):
    """The new weights; the function writes the momentum, and reads it except in the first step."""
    _, momentum, _, _ = pointers
    rate, decay, keep, take, _, _, _, holds = scalars
    g = tl.where(decay != 0, g + decay * p, g)
    if RULE.num_moments == 1:
        # Before the first step the memory may hold anything, NaN too: it is not read.
        is_read = tl.zeros_like(g) + holds != 0
        if mask is not None:
            is_read &= mask
        m = tl.load(momentum + offsets, mask=is_read, other=0.0).to(g.dtype)
        m = keep * m + take * g
        tl.store(momentum + offsets, m, mask=mask)
        g = g + keep * m if RULE.nesterov else m
    return p - rate * g


@triton.jit
def _apply(pointers, offsets, mask, g, scalars, RULE: tl.constexpr):
    """Update the elements at ``offsets`` (those in ``mask``; all if it is None).

    ``g`` is their gradient, in the dtype of the arithmetic.
    """
    parameter, _, _, _ = pointers
    p = tl.load(parameter + offsets, mask=mask).to(g.dtype)
    if RULE.maximize:
        g = -g
    if RULE.formula == "adam":
        p = _adam(pointers, offsets, mask, p, g, scalars, RULE)
    else:
        p = _sgd(pointers, offsets, mask, p, g, scalars, RULE)
    tl.store(parameter + offsets, p, mask=mask)


@triton.jit
def _row_of(table, count, program):
    """The start of the table's row to which ``program`` belongs, by bisection."""
    low = tl.full((), 0, tl.int32)
    high = low + count
    while high - low > 1:
        middle = (low + high) // 2
        is_after = tl.load(table + middle * _NUM_WORDS + _FIRST_PROGRAM) > program
        high = tl.where(is_after, middle, high)
        low = tl.where(is_after, low, middle)
    return table + low * _NUM_WORDS


@triton.jit
def _number(row, INDEX: tl.constexpr, COMPUTE: tl.constexpr):
    return tl.load(row + _SCALARS + INDEX).to(tl.float64, bitcast=True).to(COMPUTE)


@triton.jit
def _region(row, part, CHUNK: tl.constexpr, COLUMNS: tl.constexpr):
    """The rectangle that a program updates: first element, end, pitch, height, width.

    A chunk of a whole parameter is a rectangle, too, of rows ``COLUMNS`` long that follow each
    other. So is a tile of whole rows. The last row may reach beyond the end. The
    height is 0 for tile number -1.
    """
    tiles = tl.load(row + _TILES)
    num_elements = tl.load(row + _NUM_ELEMENTS)
    start = part * CHUNK
    end = tl.minimum(start + CHUNK, num_elements)
    pitch = tl.full((), COLUMNS, tl.int64)
    height = tl.cdiv(end - start, COLUMNS)
    width = pitch
    if tiles != 0:
        number = tl.load(tiles.to(tl.pointer_type(tl.int32)) + part).to(tl.int64)
        tile_height = tl.load(row + _TILE_HEIGHT)
        tile_width = tl.load(row + _TILE_WIDTH)
        matrix_width = tl.load(row + _WIDTH)
        if tile_width >= matrix_width:
            start = number * tile_height * matrix_width
            end = tl.minimum(start + tile_height * matrix_width, num_elements)
            height = tl.cdiv(end - start, COLUMNS)
        else:
            tiles_in_row = tl.cdiv(matrix_width, tile_width)
            top = number // tiles_in_row * tile_height
            left = number % tiles_in_row * tile_width
            start = top * matrix_width + left
            end = num_elements
            pitch = matrix_width
            height = tl.minimum(tl.load(row + _HEIGHT) - top, tile_height)
            width = tl.minimum(matrix_width - left, tile_width)
        height = tl.where(number < 0, 0, height)
    return start, end, pitch, height.to(tl.int32), width.to(tl.int32)


@triton.jit
def _update_rectangle(
    addresses,
    first,
    pitch,
    factor,
    scalars,
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARAMETER: tl.constexpr,
    GRADIENT: tl.constexpr,
    MOMENT: tl.constexpr,
    RULE: tl.constexpr,
):
    """Update all of ``ROWS`` x ``COLUMNS`` elements, 16 bytes at once.

    Rounding ``first`` and ``pitch`` down changes nothing, but shows the compiler that it may do so.
    The hints are on casts in this function: they hold for no other use of the addresses.
    """
    element = tl.arange(0, ROWS * COLUMNS)
    offsets = element // COLUMNS * (pitch.to(tl.int32) // 8 * 8) + element % COLUMNS
    start = first // 8 * 8
    pointers = (
        tl.multiple_of(addresses[1].to(tl.pointer_type(PARAMETER)), 16) + start,
        tl.multiple_of(addresses[2].to(tl.pointer_type(MOMENT)), 16) + start,
        tl.multiple_of(addresses[3].to(tl.pointer_type(MOMENT)), 16) + start,
        tl.multiple_of(addresses[4].to(tl.pointer_type(MOMENT)), 16) + start,
    )
    gradients = tl.multiple_of(addresses[0].to(tl.pointer_type(GRADIENT)), 16) + start
    g = tl.load(gradients + offsets).to(COMPUTE) * factor
    _apply(pointers, offsets, None, g, scalars, RULE)


@triton.jit
def _update_line(
    addresses,
    first,
    num_columns,
    factor,
    scalars,
    COMPUTE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARAMETER: tl.constexpr,
    GRADIENT: tl.constexpr,
    MOMENT: tl.constexpr,
    RULE: tl.constexpr,
):
    """Update up to ``COLUMNS`` elements that begin anywhere: one per thread, so few registers."""
    offsets = tl.arange(0, COLUMNS)
    mask = offsets < num_columns
    pointers = (
        addresses[1].to(tl.pointer_type(PARAMETER)) + first,
        addresses[2].to(tl.pointer_type(MOMENT)) + first,
        addresses[3].to(tl.pointer_type(MOMENT)) + first,
        addresses[4].to(tl.pointer_type(MOMENT)) + first,
    )
    gradients = addresses[0].to(tl.pointer_type(GRADIENT)) + first + offsets
    g = tl.load(gradients, mask=mask).to(COMPUTE) * factor
    _apply(pointers, offsets, mask, g, scalars, RULE)


@triton.jit(do_not_specialize=["count"])
def sweep_kernel(
    table,
    count,
    scale,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    PARAMETER: tl.constexpr,
    GRADIENT: tl.constexpr,
    MOMENT: tl.constexpr,
    RULE: tl.constexpr,
):
    """Update one chunk or one tile of one of the table's ``count`` parameters.

    Args:
        table: int64, a row of ``_NUM_WORDS`` for each parameter.
        scale: None, or a pointer to the factor of every gradient.
        CHUNK: elements of a whole parameter that one program updates.
        ROWS, COLUMNS: of the rectangle that is updated at once.
    """
    program = tl.program_id(0)
    row = _row_of(table, count, program)
    part = program - tl.load(row + _FIRST_PROGRAM)
    start, end, pitch, height, width = _region(row, part, CHUNK, COLUMNS)
    in_vectors = tl.load(row + _IN_VECTORS)
    addresses = (
        tl.load(row + _GRADIENT),
        tl.load(row + _PARAMETER),
        tl.load(row + _MOMENTS),
        tl.load(row + _MOMENTS + 1),
        tl.load(row + _MOMENTS + 2),
    )
    scalars = (
        _number(row, 0, COMPUTE),
        _number(row, 1, COMPUTE),
        _number(row, 2, COMPUTE),
        _number(row, 3, COMPUTE),
        _number(row, 4, COMPUTE),
        _number(row, 5, COMPUTE),
        _number(row, 6, COMPUTE),
        _number(row, 7, COMPUTE),
    )
    factor = tl.load(scale).to(COMPUTE) if scale is not None else 1.0

    for top in range(0, height, ROWS):
        for left in range(0, width, COLUMNS):
            first = start + top * pitch + left
            last = first + (ROWS - 1) * pitch + COLUMNS - 1
            is_whole = (top + ROWS <= height) & (left + COLUMNS <= width) & (last < end)
            if is_whole & (in_vectors != 0):
                _update_rectangle(
                    addresses, first, pitch, factor, scalars, COMPUTE, ROWS, COLUMNS,
                    PARAMETER, GRADIENT, MOMENT, RULE,
                )  # fmt: skip
            else:
                for line in range(top, tl.minimum(top + ROWS, height)):
                    first = start + line * pitch + left
                    num_columns = tl.minimum(end - first, width - left).to(tl.int32)
                    _update_line(
                        addresses, first, num_columns, factor, scalars, COMPUTE, COLUMNS,
                        PARAMETER, GRADIENT, MOMENT, RULE,
                    )  # fmt: skip
