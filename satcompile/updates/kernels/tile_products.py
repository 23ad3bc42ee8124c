"""Matrix products that skip tiles: which kernel computes them, and when a dense one is faster."""

from __future__ import annotations

import torch

from satcompile.updates.kernels import crossover, tile_mm_cpu
from satcompile.updates.sparsity.pattern import Pattern

_PARTS = 16  # on a GPU, sides of the second factor's tiles are multiples, for tensor cores
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tile_mm(a: torch.Tensor, b: torch.Tensor, pattern: Pattern, transposed: bool) -> torch.Tensor:
    """``a @ b`` in the tiles of a pattern, 0 elsewhere.

    Args:
        a, b: (M, T) and (T, N), of any strides.
        pattern: of (M, N), or with ``transposed`` of (N, M).

    Returns:
        (M, N), contiguous.
    """
    if pattern.is_full or not _has_kernel(a, b):
        return _dense(a, b, pattern, transposed)

    def sparse() -> torch.Tensor:
        if not _is_on_gpu(a):
            return tile_mm_cpu.tile_mm(a, b, *pattern.gradient_rectangles(transposed))
        from satcompile.updates.kernels import tile_mm_triton

        out = a.new_empty(a.shape[0], b.shape[1])
        tile_mm_triton.tile_mm(a, b, pattern.tiles(a.device), transposed, out, tf32=_allows_tf32(a))
        return out

    def dense() -> torch.Tensor:
        return _dense(a, b, pattern, transposed)

    return crossover.faster(("tile_mm", transposed), a, b, pattern.share, sparse, dense)


def masked_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    pattern: Pattern,
    transposed: bool,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``a @ b``, plus ``bias``, as if ``b`` were 0 outside the tiles of a pattern.

    Args:
        a, b: (M, K) and (K, N), of any strides.
        pattern: of (K, N), or with ``transposed`` of (N, K).
        bias: a tensor that can be added to (M, N).

    Returns:
        (M, N), contiguous.
    """

    def dense() -> torch.Tensor:
        masked = b.clone()
        _clear(masked.T if transposed else masked, pattern)
        return torch.mm(a, masked) if bias is None else torch.addmm(bias, a, masked)

    grid = pattern.grid
    depth, width = (grid.width, grid.height) if transposed else (grid.height, grid.width)
    if not _has_kernel(a, b) or (_is_on_gpu(a) and (depth % _PARTS or width % _PARTS)):
        return dense()

    def sparse() -> torch.Tensor:
        if not _is_on_gpu(a):
            return tile_mm_cpu.masked_mm(a, b, *pattern.products(transposed), bias)
        from satcompile.updates.kernels import tile_mm_triton

        out = a.new_empty(a.shape[0], b.shape[1])
        tile_mm_triton.masked_mm(
            a, b, *pattern.lists(a.device, transposed), depth, width, out, tf32=_allows_tf32(a)
        )
        return out if bias is None else out.add_(bias)

    return crossover.faster(("masked_mm", transposed), a, b, pattern.share, sparse, dense)


def _dense(a: torch.Tensor, b: torch.Tensor, pattern: Pattern, transposed: bool) -> torch.Tensor:
    product = torch.mm(a, b)
    _clear(product.T if transposed else product, pattern)
    return product


def _clear(upright: torch.Tensor, pattern: Pattern) -> None:
    for top, bottom, left, right in pattern.frozen_rectangles:
        upright[top:bottom, left:right].zero_()


def _has_kernel(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype not in _DTYPES or a.dtype != b.dtype or a.device != b.device:
        return False
    return a.dtype != torch.float64 if _is_on_gpu(a) else a.device.type == "cpu"


def _is_on_gpu(a: torch.Tensor) -> bool:
    return a.device.type == "cuda"


def _allows_tf32(a: torch.Tensor) -> bool:
    return _is_on_gpu(a) and bool(torch.backends.cuda.matmul.allow_tf32)
