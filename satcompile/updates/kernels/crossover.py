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
        _efficiency[key] = _ratio(sparse, dense, a.device) / share
    return sparse() if _efficiency[key] * share < 1 else dense()


def _ratio(
    sparse: Callable[[], torch.Tensor], dense: Callable[[], torch.Tensor], device: torch.device
) -> float:
    """The ratio of the shortest times, taken in alternation, after calls that may compile something."""
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
