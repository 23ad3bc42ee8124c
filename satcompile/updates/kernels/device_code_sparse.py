# mypy: allow-untyped-defs
# (Triton types what it compiles.)
"""Matrix products of which only some tiles count, in Triton.

Names in capitals are constants when a kernel is built.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

__all__ = ["OutOfResources", "masked_mm_kernel", "tile_mm_kernel"]


@triton.jit
def _grouped(num_rows, num_columns, GROUP: tl.constexpr):
    """The row and the column of a program's part, among ``num_rows`` x ``num_columns`` parts.

    Programs that run one after the other compute parts that are neighbours in both directions
    (``GROUP`` rows of parts), so that the data that they read is still in the cache.
    """
    program = tl.program_id(0)
    parts_in_group = GROUP * num_columns
    first_row = program // parts_in_group * GROUP
    rows_in_group = tl.minimum(num_rows - first_row, GROUP)
    within = program % parts_in_group
    return first_row + within % rows_in_group, within // rows_in_group


@triton.jit
def _product_tile(
    rows,
    columns,
    top,
    left,
    length,
    height,
    width,
    row_pitch,
    row_step,
    column_pitch,
    column_step,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``rows[:, top:].T @ columns[:, left:]``, ``ROWS`` x ``COLUMNS`` of it, in float32.

    The transpose is read as stored: the hardware turns it on its way to the tensor cores.
    """
    depth = tl.arange(0, DEPTH)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    # Offsets within a part fit 32 bits; the part's own offset need not.
    rows += top.to(tl.int64) * row_step
    columns += left.to(tl.int64) * column_step
    row_pointers = rows + row[:, None] * row_step + depth[None, :] * row_pitch
    column_pointers = columns + depth[:, None] * column_pitch + column[None, :] * column_step
    has_row = (row < height - top)[:, None]
    has_column = (column < width - left)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, length, DEPTH):
        is_there = depth < length - first
        a = tl.load(row_pointers, mask=has_row & is_there[None, :], other=0.0)
        b = tl.load(column_pointers, mask=is_there[:, None] & has_column, other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        row_pointers += DEPTH * row_pitch
        column_pointers += DEPTH * column_pitch
    return total


@triton.jit
def _part_of_tile(
    tiles,
    height,
    width,
    TILE_HEIGHT: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program's part of a tile: top, left, bottom, right, and whether there is anything to do.

    Parts need not divide the tile. Where they do, bottom and right stay those of the matrix, whose
    alignment the compiler knows.
    """
    across: tl.constexpr = (TILE_WIDTH + COLUMNS - 1) // COLUMNS
    parts: tl.constexpr = (TILE_HEIGHT + ROWS - 1) // ROWS * across
    program = tl.program_id(0)
    number = tl.load(tiles + program // parts)
    part = program % parts
    tiles_in_row = tl.cdiv(width, TILE_WIDTH)
    tile_top = number // tiles_in_row * TILE_HEIGHT
    tile_left = number % tiles_in_row * TILE_WIDTH
    bottom = height
    if TILE_HEIGHT % ROWS != 0:
        bottom = tl.minimum(height, tile_top + TILE_HEIGHT)
    right = width
    if TILE_WIDTH % COLUMNS != 0:
        right = tl.minimum(width, tile_left + TILE_WIDTH)
    top = tile_top + part // across * ROWS
    left = tile_left + part % across * COLUMNS
    # At an edge, a part of a tile may lie outside the matrix.
    is_active = (number >= 0) & (top < bottom) & (left < right)
    return top, left, bottom, right, is_active


@triton.jit
def _store(
    total,
    out,
    top,
    left,
    bottom,
    right,
    pitch,
    step,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Round ``ROWS`` x ``COLUMNS`` numbers once; write those before ``bottom`` and ``right``."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    # Offsets within a part fit 32 bits; the part's own offset need not.
    out += top.to(tl.int64) * pitch + left.to(tl.int64) * step
    mask = (row < bottom - top) & (column < right - left)
    tl.store(out + row * pitch + column * step, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def tile_mm_kernel(
    rows,
    columns,
    tiles,
    out,
    length,
    height,
    width,
    row_pitch,
    row_step,
    column_pitch,
    column_step,
    out_pitch,
    out_step,
    TILE_HEIGHT: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``out = rows.T @ columns``: ``ROWS`` x ``COLUMNS`` of one tile of the list."""
    top, left, bottom, right, is_active = _part_of_tile(
        tiles, height, width, TILE_HEIGHT, TILE_WIDTH, ROWS, COLUMNS
    )
    if is_active:
        total = _product_tile(
            rows, columns, top, left, length, bottom, right,
            row_pitch, row_step, column_pitch, column_step,
            ROWS, COLUMNS, DEPTH, PRECISION,
        )  # fmt: skip
        _store(total, out, top, left, bottom, right, out_pitch, out_step, ROWS, COLUMNS)


@triton.jit
def masked_mm_kernel(
    a,
    b,
    starts,
    blocks,
    out,
    height,
    length,
    width,
    a_pitch,
    a_step,
    b_pitch,
    b_step,
    TILE_DEPTH: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``out = a @ b`` over the tiles of ``b`` that count: ``ROWS`` x ``COLUMNS`` of it.

    One loop, not a loop in a loop, runs over the blocks of rows that count: the next block is
    fetched while the last is still multiplied.
    """
    across: tl.constexpr = (TILE_WIDTH + COLUMNS - 1) // COLUMNS
    steps: tl.constexpr = TILE_DEPTH // DEPTH
    num_parts = tl.cdiv(width, TILE_WIDTH) * across
    row_part, part = _grouped(tl.cdiv(height, ROWS), num_parts, GROUP)
    block = part // across
    top = row_part * ROWS
    left = block * TILE_WIDTH + part % across * COLUMNS
    right = width
    if TILE_WIDTH % COLUMNS != 0:
        right = tl.minimum(width, (block + 1) * TILE_WIDTH)
    if left < right:
        depth = tl.arange(0, DEPTH)
        row = tl.arange(0, ROWS)
        column = tl.arange(0, COLUMNS)
        # Offsets within a part fit 32 bits; the part's own offset need not.
        a += top.to(tl.int64) * a_pitch
        b += left.to(tl.int64) * b_step
        a_offsets = row[:, None] * a_pitch + depth[None, :] * a_step
        b_offsets = depth[:, None] * b_pitch + column[None, :] * b_step
        has_row = (row < height - top)[:, None]
        has_column = (column < right - left)[None, :]
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        first = tl.load(starts + block) * steps
        last = tl.load(starts + block + 1) * steps
        for step in range(first, last):
            at = tl.load(blocks + step // steps) * TILE_DEPTH + step % steps * DEPTH
            is_there = depth < length - at
            at_a = a + at.to(tl.int64) * a_step
            at_b = b + at.to(tl.int64) * b_pitch
            x = tl.load(at_a + a_offsets, mask=has_row & is_there[None, :], other=0.0)
            y = tl.load(at_b + b_offsets, mask=is_there[:, None] & has_column, other=0.0)
            total = tl.dot(x, y, total, input_precision=PRECISION)
        _store(total, out, top, left, height, right, width, 1, ROWS, COLUMNS)
