"""A map of tiles as kernels need it: lists of tiles, of rectangles, of parts of a sum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from satcompile.updates.optimizers.rules import Tiles
from satcompile.updates.sparsity.grid import Grid, Rectangle, rectangles, runs_of

_PIECES = (
    2  # for each thread at least, where tiles allow it, so that all end at about the same time
)


class Pattern:
    """Some tiles of a weight. It never changes, so that lists made from it can be kept.

    Attributes:
        grid: how the weight is cut.
        active: a map of bool, on the CPU.
    """

    def __init__(self, grid: Grid, active: torch.Tensor) -> None:
        self.grid, self.active = grid, active
        self._tiles: dict[torch.device, Tiles] = {}
        self._lists: dict[tuple[torch.device, bool], tuple[torch.Tensor, torch.Tensor]] = {}

    @cached_property
    def is_full(self) -> bool:
        return bool(self.active.all())

    @cached_property
    def share(self) -> float:
        """The active share of the weight's elements."""
        return self.grid.share(self.active)

    def tiles(self, device: torch.device) -> Tiles:
        """The numbers of the tiles, in a tensor on ``device``."""
        if device not in self._tiles:
            numbers = self.active.flatten().nonzero().flatten().to(torch.int32)
            self._tiles[device] = Tiles(self.grid.height, self.grid.width, numbers.to(device))
        return self._tiles[device]

    # -- for the CPU -----------------------------------------------------------------------

    def gradient_rectangles(self, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
        """The computed and the frozen rectangles of a gradient: (count, 4) of top, bottom, left and
        right, in the weight as a matrix, or in its transpose. The largest come first."""
        return self._gradient_rectangles[transposed]

    @cached_property
    def _gradient_rectangles(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        computed = _split(rectangles(self.grid, self.active), self.grid)
        frozen = rectangles(self.grid, ~self.active)
        upright = _array(computed), _array(frozen)
        turned = tuple(each[:, [2, 3, 0, 1]].copy() for each in upright)
        return upright, (turned[0], turned[1])

    @cached_property
    def frozen_rectangles(self) -> list[Rectangle]:
        return rectangles(self.grid, ~self.active)

    def products(self, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
        """For ``a @ w``, or ``a @ w.T``: groups of columns of the product, each with the range of
        its runs, and runs of rows of the second factor."""
        return self._products[transposed]

    @cached_property
    def _products(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        grid = self.grid
        return (
            _groups(self.active, (grid.height, grid.rows), (grid.width, grid.columns)),
            _groups(self.active.T, (grid.width, grid.columns), (grid.height, grid.rows)),
        )

    def whole_rows(self) -> list[tuple[int, int]]:
        """Begin and end of runs of rows, where tiles are whole rows (convolutions)."""
        grid = self.grid
        assert grid.across == 1
        return [
            (begin * grid.height, min(end * grid.height, grid.rows))
            for begin, end in runs_of(self.active.flatten().tolist())
        ]

    # -- for GPUs --------------------------------------------------------------------------

    def lists(self, device: torch.device, transposed: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """For ``a @ w``, or ``a @ w.T``: for the j-th block of columns of the product, the blocks
        of rows of the second factor that count are ``blocks[starts[j]:starts[j + 1]]``. Both
        int32."""
        if (device, transposed) not in self._lists:
            by_column = self.active if transposed else self.active.T
            starts = torch.zeros(len(by_column) + 1, dtype=torch.int32)
            starts[1:] = by_column.sum(1).cumsum(0)
            blocks = by_column.nonzero()[:, 1].to(torch.int32)
            self._lists[device, transposed] = starts.to(device), blocks.to(device)
        return self._lists[device, transposed]


def _split(found: list[Rectangle], grid: Grid) -> list[Rectangle]:
    """Halve rectangles that are more than their share of the work, between tiles."""
    area = sum((bottom - top) * (right - left) for top, bottom, left, right in found)
    pieces = _PIECES * torch.get_num_threads()
    done: list[Rectangle] = []
    rest = list(found)
    while rest:
        top, bottom, left, right = rest.pop()
        tall, wide = -(-(bottom - top) // grid.height), -(-(right - left) // grid.width)
        if (bottom - top) * (right - left) * pieces <= area or (tall == 1 and wide == 1):
            done.append((top, bottom, left, right))
        elif (tall > 1 and bottom - top >= right - left) or wide == 1:
            middle = top + tall // 2 * grid.height
            rest += [(top, middle, left, right), (middle, bottom, left, right)]
        else:
            middle = left + wide // 2 * grid.width
            rest += [(top, bottom, left, middle), (top, bottom, middle, right)]
    return sorted(done, key=lambda r: (r[0] - r[1]) * (r[3] - r[2]))


def _groups(
    active: torch.Tensor, rows: tuple[int, int], columns: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Group neighbouring columns of tiles that have the same tiles active."""
    (height, num_rows), (width, num_columns) = rows, columns
    groups: list[tuple[int, int, int, int]] = []
    runs: list[tuple[int, int]] = []
    previous: list[bool] | None = None
    for number, flags in enumerate(active.T.tolist()):
        right = min((number + 1) * width, num_columns)
        if flags == previous:
            groups[-1] = (groups[-1][0], right, *groups[-1][2:])
            continue
        first = len(runs)
        runs += [(begin * height, min(end * height, num_rows)) for begin, end in runs_of(flags)]
        groups.append((number * width, right, first, len(runs)))
        previous = flags
    return _array(groups), _array(runs, 2)


def _array(rows: Sequence[Sequence[int]], width: int = 4) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(-1, width)
