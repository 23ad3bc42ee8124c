"""A budget, sparse gradients and updates inside the backward at once, against torch.compile.

A Llama under bf16 autocast, trained on CPython's own library sources. Both sides begin with the same
weights and see the same batches; after training, peaks are measured (of a plain step, and of one
that scores) and steps timed in alternation. What one sees of the losses is what sparsity costs; see
``benchmarks.sparse_training`` for that question by itself.

    python -m benchmarks.together [--steps 60] [--budget 0.6] [--device cuda]
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

import satcompile
from benchmarks import environment, write_results
from benchmarks.training import Done, Variant, measure_times, time_ratio
from benchmarks.workloads import llama, quiet_transformers, text

INTERVAL, WARMUP = 20, 10  # 500 steps apart in earnest: here the run is short
SHOWN = (0, 9, 19, 29, 39, 49, 59, 79, 99, 149, 199)


@dataclass(frozen=True)
class Row:
    variant: str
    resident_mb: float
    peak_mb: float
    peak_scoring_mb: float | None
    peak_share: float
    time_ratio: float
    step_ms: float
    trained_share: float
    last_loss: float


@dataclass
class Side:
    """One way to train, with its own model, optimizer and losses."""

    name: str
    model: torch.nn.Module
    compiled: Any
    optimizer: torch.optim.Optimizer
    device: str
    losses: list[float] = field(default_factory=list)

    def forward_backward(self, batch: dict[str, torch.Tensor]) -> Any:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            output = self.compiled(**batch)
        output.loss.backward()
        return output

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        self.losses.append(float(self.forward_backward(batch).loss.detach()))
        self.end_step()

    def end_step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def sides_of(model: torch.nn.Module, budget_share: float, density: float) -> list[Side]:
    device = next(model.parameters()).device.type
    sides = []
    for ours in (False, True):
        copied = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(copied.parameters(), lr=1e-3, fused=not ours or None)
        options: dict[str, Any] = {"backend": "inductor"}
        if ours:
            satcompile.fuse_optimizer(optimizer, in_backward=True)
            sparsity = {"density": density, "interval": INTERVAL, "warmup_steps": WARMUP}
            budget = f"{100 * budget_share:g}% of default"
            options = {"backend": "sat", "options": {"memory_budget": budget, "sparsity": sparsity}}
        name = "budget, sparse gradients, updates in the backward" if ours else "torch.compile"
        sides.append(Side(name, copied, torch.compile(_own(copied), **options), optimizer, device))
    return sides


def _own(model: torch.nn.Module) -> torch.nn.Module:
    """The model with a forward of its own: Dynamo caches by code."""
    namespace: dict[str, Any] = {}
    name = f"Compiled{id(model)}"
    source = f"class {name}(base):\n    def forward(self, **batch):\n        return base.forward(self, **batch)\n"
    exec(compile(source, f"<{name}>", "exec"), {"base": type(model)}, namespace)
    model.__class__ = namespace[name]
    return model


def batches(asked: argparse.Namespace, device: str) -> list[dict[str, torch.Tensor]]:
    """Different text for every step."""
    whole = text(asked.batch * asked.steps, asked.length, asked.vocabulary)["input_ids"]
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    pieces = whole[order].to(device).split(asked.batch)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def peak_of(side: Side, batch: dict[str, torch.Tensor]) -> int:
    """The peak of forward and backward, the output being held."""
    side.forward_backward(batch)
    side.end_step()
    device = next(side.model.parameters()).device
    found = satcompile.measure_peak(lambda: side.forward_backward(batch), device)
    side.end_step()
    return found


def peaks_of(side: Side, batch: dict[str, torch.Tensor]) -> tuple[int, int | None]:
    """The peaks of a plain step, and of one that scores."""
    plain = peak_of(side, batch)
    if not satcompile.sparsity_state(side.model).masks:
        return plain, None
    sparsity = satcompile.report(side.model).graphs[0].sparsity
    assert sparsity is not None
    while not sparsity.is_scoring:
        side.step(batch)
    device = next(side.model.parameters()).device
    scoring = satcompile.measure_peak(lambda: side.forward_backward(batch), device)
    side.end_step()
    return plain, scoring


def resident_bytes(side: Side) -> int:
    """Parameters, buffers and the optimizer's state."""
    tensors = [*side.model.parameters(), *side.model.buffers()]
    for state in side.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def whole_step(side: Side, batch: dict[str, torch.Tensor]) -> Callable[[], Any]:
    def run() -> Any:
        side.forward_backward(batch)
        side.end_step()
        return Done()

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--budget", type=float, default=0.6, help="share of the default's peak")
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    with quiet_transformers():
        model = llama(asked.layers, asked.hidden, asked.intermediate, asked.vocabulary)
        sides = sides_of(model.to(asked.device), asked.budget, asked.density)
        for number, batch in enumerate(batches(asked, asked.device)):
            for side in sides:
                side.step(batch)
            if number in SHOWN:
                print(number + 1, *(f"{side.losses[-1]:.3f}" for side in sides), flush=True)
        curves = {side.name: list(side.losses) for side in sides}
        peaks = [peaks_of(side, batch) for side in sides]
        made = [Variant(side.name, whole_step(side, batch), side.model) for side in sides]
        measure_times(made, asked.rounds)
    rows = []
    for side, variant, (plain, scoring) in zip(sides, made, peaks, strict=True):
        resident = resident_bytes(side)
        worst = resident + max(plain, scoring or 0)
        default = resident_bytes(sides[0]) + peaks[0][0]
        rows.append(
            Row(
                side.name,
                resident / 1e6,
                (resident + plain) / 1e6,
                None if scoring is None else (resident + scoring) / 1e6,
                worst / default,
                time_ratio(variant, made[0]),
                median(variant.times_s) * 1e3,
                satcompile.sparsity_state(side.model).density,
                curves[side.name][-1],
            )
        )
    missed = []
    if rows[1].peak_share > asked.budget:
        missed.append(f"peak {rows[1].peak_share:.3f} of the default's, not {asked.budget}")
    facts = environment() | {
        "model": f"Llama, {asked.layers} layers, hidden {asked.hidden}, intermediate "
        f"{asked.intermediate}, vocabulary {asked.vocabulary}, {asked.batch} x {asked.length} "
        "tokens, bf16 autocast",
        "device": asked.device,
        "budget": f"{asked.budget:.0%} of the default's peak",
        "sparsity": f"density {asked.density}, chosen every {INTERVAL} steps after {WARMUP} dense "
        "ones, tiles of 128 x 128",
        "rounds": asked.rounds,
        "losses": {
            name: {str(i + 1): round(curve[i], 3) for i in SHOWN if i < len(curve)}
            for name, curve in curves.items()
        },
    }
    name = "together" if asked.device == "cpu" else f"together-{asked.device}"
    write_results(name, [asdict(row) for row in rows], facts, missed, asked.output)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
