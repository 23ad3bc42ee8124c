"""Which tiles are active: one threshold over all weights, for a share of all elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from satcompile.updates.sparsity.grid import Grid


def choose(
    grids: Sequence[Grid], scores: Sequence[torch.Tensor], density: float
) -> list[torch.Tensor]:
    """Maps of bool: the best tiles by mean score, with the best one of each weight among them.

    Their elements come as close to ``density`` of all as whole tiles allow. If one tile of each
    weight is more than that, only these tiles are chosen. Among equally good tiles, the first is
    chosen. Tiles are compared by the mean, because a knapsack is filled best by value per weight,
    and tiles at edges are smaller.

    Args:
        scores: a map of sums for each grid, finite, on the CPU.
    """
    sizes = torch.cat([grid.sizes.flatten() for grid in grids])
    means = torch.cat([score.flatten().double() for score in scores]) / sizes
    chosen = torch.zeros(len(sizes), dtype=torch.bool)
    first = 0
    for grid in grids:
        count = grid.down * grid.across
        chosen[first + int(means[first : first + count].argmax())] = True
        first += count
    wanted = density * float(sizes.sum())
    order = torch.sort(means, descending=True, stable=True).indices
    order = order[~chosen[order]]
    held = float(sizes[chosen].sum())
    filled = held + sizes[order].cumsum(0)
    before = filled - sizes[order]
    # The last tile is taken if the total is then closer to the wanted one than without it.
    is_taken = (filled - wanted).abs() < (before - wanted).abs()
    is_taken &= before < wanted
    chosen[order[is_taken]] = True
    maps = chosen.split([grid.down * grid.across for grid in grids])
    return [flags.view(grid.down, grid.across) for flags, grid in zip(maps, grids, strict=True)]
