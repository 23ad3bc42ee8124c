"""The score of a tile, from its weights and its gradient.

* movement: sum of |w g|, the first-order change of the loss if the tile's weights were zero
  (Molchanov et al. 2017; Sanh et al. 2020 sum it, with its sign, over training).
* fisher: sum of g^2, the diagonal of the empirical Fisher information.
* magnitude: sum of |w|, which Top-KAST takes (Jayakumar et al. 2020).
* random: none of these; a control.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from satcompile.updates.sparsity.grid import Grid

Score = Literal["movement", "fisher", "magnitude", "random"]
FROM_GRADIENTS = ("movement", "fisher")


def tile_scores(
    score: Score, grid: Grid, weight: torch.Tensor, gradient: torch.Tensor | None
) -> torch.Tensor:
    """A map of sums, in float32 or the weight's dtype if that is wider, on the weight's device.

    The function handles one row of tiles at a time, so that a scoring step takes little more memory
    than other steps.

    Args:
        score: "movement", "fisher" or "magnitude".
        weight, gradient: of the grid's shape; the gradient may have another dtype.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weights = weight.reshape(grid.rows, -1) if score != "fisher" else None
    gradients = gradient.reshape(grid.rows, -1) if gradient is not None else None
    sums = []
    for top in range(0, grid.rows, grid.height):
        strip = slice(top, top + grid.height)
        if score == "magnitude":
            assert weights is not None
            values = weights[strip].abs()
        elif score == "fisher":
            assert gradients is not None
            values = gradients[strip].to(dtype).square()
        else:
            assert weights is not None and gradients is not None
            values = (weights[strip] * gradients[strip].to(dtype)).abs_()
        sums.append(grid.sums(values.to(dtype)))
    return torch.cat(sums)


def map_bytes(score: Score, weights: Iterable[torch.Tensor], block: int) -> int:
    """Bytes of the maps that keep a scoring step's scores, from the first such step on. All weights
    that may be cut count as cut."""
    if score not in FROM_GRADIENTS:
        return 0
    grids = [(Grid.of(w.shape, block), w.dtype) for w in weights if w.dim() > 1]
    return sum(
        grid.down * grid.across * torch.promote_types(dtype, torch.float32).itemsize
        for grid, dtype in grids
    )


def random_scores(grid: Grid, seed: int) -> torch.Tensor:
    """A map of random numbers that depend only on the seed."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(grid.down, grid.across, generator=generator, dtype=torch.float64)
    return draws * grid.sizes
