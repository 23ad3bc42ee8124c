"""Whole training steps where only a part of each weight is trained, against dense ones.

GPT-2's shape. Every variant has its own copy of the model and its own optimizer: torch.compile with
``AdamW(fused=True)``, and ``backend="sat"`` with ``fuse_optimizer`` at several densities. Tiles are
chosen by the model's own gradients in the first step. A step is forward, backward, step() and
zero_grad(), timed in alternation and compared round by round; a variant that scores in every step
says what a scoring step costs, and goes into the others at its share of one in ``--interval``.

The gradients of the weights by themselves: the products of all layers at the chosen tiles, against
the dense ones.

    python -m benchmarks.sparse_step [--rounds 20] [--device cuda --layers 24 --hidden 1024]
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import satcompile
from benchmarks import environment, write_results
from benchmarks.training import Done, Variant, function_of, measure_times, seconds, time_ratio
from benchmarks.workloads import gpt2, quiet_transformers, text
from satcompile.updates.kernels import tile_products
from satcompile.updates.sparsity.masks import Mask, mask_of

GOALS = {1.0: 1.03, 0.38: 0.88, 0.25: 0.85}  # of the dense step's time
GOAL_GRADIENTS = 0.05  # above the density, of the dense gradients' time
NEVER = 1_000_000
DENSE = "torch.compile, AdamW(fused=True)"


@dataclass(frozen=True)
class Row:
    variant: str
    time_ratio: float
    step_ms: float
    trained_share: float | None = None
    flops_skipped: float | None = None
    gradients_ratio: float | None = None


def variant_of(
    name: str, model: torch.nn.Module, inputs: dict[str, Any], sparsity: dict[str, Any] | None
) -> tuple[Variant, Any]:
    """A step of its own model, and what was compiled."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=sparsity is None or None)
    options: dict[str, Any] = {"backend": "inductor"}
    if sparsity is not None:
        satcompile.fuse_optimizer(optimizer)
        options = {"backend": "sat", "options": {"sparsity": sparsity}}
    forward = torch.compile(function_of(model, inputs), **options)

    def run() -> Any:
        forward().loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return Done()

    return Variant(name, run, model), forward


def gradients_ratio(model: torch.nn.Module, tokens: int, rounds: int) -> float:
    """Time of the weights' gradients at their masks, over that of dense ones."""
    sparse_s = dense_s = 0.0
    for parameter in model.parameters():
        mask = mask_of(parameter)
        if mask is None:
            continue
        sparse, dense = _gradient_seconds(parameter, mask, tokens, rounds)
        sparse_s, dense_s = sparse_s + sparse, dense_s + dense
    return sparse_s / dense_s


def _gradient_seconds(
    parameter: torch.Tensor, mask: Mask, tokens: int, rounds: int
) -> tuple[float, float]:
    rows, columns = (
        torch.randn(tokens, extent, dtype=parameter.dtype, device=parameter.device)
        for extent in parameter.shape
    )

    def sparse() -> Any:
        return tile_products.tile_mm(rows.T, columns, mask.trained, False)

    def dense() -> Any:
        return torch.mm(rows.T, columns)

    times = [(seconds(sparse, rows.device), seconds(dense, rows.device)) for _ in range(rounds + 2)]
    return median(s for s, _ in times[2:]), median(d for _, d in times[2:])


def measured(
    model: torch.nn.Module, inputs: dict[str, Any], tokens: int, asked: argparse.Namespace
) -> list[Row]:
    made: list[tuple[Variant, Any]] = [variant_of(DENSE, model, inputs, None)]
    ways: dict[str, tuple[float, dict[str, Any]]] = {}
    for density in asked.densities:
        ways[f"density {density:g}"] = (density, {"interval": NEVER})
    scoring = min(asked.densities)
    ways[f"density {scoring:g}, scoring in every step"] = (scoring, {"interval": 1})
    for share in asked.forward_densities:
        density = max(share, scoring)
        settings = {"interval": NEVER, "forward_density": share}
        ways[f"density {density:g}, forward {share:g}"] = (density, settings)
    for name, (density, settings) in ways.items():
        made.append(variant_of(name, model, inputs, {"density": density, **settings}))
    for variant, _ in made:
        for _ in range(3):
            variant.run()
        print(f"{variant.name}: compiled", flush=True)
    measure_times([variant for variant, _ in made], asked.rounds)
    return [_row(variant, forward, made, tokens, asked) for variant, forward in made]


def _row(
    variant: Variant,
    forward: Any,
    made: Sequence[tuple[Variant, Any]],
    tokens: int,
    asked: argparse.Namespace,
) -> Row:
    dense = made[0][0]
    ratio, step_ms = time_ratio(variant, dense), median(variant.times_s) * 1e3
    if variant is dense:
        return Row(variant.name, ratio, step_ms)
    scoring = next(v for v, _ in made if v.name.endswith("scoring in every step"))
    found = satcompile.report(forward).graphs[0].sparsity
    assert found is not None
    share = 0.0 if variant is scoring or found.density == 1 else 1 / asked.interval
    mixed = (1 - share) * ratio + share * time_ratio(scoring, dense)
    gradients = None
    if variant is not scoring:
        gradients = gradients_ratio(variant.model, tokens, asked.rounds)
    return Row(variant.name, mixed, step_ms, found.density, found.skipped_share, gradients)


def missed_goals(rows: Sequence[Row]) -> list[str]:
    missed = []
    for row in rows:
        for density, goal in GOALS.items():
            if row.variant != f"density {density:g}":
                continue
            if row.time_ratio > goal:
                missed.append(f"{row.variant}: {row.time_ratio:.3f}x the dense step, not {goal}")
            if row.gradients_ratio is not None and row.gradients_ratio > density + GOAL_GRADIENTS:
                missed.append(
                    f"{row.variant}: gradients take {row.gradients_ratio:.3f} of the dense ones' "
                    f"time, not {density + GOAL_GRADIENTS:.2f}"
                )
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--densities", type=float, nargs="+", default=[1.0, 0.38, 0.25])
    parser.add_argument("--forward-densities", type=float, nargs="*", default=[0.5, 0.1])
    parser.add_argument("--interval", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    with quiet_transformers():
        model = gpt2(
            asked.layers, asked.hidden, asked.vocabulary, asked.length, heads_of=64, dropout=0.0
        )
        model = model.to(asked.device, getattr(torch, asked.dtype))
        inputs = text(asked.batch, asked.length, asked.vocabulary)
        inputs = {name: value.to(asked.device) for name, value in inputs.items()}
        rows = measured(model, inputs, asked.batch * asked.length, asked)
    missed = missed_goals(rows)
    facts = environment() | {
        "model": f"GPT-2, {asked.layers} layers, hidden {asked.hidden}, vocabulary "
        f"{asked.vocabulary}, {asked.batch} x {asked.length} tokens, heads of 64, no dropout, "
        f"{asked.dtype}, tiles of 128 x 128",
        "device": asked.device,
        "rounds": asked.rounds,
        "scoring": f"one step in {asked.interval}",
    }
    name = "sparse_step" if asked.device == "cpu" else f"sparse_step-{asked.device}"
    write_results(name, [asdict(row) for row in rows], facts, missed, asked.output)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
