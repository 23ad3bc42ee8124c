"""Many parameters' updates as one small int64 tensor, which one kernel launch reads.

A row for each parameter: addresses, sizes, and numbers in double precision, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch

from satcompile.updates.kernels.scalars import NUM_SCALARS, Scalars
from satcompile.updates.optimizers.rules import Tiles, Update


class Word(IntEnum):
    """Positions of the words in a row."""

    FIRST_PROGRAM = 0  # of the row, among the programs that share the launch
    PARAMETER = 1
    GRADIENT = 2
    MOMENTS = 3  # three addresses, 0 where there is none
    TILES = 6  # address of the tiles' numbers, 0 for the whole parameter
    NUM_ELEMENTS = 7
    HEIGHT = 8
    WIDTH = 9
    TILE_HEIGHT = 10
    TILE_WIDTH = 11
    IN_VECTORS = 12  # whether everything begins at multiples of 16 bytes
    SCALARS = 13  # eight, as float64


ROW_BYTES = 8 * (Word.SCALARS + NUM_SCALARS)
_VECTOR_BYTES = 16
_VECTOR_ELEMENTS = 8  # of the smallest dtype, in 16 bytes


def num_programs(update: Update, chunk: int) -> int:
    """Programs of an update: one for each listed tile, or for each chunk of a whole parameter."""
    if update.tiles is not None:
        return update.tiles.numbers.numel() if update.parameter.numel() else 0
    return -(-update.parameter.numel() // chunk)


def table_of(updates: Sequence[Update], scalars: Sequence[Scalars], chunk: int) -> torch.Tensor:
    """The rows, on the CPU. Programs are numbered in the order of the updates."""
    rows, first_program = [], 0
    for update in updates:
        rows.append(_row(update, first_program))
        first_program += num_programs(update, chunk)
    numbers = torch.tensor(scalars, dtype=torch.float64).view(torch.int64)
    return torch.cat([torch.tensor(rows, dtype=torch.int64), numbers], dim=1)


def _row(update: Update, first_program: int) -> list[int]:
    parameter, tiles = update.parameter, update.tiles
    moments = [moment.data_ptr() for moment in update.moments]
    addresses = [parameter.data_ptr(), update.gradient.data_ptr(), *moments]
    height = parameter.shape[0] if parameter.dim() else 1
    width = parameter.numel() // max(height, 1)
    in_vectors = not any(address % _VECTOR_BYTES for address in addresses) and not any(
        step % _VECTOR_ELEMENTS for step in _steps(tiles, width)
    )
    return [
        first_program,
        *addresses,
        *[0] * (3 - len(moments)),
        tiles.numbers.data_ptr() if tiles is not None else 0,
        parameter.numel(),
        height,
        width,
        tiles.height if tiles is not None else 0,
        tiles.width if tiles is not None else 0,
        int(in_vectors),
    ]


def _steps(tiles: Tiles | None, width: int) -> tuple[int, ...]:
    """Steps in elements: distances between tiles and between their rows are sums of them."""
    if tiles is None:
        return ()
    if tiles.width >= width:
        return (tiles.height * width,)
    return tiles.width, width
