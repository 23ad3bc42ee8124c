"""Where a sparse kernel would be slower than a dense one: measured once for each kind of call.

What is measured is how many times the dense kernel's time per tile the sparse one takes. With few
tiles it wins all the same, with many it does not; between masks the same answer serves. It is kept
for the process, so that equal calls are computed in the same way to the last bit.
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
    """The result of whichever is faster at this share of active tiles."""
    key = (kind, a.shape, b.shape, a.dtype, a.device, torch.get_num_threads())
    if key not in _efficiency:
        sparse_s, dense_s = _seconds(sparse, a.device), _seconds(dense, a.device)
        _efficiency[key] = sparse_s / dense_s / share
    return sparse() if _efficiency[key] * share < 1 else dense()


def _seconds(call: Callable[[], torch.Tensor], device: torch.device) -> float:
    """The shortest of a few calls, after one that may compile."""
    call()
    times = []
    for _ in range(_REPEATS):
        _synchronize(device)
        started = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
