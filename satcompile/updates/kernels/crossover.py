"""Whether a sparse kernel is faster than a dense one: measured once for each kind of call.

The measurement gives the ratio of the sparse kernel's time per tile to the dense kernel's. Even
with a ratio above 1 the sparse kernel wins with few tiles, but not with many. One ratio serves all
masks. It is kept for the process, so that equal calls are computed in the same way to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

_REPEATS = 3
_efficiency: dict[Any, float] = {}


def faster(
    kind: Any,
    a: torch.Tensor,
    b: torch.Tensor,
    share: float,
    sparse: Callable[[], torch.Tensor],
    dense: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """The result of the kernel that is faster at this share of active tiles."""
    key = (kind, a.shape, b.shape, a.dtype, a.device, torch.get_num_threads())
    if key not in _efficiency:
        _efficiency[key] = _ratio(sparse, dense, a.device) / share
    return sparse() if _efficiency[key] * share < 1 else dense()


def _ratio(
    sparse: Callable[[], torch.Tensor], dense: Callable[[], torch.Tensor], device: torch.device
) -> float:
    """The ratio of the shortest times, in alternation, after first calls that may compile."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS + 1):
        for call, taken in zip((sparse, dense), times, strict=True):
            _synchronize(device)
            started = time.perf_counter()
            call()
            _synchronize(device)
            taken.append(time.perf_counter() - started)
    return min(times[0][1:]) / min(times[1][1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
