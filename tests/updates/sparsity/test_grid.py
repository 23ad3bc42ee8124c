"""How weights are cut, and what is made of a map of tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from satcompile.updates.sparsity import grid as grids
from satcompile.updates.sparsity.grid import Grid, rectangles
from satcompile.updates.sparsity.pattern import Pattern


@st.composite
def maps(draw: st.DrawFn) -> tuple[Grid, torch.Tensor]:
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    grid = Grid((rows, columns), draw(st.integers(4, 12)), draw(st.integers(4, 12)))
    flags = draw(
        st.lists(st.booleans(), min_size=grid.down * grid.across, max_size=grid.down * grid.across)
    )
    return grid, torch.tensor(flags).view(grid.down, grid.across)


def covered(grid: Grid, found: list[tuple[int, int, int, int]]) -> torch.Tensor:
    counts = torch.zeros(grid.rows, grid.columns, dtype=torch.int64)
    for top, bottom, left, right in found:
        assert 0 <= top < bottom <= grid.rows and 0 <= left < right <= grid.columns
        counts[top:bottom, left:right] += 1
    return counts


@given(maps(), st.sampled_from([0, 1024]))
def test_rectangles_cover_what_is_active_once(
    case: tuple[Grid, torch.Tensor], most_tiles: int
) -> None:
    grid, active = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "_MOST_TILES", most_tiles)
        counts = covered(grid, rectangles(grid, active))
    assert torch.equal(counts, grid.element_mask(active).long())


@given(maps())
def test_the_largest_rectangle_comes_first(case: tuple[Grid, torch.Tensor]) -> None:
    grid, active = case
    grid = Grid((grid.down, grid.across), 1, 1)
    largest = 0
    for top in range(grid.down):
        for left in range(grid.across):
            for bottom in range(top + 1, grid.down + 1):
                for right in range(left + 1, grid.across + 1):
                    if active[top:bottom, left:right].all():
                        largest = max(largest, (bottom - top) * (right - left))
    areas = [(b - t) * (r - le) for t, b, le, r in rectangles(grid, active)]
    assert areas == sorted(areas, reverse=True)
    assert (areas or [0])[0] == largest


@given(maps())
def test_work_is_cut_into_pieces_that_cover_it_once(case: tuple[Grid, torch.Tensor]) -> None:
    grid, active = case
    pattern = Pattern(grid, active)
    for transposed in (False, True):
        computed, frozen = pattern.gradient_rectangles(transposed)
        shape = (grid.columns, grid.rows) if transposed else (grid.rows, grid.columns)
        turned = Grid(shape, 1, 1)
        mask = grid.element_mask(active).long()
        mask = mask.T if transposed else mask
        assert torch.equal(covered(turned, computed.tolist()), mask)
        assert torch.equal(covered(turned, frozen.tolist()), 1 - mask)


@given(maps())
def test_sums_and_sizes_are_those_of_the_tiles(case: tuple[Grid, torch.Tensor]) -> None:
    grid, active = case
    matrix = torch.arange(grid.num_elements, dtype=torch.float64).view(grid.shape)
    sums = torch.cat([grid.sums(strip) for strip in matrix.split(grid.height)])
    for down in range(grid.down):
        for across in range(grid.across):
            tile = matrix[down * grid.height :, across * grid.width :]
            tile = tile[: grid.height, : grid.width]
            assert sums[down, across] == tile.sum()
            assert grid.sizes[down, across] == tile.numel()
    assert grid.share(active) == pytest.approx(grid.element_mask(active).double().mean().item())


@given(maps())
def test_parts_of_a_sum_are_those_of_the_masked_matrix(case: tuple[Grid, torch.Tensor]) -> None:
    grid, active = case
    mask = grid.element_mask(active)
    for transposed in (False, True):
        factor = mask.T if transposed else mask
        groups, runs = Pattern(grid, active).products(transposed)
        found = torch.zeros_like(factor)
        column = 0
        for left, right, first, last in groups.tolist():
            assert left == column
            column = right
            for begin, end in runs[first:last].tolist():
                found[begin:end, left:right] = True
        assert column == factor.shape[1]
        assert torch.equal(found, factor)


@given(maps())
def test_lists_for_a_gpu_say_the_same(case: tuple[Grid, torch.Tensor]) -> None:
    grid, active = case
    pattern = Pattern(grid, active)
    tiles = pattern.tiles(torch.device("cpu"))
    assert tiles.numbers.tolist() == active.flatten().nonzero().flatten().tolist()
    for transposed in (False, True):
        factor = active.T if transposed else active
        starts, blocks = pattern.lists(torch.device("cpu"), transposed)
        for j in range(factor.shape[1]):
            rows = blocks[starts[j] : starts[j + 1]].tolist()
            assert rows == factor[:, j].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("shape", "block", "tile"),
    [
        ((512, 2048), 128, (128, 128)),
        ((64, 2048), 128, (64, 128)),
        ((300, 40), 128, (128, 40)),
        ((64, 64, 3, 3), 128, (24, 576)),  # about as many weights as 128 x 128
        ((512, 512, 3, 3), 128, (8, 4608)),
        ((16, 3, 3, 3), 128, (16, 27)),
        ((32, 16, 3, 3), 4, (4, 144)),
        ((32, 16, 5), 16, (8, 80)),
    ],
)
def test_tiles_are_of_the_size_that_is_documented(
    shape: tuple[int, ...], block: int, tile: tuple[int, int]
) -> None:
    grid = Grid.of(shape, block)
    assert (grid.height, grid.width) == tile
