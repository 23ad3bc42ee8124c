"""The kernels on a real GPU, at the sizes with which they are launched, against torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from satcompile.updates.kernels import tile_mm_triton
from satcompile.updates.kernels.sweep_triton import CHUNK, sweep
from satcompile.updates.kernels.tile_mm_triton import (
    EXACT,
    HALF_PRECISION,
    TF32,
    UNALIGNED_SINGLE,
    Parts,
    masked_mm,
    tile_mm,
)
from tests.updates.kernels.reference import (
    ADAMW,
    AMSGRAD,
    CASES,
    Case,
    Pair,
    active_elements,
    blocks_of,
    eighths,
    listed_elements,
    tiles_of,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

# tests/stub_gpu runs these tests with Triton's interpreter.
compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted"
)

SHAPES = [(), (3,), (37, 41), (768, 512), (3 * CHUNK + 1160,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture
def never_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def _weights(dtype: torch.dtype, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    return [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sweep_equals_torch(case: Case, dtype: torch.dtype) -> None:
    pair = Pair(case, _weights(dtype, SHAPES))
    for _ in range(3):
        gradients = [torch.randn_like(weight) for weight in pair.weights]
        sweep(pair.updates(gradients))
        pair.step_theirs(gradients)
        pair.check()


def test_sweep_where_nothing_is_aligned() -> None:
    turned = torch.randn(300, 500, device="cuda").t()
    shifted = torch.randn(20001, device="cuda")[1:]
    pair = Pair(ADAMW, [turned, shifted])
    gradients = [torch.randn_like(weight) for weight in pair.weights]
    sweep(pair.updates(gradients))
    pair.step_theirs(gradients)
    pair.check()


@pytest.mark.parametrize(
    ("height", "width"), [(128, 128), (48, 48), (64, 5), (8, 144), (7, 1000)], ids=str
)
def test_sweep_keeps_frozen_tiles(height: int, width: int) -> None:
    shapes = [(512, 384), (300, 147), (128, 16, 3, 3)]
    tiles = [tiles_of(height, width, 0, 2, -1, device="cuda") for _ in shapes]
    pair = Pair(AMSGRAD, _weights(torch.float32, shapes))
    before = [weight.clone() for weight in pair.weights]
    active = [active_elements(*pairs).cuda() for pairs in zip(shapes, tiles, strict=True)]
    for _ in range(2):
        gradients = [torch.randn_like(weight) for weight in pair.weights]
        sweep(pair.updates(gradients, tiles))
        pair.step_theirs(gradients)
        pair.check(active)
    for mask, weight, was, moments in zip(active, pair.weights, before, pair.moments, strict=True):
        assert torch.equal(weight[~mask], was[~mask])
        assert not any(moment[~mask].any() for moment in moments)


def test_sweep_waits_for_nothing(never_waiting: None) -> None:
    pair = Pair(ADAMW, _weights(torch.float32, SHAPES))
    gradients = [torch.randn_like(weight) for weight in pair.weights]
    sweep(pair.updates(gradients), scale=torch.ones((), device="cuda"))


def _check_tile_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    tile: tuple[int, int],
    parts: Parts | None = None,
    *,
    transposed: bool = False,
    result: torch.dtype | None = None,
    tf32: bool = False,
) -> None:
    """Every third tile is active."""
    height, width = a.shape[0], b.shape[1]
    cut = (width, height) if transposed else (height, width)
    count = -(-cut[0] // tile[0]) * -(-cut[1] // tile[1])
    tiles = tiles_of(*tile, *range(0, count, 3), -1, device="cuda")
    active = active_elements(cut, tiles).cuda()
    active = active.t() if transposed else active
    out = torch.full((height, width), float("nan"), dtype=result or a.dtype, device="cuda")
    tile_mm(a, b, tiles, transposed, out, tf32=tf32, parts=parts)
    wanted = (a.double() @ b.double()) * active
    torch.testing.assert_close(out, wanted.to(out.dtype), rtol=0, atol=0)


def _factors(
    height: int, length: int, width: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Products and sums are exact, in TF32 too."""
    a, b = eighths(length, height, device="cuda"), eighths(length, width, device="cuda")
    return a.to(dtype).t(), b.to(dtype)


@pytest.mark.parametrize("transposed", [False, True], ids=["out", "out.T"])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize(
    ("tile", "shape"),
    [
        ((128, 128), (512, 300, 640)),
        ((128, 128), (500, 301, 259)),
        ((8, 576), (64, 200, 576)),
        ((48, 40), (300, 77, 333)),
    ],
    ids=str,
)
def test_tile_mm_equals_torch(
    tile: tuple[int, int], shape: tuple[int, int, int], dtype: torch.dtype, transposed: bool
) -> None:
    _check_tile_mm(*_factors(*shape, dtype), tile, transposed=transposed)


@pytest.mark.parametrize("parts", HALF_PRECISION, ids=str)
def test_tile_mm_however_it_is_cut(parts: Parts) -> None:
    _check_tile_mm(*_factors(512, 300, 640, torch.bfloat16), (128, 128), parts)
    _check_tile_mm(
        *_factors(512, 300, 640, torch.bfloat16), (128, 128), parts, result=torch.float32
    )


@pytest.mark.parametrize("parts", [*TF32, *EXACT, *UNALIGNED_SINGLE], ids=str)
@pytest.mark.parametrize("tf32", [True, False], ids=["tf32", "ieee"])
def test_tile_mm_in_float32(parts: Parts, tf32: bool) -> None:
    _check_tile_mm(*_factors(512, 300, 640, torch.float32), (128, 128), parts, tf32=tf32)
    _check_tile_mm(*_factors(501, 301, 259, torch.float32), (64, 64), parts, tf32=tf32)


def _check_masked_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    tile: tuple[int, int],
    parts: Parts | None = None,
    *,
    tf32: bool = False,
) -> None:
    """Every third block of rows of each block of columns counts, and of one of them none."""
    depth, width = tile
    down, across = -(-b.shape[0] // depth), -(-b.shape[1] // width)
    blocks = [list(range(column % 3, down, 3)) if column != 1 else [] for column in range(across)]
    counts = listed_elements(b.shape, blocks, *tile).cuda()
    b.masked_fill_(~counts, float("nan"))
    out = torch.full((len(a), b.shape[1]), float("nan"), dtype=a.dtype, device="cuda")
    masked_mm(a, b, *blocks_of(blocks, "cuda"), depth, width, out, tf32=tf32, parts=parts)
    wanted = a.double() @ b.double().masked_fill(~counts, 0.0)
    torch.testing.assert_close(out, wanted.to(out.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize(
    ("tile", "shape"),
    [
        ((128, 128), (300, 640, 512)),
        ((128, 128), (301, 500, 259)),
        ((48, 80), (77, 300, 333)),
        ((32, 16), (500, 640, 512)),
    ],
    ids=str,
)
def test_masked_mm_equals_torch(
    tile: tuple[int, int], shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    rows, length, width = shape
    a = eighths(rows, length, device="cuda").to(dtype)
    _check_masked_mm(a, eighths(length, width, device="cuda").to(dtype), tile)
    _check_masked_mm(a, eighths(width, length, device="cuda").to(dtype).t(), tile)


@pytest.mark.parametrize("parts", HALF_PRECISION, ids=str)
def test_masked_mm_however_it_is_cut(parts: Parts) -> None:
    a, b = (eighths(size, 640, device="cuda").bfloat16() for size in (300, 512))
    _check_masked_mm(a, b.t(), (128, 128), parts)


@pytest.mark.parametrize("parts", [*TF32, *EXACT, *UNALIGNED_SINGLE], ids=str)
@pytest.mark.parametrize("tf32", [True, False], ids=["tf32", "ieee"])
def test_masked_mm_in_float32(parts: Parts, tf32: bool) -> None:
    a, b = eighths(300, 640, device="cuda"), eighths(640, 512, device="cuda")
    _check_masked_mm(a, b, (128, 128), parts, tf32=tf32)


@compiled
def test_products_are_timed_once_and_wait_for_nothing_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tile_mm_triton, "_fastest", {})
    a, b = _factors(512, 256, 512, torch.bfloat16)
    tiles = tiles_of(128, 128, 0, 5, 10, device="cuda")
    out = torch.empty(512, 512, dtype=torch.bfloat16, device="cuda")
    tile_mm(a, b, tiles, False, out)
    timed = dict(tile_mm_triton._fastest)
    assert len(timed) == 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        tile_mm(a, b, tiles, False, out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tile_mm(a, b, tiles, False, out)
    assert tile_mm_triton._fastest == timed
