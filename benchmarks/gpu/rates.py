"""What a GPU really does, beside what the cost model's table says of it.

A copy between two buffers many times the size of its cache, and products of square matrices, large
enough that starting them does not count. Medians of repeated calls, timed by the GPU's own events.

    python -m benchmarks.gpu.rates
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import environment, write_results
from satcompile.planner.cost.device import device_of

TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def call_us(run: Callable[[], Any], calls: int, rounds: int = 7) -> float:
    """The time of one of so many calls in a row, the median of rounds."""
    run()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls)
    return median(times)


def copy_rate(megabytes: int) -> float:
    """Bytes read and written a microsecond."""
    source = torch.randn(megabytes * 10**6 // 4, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / call_us(lambda: target.copy_(source), 5)


def product_rate(dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a microsecond; of float32 with TF32, as the table has it."""
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return 2 * size**3 / call_us(lambda: torch.mm(a, b, out=out), 5)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def launch_us() -> float:
    """The time of a kernel with nothing to do, one behind the other."""
    x = torch.zeros(1, device="cuda")
    return call_us(lambda: x.add_(1), 200)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="sizes at which nothing is measured")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu"))
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    known = device_of(torch.device("cuda"))
    megabytes, size = (4, 64) if asked.small else (4000, 8192)
    found = [("copy, GB/s", copy_rate(megabytes) / 1e3, known.bytes_per_us / 1e3)]
    for dtype in TYPES:
        sides = size // 2 if dtype == torch.float64 else size
        rate = product_rate(dtype, sides) / 1e6
        label = "tf32" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        found.append((f"product, {label}, TFLOP/s", rate, known.rate(dtype) / 1e6))
    found.append(("a kernel's start, us", launch_us(), known.kernel_us))
    rows = [
        {"rate": name, "measured": rate, "table": listed, "share": rate / listed}
        for name, rate, listed in found
    ]
    facts = environment() | {"table": known.source, "workspaces": f"{known.workspace_bytes} bytes"}
    write_results("rates", rows, facts, [], asked.output, "gpu.rates")
    return 0


if __name__ == "__main__":
    sys.exit(main())
