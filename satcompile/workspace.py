"""Memory that an operator takes and returns inside one call, measured by calling it.

A convolution reorders its weight and asks its library for scratch space, an attention's backward
sums in float32; how much depends on shapes, libraries and the machine, and no schema says so. Each
distinct call is made once on zeros, on the device for which it is compiled, while the allocator's
events are recorded, and remembered for the process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from satcompile.solver.simulator import replay
from satcompile.torch_compat import profiler_is_active, without_tracing

log = logging.getLogger("satcompile")

_measured: dict[Any, int] = {}


def workspace_bytes(
    op: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    device_type: str = "cpu",
) -> int:
    """Peak bytes of one call beyond its results; on a GPU as its allocator gives them out.

    Args:
        op: a functional operator.
        args, kwargs: as it is called, tensors given as ``(shape, strides, dtype)`` wrapped in
            ``Zeros``.

    Returns:
        0 while the user's own profiler runs: two cannot record at once.
    """
    how = torch.get_num_threads() if device_type == "cpu" else torch.backends.cudnn.benchmark
    is_exact = torch.are_deterministic_algorithms_enabled()  # an attention's takes less then
    key = (str(op), repr(args), repr(sorted(kwargs.items())), device_type, how, is_exact)
    if key not in _measured:
        if profiler_is_active():
            log.warning("a profiler is running: workspaces of operators are not counted")
            return 0
        _measured[key] = _measure(op, args, kwargs, device_type)
    return _measured[key]


class Zeros:
    """A tensor to be made of zeros when it is needed."""

    def __init__(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> None:
        self.shape, self.strides, self.dtype = tuple(shape), tuple(strides), dtype

    def __repr__(self) -> str:
        return f"Zeros({self.shape}, {self.strides}, {self.dtype})"

    def make(self, device_type: str = "cpu") -> torch.Tensor:
        made = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device_type)
        return made.zero_()


def _measure(
    op: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], device_type: str
) -> int:
    from satcompile.measure import allocator_events

    drawn_from = [] if device_type == "cpu" else [torch.cuda.current_device()]
    # A random operator draws from the user's generator: its state is put back.
    with torch.no_grad(), without_tracing(), torch.random.fork_rng(devices=drawn_from):
        made_args, made_kwargs = pytree.tree_map(
            lambda value: value.make(device_type) if isinstance(value, Zeros) else value,
            (tuple(args), dict(kwargs)),
            is_leaf=lambda value: isinstance(value, Zeros),
        )
        op(*made_args, **made_kwargs)  # a first call may set up caches that later ones lack
        held: list[Any] = []
        events = allocator_events(lambda: held.append(op(*made_args, **made_kwargs)), device_type)
    profile = replay(events)
    return max(0, profile.peak_bytes - profile.end_bytes)
