"""Products without frozen tiles against torch; run by ``test_interpreted.py``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from satcompile.updates.kernels.tile_mm_triton import Parts, masked_mm, tile_mm
from tests.updates.kernels.interpreted.products import make_bfloat16_exact
from tests.updates.kernels.reference import (
    active_elements,
    blocks_of,
    eighths,
    listed_elements,
    tiles_of,
)

TINY = Parts(rows=16, columns=32, depth=16, num_warps=1, num_stages=1)
NAN = float("nan")


@pytest.fixture(autouse=True)
def exact_products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    make_bfloat16_exact(monkeypatch)


def _assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Sums are exact; only the rounding of the result is left, and the interpreter cuts it off."""
    relative = 0.0 if found.dtype == torch.float32 else torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), wanted.double(), rtol=relative, atol=0)


def _check_tile_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    tiles: Sequence[int],
    *,
    transposed: bool = False,
    out: torch.Tensor | None = None,
    parts: Parts | None = TINY,
    tf32: bool = False,
) -> None:
    """What is not a number before leaves nothing behind."""
    if out is None:
        out = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype)
    out.fill_(NAN)
    listed = tiles_of(*tiles)
    tile_mm(a, b, listed, transposed, out, tf32=tf32, parts=parts)
    cut = out.t() if transposed else out
    active = active_elements(cut.shape, listed)
    active = active.t() if transposed else active
    _assert_close(out, (a.double() @ b.double()) * active)
    assert torch.equal(out[~active], torch.zeros_like(out[~active]))


@pytest.mark.parametrize("transposed", [False, True], ids=["out", "out.T"])
@pytest.mark.parametrize(
    "tiles",
    [
        (32, 32, 0, -1, 3, 5, -1),
        (16, 64, 1, 6, 9, -1),
        (48, 16, 10, 0, 2),
        (8, 96, 8, 0, -1, 3),  # whole rows, lower than what tensor cores multiply
        (24, 40, 2, 7),
        (128, 128, 0),
        (1, 1, 70, 3, 5),
    ],
    ids=str,
)
def test_active_tiles_equal_torch_and_others_are_zero(
    tiles: tuple[int, ...], transposed: bool
) -> None:
    a, b = eighths(37, 70).t(), eighths(37, 83)
    _check_tile_mm(a, b, tiles, transposed=transposed)


@pytest.mark.parametrize(
    ("factors", "result", "tf32"),
    [
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.float16, torch.float16, False),
        (torch.bfloat16, torch.float32, False),
        (torch.float32, torch.bfloat16, False),
    ],
    ids=str,
)
def test_every_dtype_is_rounded_once(factors: torch.dtype, result: torch.dtype, tf32: bool) -> None:
    a, b = eighths(70, 37).to(factors), eighths(37, 83).to(factors)
    out = torch.empty(70, 83, dtype=result)
    _check_tile_mm(a, b, (32, 32, 0, 4, 8), out=out, tf32=tf32)


def _results(height: int, width: int) -> Iterator[torch.Tensor]:
    yield torch.empty(width, height).t()
    yield torch.empty(height, 2 * width)[:, width:]  # gaps between rows
    yield torch.empty(width, 2 * height)[:, :height].t()


@pytest.mark.parametrize("transposed", [False, True], ids=["out", "out.T"])
@pytest.mark.parametrize("index", range(3))
def test_results_may_lie_by_columns_or_with_gaps(index: int, transposed: bool) -> None:
    out = list(_results(40, 52))[index]
    a, b = eighths(40, 9), eighths(18, 52)[::2]
    _check_tile_mm(a, b, (16, 16, 1, 6), out=out, transposed=transposed)


def test_what_lies_between_the_rows_is_not_touched() -> None:
    memory = torch.full((40, 100), 7.0)
    _check_tile_mm(eighths(40, 9), eighths(9, 52), (16, 16, 1, 6), out=memory[:, 20:72])
    assert (memory[:, :20] == 7).all() and (memory[:, 72:] == 7).all()


@pytest.mark.parametrize("tiles", [(16, 16), (16, 16, -1, -1)], ids=["empty", "none"])
def test_no_tile_is_all_zero(tiles: tuple[int, ...]) -> None:
    _check_tile_mm(eighths(20, 9), eighths(9, 40), tiles)


def test_nothing_to_compute() -> None:
    _check_tile_mm(eighths(5, 0), eighths(0, 7), (16, 16, 0))
    for height, width in [(0, 7), (5, 0)]:
        a, b, out = eighths(height, 3), eighths(3, width), torch.empty(height, width)
        tile_mm(a, b, tiles_of(16, 16, 0), False, out, parts=TINY)


def test_the_first_candidate_is_taken_without_a_gpu() -> None:
    _check_tile_mm(eighths(33, 9), eighths(9, 40), (32, 32, 3), parts=None)


def _check_masked_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    blocks: Sequence[Sequence[int]],
    depth: int,
    width: int,
    *,
    result: torch.dtype | None = None,
    parts: Parts | None = TINY,
    tf32: bool = False,
) -> None:
    """Tiles that do not count are not read: they hold no numbers."""
    counts = listed_elements(b.shape, blocks, depth, width)
    b.masked_fill_(~counts, NAN)
    out = torch.full((a.shape[0], b.shape[1]), NAN, dtype=result or a.dtype)
    masked_mm(a, b, *blocks_of(blocks), depth, width, out, tf32=tf32, parts=parts)
    _assert_close(out, a.double() @ b.double().masked_fill(~counts, 0.0))


LISTS = [[2, 0], [], [1, 2]]  # of 83 rows and 70 columns, in tiles of 32


@pytest.mark.parametrize(
    ("depth", "width", "blocks"),
    [
        (32, 32, LISTS),
        (16, 48, [[5, 1, 3], [0]]),
        (48, 16, [[1], [0], [], [0, 1], [1]]),
        (96, 80, [[0]]),  # one tile, larger than the matrix
        (16, 16, [[], [], [], [], []]),
    ],
    ids=str,
)
def test_listed_tiles_equal_torch(depth: int, width: int, blocks: list[list[int]]) -> None:
    _check_masked_mm(eighths(37, 83), eighths(83, 70), blocks, depth, width)


@pytest.mark.parametrize(
    ("factors", "result", "tf32"),
    [
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.float16, torch.float16, False),
        (torch.bfloat16, torch.float32, False),
    ],
    ids=str,
)
def test_listed_tiles_in_every_dtype(factors: torch.dtype, result: torch.dtype, tf32: bool) -> None:
    a, b = eighths(37, 83).to(factors), eighths(83, 70).to(factors)
    _check_masked_mm(a, b, LISTS, 32, 32, result=result, tf32=tf32)


def test_strides_of_the_factors_do_not_matter() -> None:
    _check_masked_mm(eighths(83, 37).t(), eighths(70, 83).t(), LISTS, 32, 32)
    _check_masked_mm(eighths(37, 166)[:, ::2], eighths(83, 140)[:, ::2], LISTS, 32, 32)
    _check_masked_mm(torch.tensor(0.5).expand(37, 83), eighths(83, 70), LISTS, 32, 32)


def test_more_rows_than_are_computed_together() -> None:
    _check_masked_mm(eighths(9 * 16 + 1, 83), eighths(83, 70), LISTS, 32, 32)


def test_deep_parts_are_cut_to_the_tile() -> None:
    _check_masked_mm(eighths(20, 83), eighths(83, 70), LISTS, 32, 32, parts=None)
    deep = replace(TINY, depth=64)
    _check_masked_mm(eighths(20, 83), eighths(83, 20), [[1]], 48, 32, parts=deep)


def test_nothing_to_multiply() -> None:
    _check_masked_mm(eighths(0, 83), eighths(83, 70), LISTS, 32, 32)
    _check_masked_mm(eighths(5, 83), eighths(83, 0), [], 32, 32)
    _check_masked_mm(eighths(5, 0), eighths(0, 20), [[], []], 16, 16)


def test_blocks_beyond_the_last_start_are_not_looked_at() -> None:
    a, b, out = eighths(5, 40), eighths(40, 20), torch.empty(5, 20)
    starts, blocks = blocks_of([[1], [0]])
    padded = torch.cat([blocks, torch.full((3,), -1, dtype=torch.int32)])
    masked_mm(a, b, starts, padded, 16, 16, out, parts=TINY)
    counts = listed_elements(b.shape, [[1], [0]], 16, 16)
    assert torch.equal(out, a @ (b * counts))


def test_autograd_notices_a_result_that_changed() -> None:
    a, out = torch.ones(16, 16), torch.ones(16, 16)
    weight = torch.ones(16, 16, requires_grad=True)
    loss = (weight * out).sum()
    masked_mm(a, a, *blocks_of([[0]]), 16, 16, out, parts=TINY)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
