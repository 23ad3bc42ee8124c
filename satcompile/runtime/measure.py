"""Measured peaks: what a call really allocates, to the byte.

On the CPU the profiler reports every allocation and free of torch's allocator; on CUDA the
caching allocator keeps the counters itself. Neither is an estimate.

A GPU's allocator has three numbers. *Requested* is what tensors ask for, to the byte; plans know
this number, and ``measure_peak`` returns it. *Allocated* is what tensors get: multiples of 512
bytes, and the rest of a cached block if it is too small to be split off. *Reserved* is what the
allocator took from the driver, gaps between blocks included.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from satcompile.errors import UnsupportedError
from satcompile.planner.allocator import allocator_events
from satcompile.runtime.registry import Measured, observing_steps
from satcompile.solver.base.simulator import replay
from satcompile.torch_compat.tracing import profiler_is_active


def measure_peak(fn: Callable[[], Any], device: torch.device | str | None = None) -> int:
    """Peak bytes that ``fn()`` allocates beyond what was alive when it began.

    Args:
        fn: function to measure; it runs once. Run it once before (a first call compiles, and
            compilation allocates, too). For a training step let it do forward and backward, keep
            its output bound until it returns, and clear no gradients inside.
        device: device to measure; by default CUDA if it is available and in use, else the CPU.

    Returns:
        Bytes; on CUDA, requested bytes. Compare ``resident_bytes + measure_peak(step)`` with a
        report's ``predicted_peak_bytes``. Reports of the graphs that ran inside ``fn`` show this
        figure from then on, and on CUDA the device's peaks of memory allocated and reserved while
        ``fn`` ran.

    Raises:
        UnsupportedError: on the CPU, a profiler is already running.
    """
    gc.collect()
    with observing_steps() as steps:
        measured = _measure_cuda(fn, device) if _is_cuda(device) else Measured(_measure_cpu(fn))
    steps.record(measured)
    return measured.peak_bytes


def _is_cuda(device: torch.device | str | None) -> bool:
    if device is not None:
        return torch.device(device).type == "cuda"
    return torch.cuda.is_available() and torch.cuda.memory_allocated() > 0


def _measure_cuda(fn: Callable[[], Any], device: torch.device | str | None) -> Measured:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_stats(device)
    fn()
    torch.cuda.synchronize(device)
    after = torch.cuda.memory_stats(device)
    # Allocators other than torch's own (cudaMallocAsync) do not know what was requested.
    kind = "requested_bytes" if after["requested_bytes.all.peak"] else "allocated_bytes"
    return Measured(
        after[f"{kind}.all.peak"] - before[f"{kind}.all.current"],
        after["allocated_bytes.all.peak"],
        after["reserved_bytes.all.peak"],
    )


def _measure_cpu(fn: Callable[[], Any]) -> int:
    if profiler_is_active():
        raise UnsupportedError(
            "measure_peak records with torch's profiler on the CPU, and a profiler is already "
            "running. Call measure_peak outside it."
        )
    return replay(allocator_events(fn)).peak_bytes
