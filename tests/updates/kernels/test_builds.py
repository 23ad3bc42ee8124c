"""The kernels build for real GPUs, at the sizes with which they are launched: without a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from satcompile.updates.kernels.sweep_triton import sweep
from satcompile.updates.kernels.tile_mm_triton import (
    EXACT,
    HALF_PRECISION,
    TF32,
    UNALIGNED_HALF,
    UNALIGNED_SINGLE,
    Parts,
    masked_mm,
    tile_mm,
)
from satcompile.updates.optimizers.rules import Numbers, Rule, Tiles, Update
from tests.updates.kernels.builds import Build, building
from tests.updates.kernels.reference import blocks_of, tiles_of

pytestmark = [
    pytest.mark.slow,  # ptxas takes a second and more for each
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.parametrize("capability", [80, 90]),
]

ADAMW = Rule("adam", 2, decoupled=True)
AMSGRAD = Rule("adam", 3)
MOMENTUM = Rule("sgd", 1)
SQUARE = (128, 128)
SINGLE, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64


def _update(
    rule: Rule,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    moment: torch.dtype | None = None,
    tiles: Tiles | None = None,
) -> Update:
    weight, *moments = (
        torch.zeros(shape, dtype=dtype if index == 0 else moment or dtype)
        for index in range(1 + rule.num_moments)
    )
    numbers = Numbers(1e-3, 0.1, 0.9, 0.95, 1e-8)
    gradient = torch.zeros(shape, dtype=dtype)
    step = torch.zeros(())
    return Update(rule, numbers, weight, gradient, tuple(moments), step, tiles=tiles)


def _of(builds: list[Build]) -> Build:
    (build,) = builds
    return build


@pytest.mark.parametrize(
    ("rule", "dtype", "moment"),
    [
        (ADAMW, SINGLE, SINGLE),
        (ADAMW, HALF, HALF),
        (AMSGRAD, HALF, SINGLE),
        (MOMENTUM, SINGLE, SINGLE),
    ],
    ids=str,
)
def test_sweep(
    rule: Rule,
    dtype: torch.dtype,
    moment: torch.dtype,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scale = torch.ones(())
    with building(monkeypatch, capability, tmp_path) as builds:
        sweep([_update(rule, (128, 128), dtype, moment) for _ in range(3)], scale)
    build = _of(builds)
    assert build.spilled_bytes == 0
    assert build.registers <= 128  # four programs on a processor, or more
    # A vector for each of weight, gradient and moments, and for each that is written.
    assert build.ptx.count("ld.global.v4") >= 2 + rule.num_moments
    assert build.ptx.count("st.global.v4") >= 1 + rule.num_moments


def test_sweep_in_double_precision(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with building(monkeypatch, capability, tmp_path) as builds:
        sweep([_update(AMSGRAD, (128, 128), DOUBLE)])
    build = _of(builds)
    assert build.spilled_bytes == 0
    assert "ld.global.v2.b64" in build.ptx
    assert "sqrt.rn.f64" in build.ptx


def _tile_mm(
    a: torch.Tensor, b: torch.Tensor, parts: Parts, tile: tuple[int, int] = SQUARE, **how: bool
) -> None:
    out = torch.zeros_like(a, memory_format=torch.contiguous_format)
    tile_mm(a, b, tiles_of(*tile, 0, 3, -1), False, out, parts=parts, **how)


def _masked_mm(
    a: torch.Tensor, b: torch.Tensor, parts: Parts, tile: tuple[int, int] = SQUARE, **how: bool
) -> None:
    starts, blocks = blocks_of([[0, 1], *[[]] * (-(-b.shape[1] // tile[1]) - 1)])
    out = torch.zeros_like(a, memory_format=torch.contiguous_format)
    masked_mm(a, b, starts, blocks, *tile, out, parts=parts, **how)


def _factors(size: int, dtype: torch.dtype) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """In every order of memory; a weight's gradient first, then an input's, an output, and none."""
    for turned in itertools.product((True, False), (False, True)):
        a, b = (torch.zeros(size, size, dtype=dtype) for _ in range(2))
        yield (a.t() if turned[0] else a), (b.t() if turned[1] else b)


PRODUCTS = pytest.mark.parametrize("product", [_tile_mm, _masked_mm], ids=["tile", "masked"])


@PRODUCTS
def test_products_of_tiles_in_bfloat16(
    product: Callable[..., None], capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with building(monkeypatch, capability, tmp_path) as builds:
        for factors in _factors(512, HALF):
            product(*factors, HALF_PRECISION[0])
        for parts in HALF_PRECISION[1:]:
            product(*factors, parts)
    for build in builds:
        assert build.spilled_bytes == 0
        assert ("wgmma" if capability == 90 else "mma.sync") in build.ptx
        assert "cp.async.cg" in build.ptx  # both factors are fetched ahead, 16 bytes at once
    if capability == 90:
        # Two programs on a processor, whichever factor is transposed.
        assert all(build.registers <= 128 for build in builds[:4])


@PRODUCTS
@pytest.mark.parametrize(
    ("tf32", "candidates"), [(True, TF32), (False, EXACT)], ids=["tf32", "ieee"]
)
def test_products_of_tiles_in_float32(
    tf32: bool,
    candidates: tuple[Parts, ...],
    product: Callable[..., None],
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with building(monkeypatch, capability, tmp_path) as builds:
        for factors in _factors(512, SINGLE):
            product(*factors, candidates[0], tf32=tf32)
        for parts in candidates[1:]:
            product(*factors, parts, tf32=tf32)
    for build in builds:
        assert build.spilled_bytes == 0
        assert ("wgmma" in build.ptx or "mma.sync" in build.ptx) == tf32


@PRODUCTS
def test_products_of_odd_sizes_do_not_spill(
    product: Callable[..., None], capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with building(monkeypatch, capability, tmp_path) as builds:
        for factors in _factors(511, HALF):
            product(*factors, UNALIGNED_HALF[0])
        for factors in _factors(511, SINGLE):
            product(*factors, UNALIGNED_SINGLE[0])
            product(*factors, UNALIGNED_SINGLE[0], tf32=True)
    assert not any(build.spilled_bytes for build in builds)


@pytest.mark.parametrize("tile", [(48, 48), (8, 576), (24, 40)], ids=str)
def test_tiles_that_parts_do_not_divide_are_fetched_ahead_too(
    tile: tuple[int, int], capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, single = (next(_factors(576, dtype)) for dtype in (HALF, SINGLE))
    with building(monkeypatch, capability, tmp_path) as builds:
        for parts in HALF_PRECISION:
            _tile_mm(*half, parts, tile)
        for parts in TF32:
            _tile_mm(*single, parts, tile, tf32=True)
        for parts in EXACT:
            _tile_mm(*single, parts, tile)
        if not any(side % 16 for side in tile):
            _masked_mm(*half, HALF_PRECISION[0], tile)
    for build in builds:
        assert build.spilled_bytes == 0
        assert "cp.async" in build.ptx
