"""Whole training steps by how the optimizer steps: torch's ways, and ours.

GPT-2's shape, at few and at many tokens a step. Every variant has its own copy of the model and
its own optimizer, and is compiled: with torch.compile's default for torch's optimizers, with
``backend="sat"`` for ours. A step is forward, backward, step() and zero_grad(); its peak is what
it allocates beyond what is alive before it (parameters, state, inputs). Times are taken in
alternation, and compared round by round with ``AdamW(fused=True)``. The update alone is compared
with the bandwidth of a copy.

    python -m benchmarks.update [--rounds 20] [--device cuda --layers 24 --hidden 1024]
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

GOAL_PEAK, GOAL_TIME, GOAL_BANDWIDTH = 0.85, 1.02, 0.9
PASSES = 7  # AdamW reads weight, gradient and two moments, and writes all but the gradient


@dataclass(frozen=True)
class Row:
    tokens: int
    variant: str
    peak_mb: float
    peak_share: float
    time_ratio: float
    step_ms: float


@dataclass(frozen=True)
class Way:
    """How an optimizer is made, and the model compiled."""

    name: str
    settings: dict[str, Any]
    compiled_step: bool = False
    fuse: dict[str, Any] | None = None


WAYS = (
    Way("torch, fused", {"fused": True}),
    Way("torch, foreach", {"foreach": True}),
    Way("torch, compiled step", {"foreach": True}, compiled_step=True),
    Way("ours, by step()", {}, fuse={}),
    Way("ours, in the backward", {}, fuse={"in_backward": True}),
)


def variant_of(way: Way, model: torch.nn.Module, inputs: dict[str, Any]) -> Variant:
    """A step of its own model; ``run`` returns nothing that would stay alive."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, **way.settings)
    if way.fuse is not None:
        satcompile.fuse_optimizer(optimizer, **way.fuse)
    backend = "inductor" if way.fuse is None else "sat"
    forward = torch.compile(function_of(model, inputs), backend=backend)
    update = torch.compile(optimizer.step) if way.compiled_step else optimizer.step

    def run() -> Any:
        forward().loss.backward()
        update()
        optimizer.zero_grad()
        return Done()

    return Variant(way.name, run, model)


def measured(model: torch.nn.Module, inputs: dict[str, Any], rounds: int) -> list[Variant]:
    device = next(model.parameters()).device
    made = []
    for way in WAYS:
        variant = variant_of(way, model, inputs)
        for _ in range(3):
            variant.run()
        made.append(variant)
    for variant in made:
        variant.run()
        variant.peak_bytes = satcompile.measure_peak(lambda v=variant: v.run() and None, device)
        print(f"{variant.name}: peak {variant.peak_bytes / 1e6:.1f} MB", flush=True)
    measure_times(made, rounds)
    return made


def update_rate(model: torch.nn.Module, rounds: int) -> tuple[float, float]:
    """GB/s of the sweep over all of a model's parameters, and of a copy of as many bytes."""
    parameters = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = satcompile.fuse_optimizer(torch.optim.AdamW(parameters, lr=1e-6))
    source = torch.cat([parameter.detach().flatten() for parameter in parameters])
    target = torch.empty_like(source)
    num_bytes = source.nbytes
    sweeps, copies = [], []
    for _ in range(rounds + 2):
        sweeps.append(PASSES * num_bytes / seconds(optimizer.step, source.device))
        copies.append(2 * num_bytes / seconds(lambda: target.copy_(source), source.device))
    return median(sweeps[2:]) / 1e9, median(copies[2:]) / 1e9


def rows_of(tokens: int, made: Sequence[Variant]) -> list[Row]:
    first = made[0]
    return [
        Row(
            tokens,
            variant.name,
            variant.peak_bytes / 1e6,
            variant.peak_bytes / first.peak_bytes,
            time_ratio(variant, first),
            median(variant.times_s) * 1e3,
        )
        for variant in made
    ]


def missed_goals(rows: Sequence[Row], rate: tuple[float, float]) -> list[str]:
    missed = []
    few = min(row.tokens for row in rows)
    for row in rows:
        if not row.variant.startswith("ours"):
            continue
        where = f"{row.variant}, {row.tokens} tokens"
        inside = row.variant == WAYS[-1].name
        if inside and row.tokens == few and row.peak_share > GOAL_PEAK:
            missed.append(f"{where}: peak {row.peak_share:.3f} of torch fused's, not {GOAL_PEAK}")
        if row.peak_share > 1.01:
            missed.append(f"{where}: peak {row.peak_share:.3f} of torch fused's")
        if row.time_ratio > GOAL_TIME:
            missed.append(f"{where}: {row.time_ratio:.3f}x the time of torch fused")
    if rate[0] < GOAL_BANDWIDTH * rate[1]:
        missed.append(f"the sweep moves {rate[0]:.1f} GB/s, a copy {rate[1]:.1f} GB/s")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    rows: list[Row] = []
    with quiet_transformers():
        model = gpt2(
            asked.layers, asked.hidden, asked.vocabulary, asked.length, heads_of=64, dropout=0.0
        )
        model = model.to(asked.device, getattr(torch, asked.dtype))
        for batch in asked.batches:
            inputs = text(batch, asked.length, asked.vocabulary)
            inputs = {name: value.to(asked.device) for name, value in inputs.items()}
            rows += rows_of(batch * asked.length, measured(model, inputs, asked.rounds))
        rate = update_rate(model, asked.rounds)
    missed = missed_goals(rows, rate)
    facts = environment() | {
        "model": f"GPT-2, {asked.layers} layers, hidden {asked.hidden}, vocabulary "
        f"{asked.vocabulary}, heads of 64, no dropout, {asked.dtype}",
        "device": asked.device,
        "rounds": asked.rounds,
        "sweep": f"{rate[0]:.1f} GB/s beside a copy's {rate[1]:.1f} GB/s",
    }
    name = "update" if asked.device == "cpu" else f"update-{asked.device}"
    write_results(name, [asdict(row) for row in rows], facts, missed, asked.output)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
