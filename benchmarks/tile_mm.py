"""Products that leave out frozen tiles, beside cuBLAS's product of the whole: needs a GPU.

A linear layer's weight of M x N in tiles of 128 x 128, a random share of which is active, and T
tokens: ``tile_mm`` computes the weight's gradient at active tiles, zeros elsewhere included, and
``masked_mm`` the input's gradient through active tiles. A rate is of operations on active tiles
alone; its share is of cuBLAS's rate for the same product without frozen tiles, in the same
precision. Both are replayed from CUDA graphs, in alternation, so that neither waits for Python.

    python -m benchmarks.tile_mm [--rounds 20]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median

import torch

from benchmarks import environment, write_results
from satcompile.updates.kernels.tile_mm_triton import masked_mm, tile_mm
from satcompile.updates.optimizers.rules import Tiles

SHAPES = ((4096, 4096, 8192), (1024, 4096, 16384))  # rows and columns of the weight, tokens
DENSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BLOCK = 128
GOAL_SHARE, GOAL_DENSITY = 0.85, 0.3
CALLS = 10  # in a graph
NO_GPU = 2  # the exit code


@dataclass(frozen=True)
class Row:
    product: str
    shape: str
    precision: str
    density: float
    time_us: float
    cublas_us: float
    tflops: float
    share: float


@dataclass(frozen=True)
class Layer:
    """A weight and its tokens, in one precision ("bfloat16", or "tf32" of float32 tensors)."""

    shape: tuple[int, int, int]
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def random(self, *sizes: int) -> torch.Tensor:
        return torch.randn(sizes, dtype=self.dtype, device="cuda")

    def active(self, density: float) -> torch.Tensor:
        """Which tiles are, by their row and column."""
        height, width = (-(-size // BLOCK) for size in self.shape[:2])
        chosen = torch.randperm(height * width)[: max(round(density * height * width), 1)]
        mask = torch.zeros(height * width, dtype=torch.bool)
        mask[chosen] = True
        return mask.view(height, width)


Run = Callable[[], object]


def weight_gradient(layer: Layer) -> tuple[Run, Callable[[torch.Tensor], Run]]:
    """The whole product, and that of given active tiles."""
    height, width, tokens = layer.shape
    outputs, inputs = layer.random(tokens, height), layer.random(tokens, width)
    whole, out = layer.random(height, width), layer.random(height, width)

    def of(active: torch.Tensor) -> Run:
        numbers = active.flatten().nonzero().flatten().int().cuda()
        tiles = Tiles(BLOCK, BLOCK, numbers)
        return lambda: tile_mm(
            outputs.t(), inputs, tiles, False, out, tf32=layer.precision == "tf32"
        )

    return lambda: torch.mm(outputs.t(), inputs, out=whole), of


def input_gradient(layer: Layer) -> tuple[Run, Callable[[torch.Tensor], Run]]:
    """The whole product, and that through given active tiles."""
    height, width, tokens = layer.shape
    outputs, weight = layer.random(tokens, height), layer.random(height, width)
    whole, out = layer.random(tokens, width), layer.random(tokens, width)

    def of(active: torch.Tensor) -> Run:
        starts = torch.nn.functional.pad(active.sum(0).cumsum(0), (1, 0)).int().cuda()
        blocks = active.t().nonzero()[:, 1].int().cuda()
        return lambda: masked_mm(
            outputs, weight, starts, blocks, BLOCK, BLOCK, out, tf32=layer.precision == "tf32"
        )

    return lambda: torch.mm(outputs, weight, out=whole), of


PRODUCTS = {"tile_mm": weight_gradient, "masked_mm": input_gradient}


def captured(run: Run) -> torch.cuda.CUDAGraph:
    """``CALLS`` of them; kernels are built, and how they are cut is chosen, before."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    return graph


def call_us(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / CALLS


@contextmanager
def tf32_allowed() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def measured(product: str, layer: Layer, densities: Sequence[float], rounds: int) -> list[Row]:
    run_whole, of = PRODUCTS[product](layer)
    whole = captured(run_whole)
    rows = []
    for density in densities:
        active = layer.active(density)
        times = _alternated(captured(of(active)), whole, rounds)
        rows.append(row_of(product, layer, active.float().mean().item(), times))
        print(f"{product}, {rows[-1].shape}, {layer.precision}, {density}: {rows[-1].share:.2f}")
    return rows


def _alternated(
    ours: torch.cuda.CUDAGraph, whole: torch.cuda.CUDAGraph, rounds: int
) -> list[tuple[float, float]]:
    times = [(call_us(ours), call_us(whole)) for _ in range(rounds + 2)]
    return times[2:]


def row_of(
    product: str, layer: Layer, density: float, times_us: Sequence[tuple[float, float]]
) -> Row:
    """``density`` as it is: of tiles, of which there are whole numbers."""
    height, width, tokens = layer.shape
    time_us, cublas_us = (median(column) for column in zip(*times_us, strict=True))
    return Row(
        product,
        f"{height}x{width}x{tokens}",
        layer.precision,
        density,
        time_us,
        cublas_us,
        2 * height * width * tokens * density / time_us / 1e6,
        median(density * whole / ours for ours, whole in times_us),
    )


def missed_goals(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row.product}, {row.shape}, {row.precision}: {row.share:.2f} of cuBLAS's rate at "
        f"density {row.density:.2f}, not {GOAL_SHARE}"
        for row in rows
        if abs(row.density - GOAL_DENSITY) < 0.01 and row.share < GOAL_SHARE
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.tile_mm measures kernels on a GPU; torch sees none", file=sys.stderr)
        return NO_GPU
    torch.manual_seed(0)
    rows: list[Row] = []
    with tf32_allowed():
        for precision in ("bfloat16", "tf32"):
            for shape in SHAPES:
                for product in PRODUCTS:
                    layer = Layer(shape, precision)
                    rows += measured(product, layer, asked.densities, asked.rounds)
    missed = missed_goals(rows)
    facts = environment() | {
        "triton": metadata.version("triton"),
        "tiles": f"{BLOCK}x{BLOCK}, random",
        "rounds": asked.rounds,
    }
    write_results("tile_mm", [asdict(row) for row in rows], facts, missed, asked.output)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
