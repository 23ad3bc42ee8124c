"""Products on the CPU that skip tiles, against dense ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satcompile.updates.kernels import crossover, tile_products
from satcompile.updates.kernels.tile_convolution import Convolution
from satcompile.updates.kernels.tile_mm_cpu import masked_mm, tile_mm
from satcompile.updates.sparsity.grid import Grid
from satcompile.updates.sparsity.pattern import Pattern


def matrix(rows: int, columns: int, dtype: torch.dtype, turned: bool) -> torch.Tensor:
    if turned:
        return torch.randn(columns, rows, dtype=torch.float64).to(dtype).T
    return torch.randn(rows, columns, dtype=torch.float64).to(dtype)


def pattern_of(rows: int, columns: int, height: int, width: int, seed: int) -> Pattern:
    grid = Grid((rows, columns), min(height, rows), min(width, columns))
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand((), generator=generator)
    return Pattern(grid, torch.rand(grid.down, grid.across, generator=generator) < share)


def some_pattern() -> Pattern:
    grid = Grid((24, 36), 5, 7)
    return Pattern(grid, (torch.arange(grid.down * grid.across) % 3 == 0).view(grid.down, -1))


sides = st.integers(1, 50)
tiles = st.integers(1, 20)
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
dtypes = st.sampled_from(list(DTYPES))


@settings(deadline=None)
@given(
    sides,
    sides,
    sides,
    tiles,
    tiles,
    dtypes,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_product_in_tiles_is_the_dense_one_there_and_zero_elsewhere(
    m: int, t: int, n: int, height: int, width: int, dtype: torch.dtype,
    a_turned: bool, b_turned: bool, transposed: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    a, b = matrix(m, t, dtype, a_turned), matrix(t, n, dtype, b_turned)
    pattern = pattern_of(*((n, m) if transposed else (m, n)), height, width, seed)
    mask = pattern.grid.element_mask(pattern.active)
    mask = mask.T if transposed else mask
    found = tile_mm(a, b, *pattern.gradient_rectangles(transposed))
    assert found.is_contiguous() and found.dtype == dtype
    assert not found[~mask].any()
    torch.testing.assert_close(
        found[mask].double(), (a.double() @ b.double())[mask],
        rtol=DTYPES[dtype], atol=DTYPES[dtype] * t**0.5,
    )  # fmt: skip


@settings(deadline=None)
@given(
    sides,
    sides,
    sides,
    tiles,
    tiles,
    dtypes,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "row", "whole", "number"]),
    st.integers(0, 99),
)
def test_a_masked_product_is_that_with_zeros(
    m: int, k: int, n: int, height: int, width: int, dtype: torch.dtype,
    a_turned: bool, transposed: bool, bias_of: str, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    weight = matrix(*((n, k) if transposed else (k, n)), dtype, False)
    a, b = matrix(m, k, dtype, a_turned), weight.T if transposed else weight
    shapes = {"row": (n,), "whole": (m, n), "number": (1,)}
    bias = torch.randn(shapes[bias_of]).to(dtype) if bias_of else None
    before = None if bias is None else bias.clone()
    pattern = pattern_of(*weight.shape, height, width, seed)
    mask = pattern.grid.element_mask(pattern.active)
    masked = (b * (mask.T if transposed else mask)).double()
    wanted = a.double() @ masked + (0 if bias is None else bias.double())
    found = masked_mm(a, b, *pattern.products(transposed), bias)
    assert found.is_contiguous() and found.dtype == dtype
    torch.testing.assert_close(
        found.double(), wanted, rtol=DTYPES[dtype], atol=DTYPES[dtype] * k**0.5
    )
    assert bias is None or torch.equal(bias, before)


@pytest.mark.parametrize("sparse_wins", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
def test_whichever_kernel_is_faster_the_result_is_the_same(
    monkeypatch: pytest.MonkeyPatch, sparse_wins: bool, transposed: bool
) -> None:
    answers = iter([0.5 if sparse_wins else 2.0])
    monkeypatch.setattr(crossover, "_efficiency", {})
    monkeypatch.setattr(crossover, "_ratio", lambda sparse, dense, device: next(answers))
    pattern = some_pattern()
    shape = (36, 24) if transposed else (24, 36)
    a, b = torch.randn(shape[0], 9).double(), torch.randn(9, shape[1]).double()
    mask = pattern.grid.element_mask(pattern.active)
    mask = mask.T if transposed else mask
    found = tile_products.tile_mm(a, b, pattern, transposed)
    torch.testing.assert_close(found, (a @ b) * mask, rtol=1e-12, atol=1e-12)
    with pytest.raises(StopIteration):
        next(answers)  # they were timed once
    again = tile_products.tile_mm(a, b, pattern, transposed)
    assert torch.equal(found, again)


def test_a_masked_product_without_a_kernel_is_dense_with_zeros() -> None:
    pattern = some_pattern()
    a, b = (torch.randn(shape).to(torch.complex128) for shape in ((9, 24), (24, 36)))
    found = tile_products.masked_mm(a, b, pattern, False)
    mask = pattern.grid.element_mask(pattern.active)
    torch.testing.assert_close(found, a @ (b * mask))


def test_a_full_mask_is_one_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "faster", None)  # not asked
    grid = Grid((16, 16), 4, 4)
    pattern = Pattern(grid, torch.ones(4, 4, dtype=torch.bool))
    a, b = torch.randn(16, 8), torch.randn(8, 16)
    assert torch.equal(tile_products.tile_mm(a, b, pattern, False), torch.mm(a, b))


@pytest.mark.parametrize("sparse_wins", [True, False])
@pytest.mark.parametrize("rows", [[(0, 3)], [(4, 9)], [(1, 2), (5, 8)]])
def test_convolutions_of_some_channels(
    monkeypatch: pytest.MonkeyPatch, sparse_wins: bool, rows: list[tuple[int, int]]
) -> None:
    ratio = 0.1 if sparse_wins else 9.0
    monkeypatch.setattr(crossover, "_efficiency", {})
    monkeypatch.setattr(crossover, "_ratio", lambda sparse, dense, device: ratio)
    weight = torch.randn(9, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(9, dtype=torch.float64)
    mask = torch.zeros(9, 1, 1, 1, dtype=torch.float64)
    for begin, end in rows:
        mask[begin:end] = 1
    masked = weight * mask
    wanted = torch.nn.functional.conv2d(x, masked, bias, (2, 1), (1, 0), (1, 2))
    gradient = torch.randn_like(wanted)
    of_weight, of_input = torch.autograd.grad(wanted, (masked, x), gradient)
    some = Convolution((2, 1), (1, 0), (1, 2), rows)
    values, before = weight.detach(), weight.detach().clone()
    torch.testing.assert_close(some.forward(x.detach(), values, bias), wanted.detach())
    found = some.weight_gradient(gradient, x.detach(), values)
    torch.testing.assert_close(found, of_weight * mask)
    torch.testing.assert_close(some.input_gradient(gradient, x.detach(), values), of_input)
    assert torch.equal(values, before)
