"""How graphs call the kernels for GPUs: through the same functions as on the CPU."""

from __future__ import annotations

import pytest
import torch

from satcompile.updates.kernels import crossover, tile_products
from satcompile.updates.sparsity.grid import Grid
from satcompile.updates.sparsity.pattern import Pattern
from tests.updates.kernels.reference import eighths


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_products, "_is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(crossover, "faster", lambda kind, a, b, share, sparse, dense: sparse())


def _pattern(rows: int, columns: int, tile: tuple[int, int]) -> tuple[Pattern, torch.Tensor]:
    grid = Grid((rows, columns), *tile)
    active = (torch.arange(grid.down * grid.across) % 3 != 1).view(grid.down, grid.across)
    return Pattern(grid, active), grid.element_mask(active)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients(transposed: bool) -> None:
    a, b = eighths(40, 20).T, eighths(40, 50)
    pattern, mask = _pattern(*((50, 20) if transposed else (20, 50)), (16, 32))
    found = tile_products.tile_mm(a, b, pattern, transposed)
    assert torch.equal(found, (a @ b) * (mask.T if transposed else mask))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_masked_products(transposed: bool, with_bias: bool) -> None:
    weight = eighths(48, 40)
    pattern, mask = _pattern(48, 40, (16, 32))
    factor, counted = (weight.T, mask.T) if transposed else (weight, mask)
    a = eighths(30, factor.shape[0])
    bias = eighths(1, factor.shape[1])[0] if with_bias else None
    found = tile_products.masked_mm(a, factor, pattern, transposed, bias)
    wanted = a @ (factor * counted)
    assert torch.equal(found, wanted if bias is None else wanted + bias)


def test_tiles_that_tensor_cores_cannot_read_are_masked() -> None:
    weight = eighths(24, 24)
    pattern, mask = _pattern(24, 24, (8, 24))
    a = eighths(5, 24)
    assert torch.equal(tile_products.masked_mm(a, weight, pattern, False), a @ (weight * mask))
