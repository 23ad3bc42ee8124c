"""One threshold over all weights."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from satcompile.updates.sparsity.grid import Grid
from satcompile.updates.sparsity.selection import choose

sides = st.integers(1, 30)
grids = st.lists(
    st.builds(lambda r, c, h, w: Grid((r, c), min(r, h), min(c, w)), sides, sides, sides, sides),
    min_size=1,
    max_size=5,
)


@given(grids, st.floats(0.01, 1.0), st.integers(0, 1000))
def test_the_density_is_met_as_closely_as_tiles_allow(
    cut: list[Grid], density: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(g.down, g.across, generator=generator, dtype=torch.float64) for g in cut]
    chosen = choose(cut, scores, density)
    held = sum(int(g.sizes[c].sum()) for g, c in zip(cut, chosen, strict=True))
    wanted = density * sum(g.num_elements for g in cut)
    least = sum(
        int(g.sizes.flatten()[(s / g.sizes).argmax()]) for g, s in zip(cut, scores, strict=True)
    )
    largest = max(int(g.sizes.max()) for g in cut)
    assert all(bool(c.any()) for c in chosen)
    assert held <= max(least, wanted + largest / 2)
    if least <= wanted:
        assert abs(held - wanted) <= largest  # far less than a tile for each weight


@given(grids, st.integers(0, 1000))
def test_nothing_that_is_left_is_better_than_what_was_taken(cut: list[Grid], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(g.down, g.across, generator=generator, dtype=torch.float64) for g in cut]
    chosen = choose(cut, scores, 0.5)
    means = [s / g.sizes for s, g in zip(scores, cut, strict=True)]
    best = [m == m.max() for m in means]  # taken for the weight's sake
    taken = torch.cat([m[c & ~b] for m, c, b in zip(means, chosen, best, strict=True)])
    left = torch.cat([m[~c] for m, c in zip(means, chosen, strict=True)])
    if len(taken) and len(left):
        assert taken.min() >= left.max()


@given(grids, st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.integers(0, 1000))
def test_the_set_of_a_lower_density_lies_within_that_of_a_higher_one(
    cut: list[Grid], one: float, other: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(g.down, g.across, generator=generator, dtype=torch.float64) for g in cut]
    low, high = choose(cut, scores, min(one, other)), choose(cut, scores, max(one, other))
    assert all(bool((h | ~c).all()) for c, h in zip(low, high, strict=True))


def test_of_equal_tiles_the_first_are_taken() -> None:
    grid = Grid((4, 4), 2, 2)
    [chosen] = choose([grid], [torch.ones(2, 2)], 0.5)
    assert chosen.tolist() == [[True, True], [False, False]]
