"""Memory that an operator takes and returns inside one call, measured by calling it.

A convolution reorders its weight and asks its library for scratch space; how much depends on
shapes, instruction set and threads, and no schema says so. Each distinct call is made once on
zeros, while the allocator's events are recorded, and remembered for the process.
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


def workspace_bytes(op: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Peak bytes of one call beyond its results, on the CPU.

    Args:
        op: a functional operator.
        args, kwargs: as it is called, tensors given as ``(shape, strides, dtype)`` wrapped in
            ``Zeros``.

    Returns:
        0 while the user's own profiler runs: two cannot record at once.
    """
    key = (str(op), repr(args), repr(sorted(kwargs.items())), torch.get_num_threads())
    if key not in _measured:
        if profiler_is_active():
            log.warning("a profiler is running: workspaces of operators are not counted")
            return 0
        _measured[key] = _measure(op, args, kwargs)
    return _measured[key]


class Zeros:
    """A tensor to be made of zeros when it is needed."""

    def __init__(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> None:
        self.shape, self.strides, self.dtype = tuple(shape), tuple(strides), dtype

    def __repr__(self) -> str:
        return f"Zeros({self.shape}, {self.strides}, {self.dtype})"

    def make(self) -> torch.Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype).zero_()


def _measure(op: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    from satcompile.measure import cpu_events

    # A random operator draws from the user's generator: its state is put back.
    with torch.no_grad(), without_tracing(), torch.random.fork_rng(devices=[]):
        made_args, made_kwargs = pytree.tree_map(
            lambda value: value.make() if isinstance(value, Zeros) else value,
            (tuple(args), dict(kwargs)),
            is_leaf=lambda value: isinstance(value, Zeros),
        )
        op(*made_args, **made_kwargs)  # a first call may set up caches that later ones lack
        held: list[Any] = []
        events = cpu_events(lambda: held.append(op(*made_args, **made_kwargs)))
    profile = replay(events)
    return max(0, profile.peak_bytes - profile.end_bytes)
