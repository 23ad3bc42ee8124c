"""The sweep on the CPU: ``sweep.cpp``, compiled once per rule and dtype by Inductor's compiler.

Weights, moments and step counters change in one call into C++, which no Python signal can
interrupt half-way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch

from satcompile.torch_compat.inductor import load_cpp
from satcompile.updates.optimizers.rules import Rule, Update

_PIECE = 1 << 14  # elements for a thread at a time
_BITS = {torch.float64: 64, torch.float32: 32, torch.bfloat16: 16, torch.float16: 15}

_PARAMETER = np.dtype(
    [
        ("weight", "u8"), ("gradient", "u8"), ("moments", "u8", 3), ("step", "u8"),
        ("numbers", "f8", 5), ("is_first", "i8"),
    ]
)  # fmt: skip


def sweep(updates: Sequence[Update], scale: torch.Tensor | None = None) -> None:
    """Apply ``updates`` of one rule and dtype; every gradient is multiplied by ``scale``."""
    first = updates[0]
    parameters = np.array([_row(update) for update in updates], dtype=_PARAMETER)
    by_parameter = [_pieces(update) for update in updates]
    pieces = np.concatenate(by_parameter)
    pieces[:, 0] = np.repeat(np.arange(len(updates)), [len(each) for each in by_parameter])
    _library(first.rule, first.parameter.dtype).sweep(
        ctypes.c_void_p(parameters.ctypes.data),
        ctypes.c_int64(len(parameters)),
        ctypes.c_void_p(pieces.ctypes.data),
        ctypes.c_int64(len(pieces)),
        ctypes.c_double(1.0 if scale is None else float(scale)),
        ctypes.c_int(torch.get_num_threads()),
    )


def _row(update: Update) -> tuple[Any, ...]:
    numbers = update.numbers
    moments = [moment.data_ptr() for moment in update.moments]
    return (
        update.parameter.data_ptr(),
        update.gradient.data_ptr(),
        moments + [0] * (3 - len(moments)),
        0 if update.step is None else update.step.data_ptr(),
        (numbers.lr, numbers.weight_decay, numbers.beta1, numbers.beta2, numbers.eps),
        update.is_first,
    )


def _pieces(update: Update) -> np.ndarray:
    """Pieces of work for a thread: rows of (parameter, begin, rows, columns, stride)."""
    if update.tiles is None:
        return _pieces_of_whole(update.parameter.numel())
    tiles, height = update.tiles, update.parameter.shape[0]
    width = update.parameter.numel() // height
    numbers = tiles.numbers.numpy()
    row, column = np.divmod(numbers[numbers >= 0].astype(np.int64), -(-width // tiles.width))
    row, column = row * tiles.height, column * tiles.width
    rows, columns = np.minimum(tiles.height, height - row), np.minimum(tiles.width, width - column)
    if tiles.width >= width:  # whole rows follow each other, and may be too short for vectors
        rows, columns = np.ones_like(rows), rows * columns
    return np.stack(
        [np.zeros_like(row), row * width + column, rows, columns, np.full_like(row, width)], axis=1
    )


@lru_cache(maxsize=1024)
def _pieces_of_whole(size: int) -> np.ndarray:
    begin = np.arange(0, size, _PIECE, dtype=np.int64)
    columns = np.minimum(_PIECE, size - begin)
    nothing = np.zeros_like(begin)
    return np.stack([nothing, begin, nothing + 1, columns, nothing], axis=1)


@cache
def _library(rule: Rule, dtype: torch.dtype) -> ctypes.CDLL:
    defined = {
        "SAT_BITS": _BITS[dtype],
        "SAT_ADAM": int(rule.formula == "adam"),
        "SAT_MOMENTS": rule.num_moments,
        "SAT_DECOUPLED": int(rule.decoupled),
        "SAT_NESTEROV": int(rule.nesterov),
        "SAT_MAXIMIZE": int(rule.maximize),
    }
    head = "\n".join(f"#define {name} {value}" for name, value in defined.items())
    return load_cpp(f"{head}\n{files(__package__).joinpath('sweep.cpp').read_text()}")
