"""Matrix products on the CPU whose time scales with the tiles that count (``tile_mm.cpp``).

Adjacent tiles are one product of torch's own library. Each product runs on one thread, several at a
time. For 128 x 128 tiles at 2048 tokens, this takes about three quarters of the time of products
that each run on all threads.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch

from satcompile.torch_compat.inductor import load_cpp

_DTYPES = {
    torch.float32: 6,
    torch.float64: 7,
    torch.bfloat16: 15,
    torch.float16: 5,
}  # c10's numbers
_MATRIX = np.dtype(
    [
        ("data", "u8"),
        ("rows", "i8"),
        ("columns", "i8"),
        ("row_stride", "i8"),
        ("column_stride", "i8"),
    ]
)
_CHUNK = 512  # rows of a product computed at a time


def tile_mm(
    a: torch.Tensor, b: torch.Tensor, active: np.ndarray, frozen: np.ndarray
) -> torch.Tensor:
    """``a @ b`` in some rectangles of it, 0 in the others.

    Args:
        a, b: (M, T) and (T, N), of any strides, of one floating dtype.
        active, frozen: int64, (count, 4): top, bottom, left and right of rectangles of the product;
            together they cover it, and none overlap.

    Returns:
        (M, N), contiguous.
    """
    out = a.new_empty(a.shape[0], b.shape[1])
    if out.numel() == 0 or a.shape[1] == 0:
        return out.zero_()
    failed = _library().tile_mm(
        _matrix(a), _matrix(b), _matrix(out),
        _pointer(active), ctypes.c_int64(len(active)), _pointer(frozen), ctypes.c_int64(len(frozen)),
        *_common(a),
    )  # fmt: skip
    _check(failed, a, b)
    return out


def masked_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    groups: np.ndarray,
    runs: np.ndarray,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``a @ b``, plus ``bias``, where only parts of ``b`` count, as if it were 0 elsewhere.

    Args:
        a, b: (M, K) and (K, N), of any strides, of one floating dtype.
        groups: int64, (count, 4): left, right, first, last. For the product's columns from left to
            right, the rows of ``b`` in the runs from first to last count. Groups cover the product.
        runs: int64, (count, 2): begin and end.
        bias: a tensor that can be added to (M, N).

    Returns:
        (M, N), contiguous.
    """
    shape = (a.shape[0], b.shape[1])
    if a.dtype in (torch.bfloat16, torch.float16):
        return _gathered(a, b, groups, runs, bias)  # each addition to the result would round it
    out = a.new_empty(shape) if bias is None else bias.expand(shape).contiguous()
    if bias is not None and out.data_ptr() == bias.data_ptr():
        out = out.clone()
    if out.numel() == 0 or a.shape[1] == 0:
        return out.zero_() if bias is None else out
    failed = _library().masked_mm(
        _matrix(a), _matrix(b), _matrix(out),
        _pointer(groups), ctypes.c_int64(len(groups)), _pointer(runs),
        ctypes.c_int64(_CHUNK), ctypes.c_int(bias is not None), *_common(a),
    )  # fmt: skip
    _check(failed, a, b)
    return out


def _gathered(
    a: torch.Tensor,
    b: torch.Tensor,
    groups: np.ndarray,
    runs: np.ndarray,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """One product for each group, of the parts that count, put together."""
    out = a.new_empty(a.shape[0], b.shape[1])
    for left, right, first, last in groups.tolist():
        part = out[:, left:right]
        if first == last:
            part.zero_() if bias is None else part.copy_(_columns(bias, left, right))
            continue
        spans = runs[first:last].tolist()
        some_a = torch.cat([a[:, begin:end] for begin, end in spans], 1)
        some_b = torch.cat([b[begin:end, left:right] for begin, end in spans], 0)
        if bias is None:
            torch.mm(some_a, some_b, out=part)
        else:
            torch.addmm(_columns(bias, left, right), some_a, some_b, out=part)
    return out


def _columns(bias: torch.Tensor, left: int, right: int) -> torch.Tensor:
    return bias if bias.dim() == 0 or bias.shape[-1] == 1 else bias[..., left:right]


def _matrix(tensor: torch.Tensor) -> Any:
    row = (tensor.data_ptr(), *tensor.shape, *tensor.stride())
    return _pointer(np.array([row], dtype=_MATRIX))


def _pointer(array: np.ndarray) -> Any:
    found = ctypes.c_void_p(array.ctypes.data)
    found.array = array  # type: ignore[attr-defined]  # lives as long as its address is used
    return found


def _common(a: torch.Tensor) -> tuple[Any, ...]:
    return (
        ctypes.c_int32(_DTYPES[a.dtype]),
        ctypes.c_int64(a.itemsize),
        ctypes.c_int(torch.get_num_threads()),
    )


def _check(failed: int, a: torch.Tensor, b: torch.Tensor) -> None:
    if failed:
        raise RuntimeError(
            f"{failed} of the products of {tuple(a.shape)} and {tuple(b.shape)} ({a.dtype}) failed"
        )


@cache
def _library() -> Any:
    library = load_cpp(files(__package__).joinpath("tile_mm.cpp").read_text())
    library.tile_mm.restype = library.masked_mm.restype = ctypes.c_int64
    return library
