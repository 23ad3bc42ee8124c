"""How a weight is cut into tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

# A convolution's library works on this many channels at a time.
_CHANNELS = 8


@dataclass(frozen=True)
class Grid:
    """A weight of shape (n, ...), seen as a matrix of n rows, cut into tiles.

    Tiles at the right and lower edges may be smaller; tiles are numbered row by row. A *map* is a
    tensor of shape (down, across) with an entry for each.

    Attributes:
        shape: of the weight.
        height, width: of a tile, in rows and columns of the matrix.
    """

    shape: tuple[int, ...]
    height: int
    width: int

    @classmethod
    def of(cls, shape: Sequence[int], block: int) -> Grid:
        """Square tiles for a matrix. For a convolution's weight: blocks of output channels, with
        about ``block**2`` weights and at most ``block`` channels each."""
        shape = tuple(shape)
        if len(shape) == 2:
            return cls(shape, min(block, shape[0]), min(block, shape[1]))
        per_channel = math.prod(shape[1:])
        channels = block * block // per_channel // _CHANNELS * _CHANNELS
        channels = min(block, max(channels, min(block, _CHANNELS)), shape[0])
        return cls(shape, channels, per_channel)

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def down(self) -> int:
        return -(-self.rows // self.height)

    @property
    def across(self) -> int:
        return -(-self.columns // self.width)

    @cached_property
    def sizes(self) -> torch.Tensor:
        """A map of int64: elements of each tile."""
        heights = _lengths(self.rows, self.height, self.down)
        widths = _lengths(self.columns, self.width, self.across)
        return heights[:, None] * widths[None, :]

    def share(self, active: torch.Tensor) -> float:
        """The share of the weight's elements in the tiles of a map of bool."""
        return float(self.sizes[active].sum()) / self.num_elements

    def element_mask(self, active: torch.Tensor) -> torch.Tensor:
        """A map of bool, as a mask of the weight's shape."""
        rows = active.repeat_interleave(self.height, 0)[: self.rows]
        return rows.repeat_interleave(self.width, 1)[:, : self.columns].reshape(self.shape)

    def sums(self, matrix_strip: torch.Tensor) -> torch.Tensor:
        """The sum over each tile, in some whole rows of tiles.

        Args:
            matrix_strip: (rows, columns), beginning at a tile's upper edge.

        Returns:
            (rows of tiles, across), of the same dtype.
        """
        missing = self.across * self.width - matrix_strip.shape[1]
        if missing:
            matrix_strip = torch.nn.functional.pad(matrix_strip, (0, missing))
        by_row = matrix_strip.view(matrix_strip.shape[0], self.across, self.width).sum(2)
        return torch.stack([rows.sum(0) for rows in by_row.split(self.height)])


def _lengths(extent: int, side: int, count: int) -> torch.Tensor:
    lengths = torch.full((count,), side, dtype=torch.int64)
    lengths[-1] = extent - side * (count - 1)
    return lengths


Rectangle = tuple[int, int, int, int]  # top, bottom, left, right, in elements


_MOST_TILES = 1024  # at most, for the search of the largest rectangles


def rectangles(grid: Grid, active: torch.Tensor) -> list[Rectangle]:
    """Rectangles of adjacent active tiles, without overlap. The larger a rectangle, the faster its
    product is per tile.

    The largest rectangle comes first, then the largest among the remaining tiles, and so on. With
    very many tiles, the rectangles are runs of tiles in a row, joined with equal runs in the next
    rows.
    """
    find = _largest_first if active.numel() <= _MOST_TILES else _joined_runs
    return [
        (
            top * grid.height,
            min(bottom * grid.height, grid.rows),
            left * grid.width,
            min(right * grid.width, grid.columns),
        )
        for top, bottom, left, right in find(active)
    ]


def _largest_first(active: torch.Tensor) -> list[Rectangle]:
    rows, found = active.tolist(), []
    while (largest := _largest(rows)) is not None:
        top, bottom, left, right = largest
        for row in rows[top:bottom]:
            row[left:right] = [False] * (right - left)
        found.append(largest)
    return found


def _largest(rows: list[list[bool]]) -> Rectangle | None:
    """The largest rectangle of true flags: for each row, the largest one under the heights of the
    true columns that end there, found with a stack of rising heights."""
    best: Rectangle | None = None
    best_area = 0
    heights = [0] * len(rows[0])
    for bottom, row in enumerate(rows, start=1):
        heights = [height + 1 if flag else 0 for height, flag in zip(heights, row, strict=True)]
        rising: list[tuple[int, int]] = []  # where a height begins, and the height
        for right, height in enumerate([*heights, 0]):
            left = right
            while rising and rising[-1][1] >= height:
                left, tall = rising.pop()
                if tall * (right - left) > best_area:
                    best_area = tall * (right - left)
                    best = (bottom - tall, bottom, left, right)
            rising.append((left, height))
    return best


def _joined_runs(active: torch.Tensor) -> list[Rectangle]:
    done: list[Rectangle] = []
    open_runs: dict[tuple[int, int], int] = {}  # the row where each began
    rows = active.tolist()
    for number, row in enumerate([*rows, [False] * len(rows[0])]):
        runs = runs_of(row)
        for (left, right), top in list(open_runs.items()):
            if (left, right) not in runs:
                done.append((top, number, left, right))
                del open_runs[left, right]
        for run in runs:
            open_runs.setdefault(run, number)
    return done


def runs_of(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Begin and end of each run of true flags."""
    found: list[tuple[int, int]] = []
    for position, flag in enumerate(flags):
        if flag and found and found[-1][1] == position:
            found[-1] = (found[-1][0], position + 1)
        elif flag:
            found.append((position, position + 1))
    return found
