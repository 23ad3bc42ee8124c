"""Peak and time of a training step: eager, checkpointing, torch.compile, its budget, and ours.

All variants train one model in one process, each through a function of its own, so that no
compiled graph is shared; that each really compiled is checked. Peaks are measured; times are
taken in alternation, and compared round by round with torch.compile's default.

    python -m benchmarks.step [--layers 16] [--rounds 20] [--output benchmarks/results]
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch._functorch import config as functorch_config

import satcompile
from benchmarks import environment, write_results
from benchmarks.training import Variant, function_of, measure_times, prepare, time_ratio
from benchmarks.workloads import llama, quiet_transformers, text

TORCH_BUDGETS = (0.5, 0.2, 0.1, 0.05)
OUR_SHARES = (0.8, 0.6, 0.45, 0.32)  # of the default's measured peak
GOAL_PEAK, GOAL_TIME = 0.32, 1.05


@dataclass(frozen=True)
class Row:
    variant: str
    peak_mb: float
    peak_share: float
    predicted_share: float | None
    time_ratio: float
    step_ms: float
    note: str


def checkpointed_twin(model: Any) -> Any:
    """A copy with per-layer ``torch.utils.checkpoint``. Of its own: to switch it on and off in
    one model would change what Dynamo guards on, and recompile every other variant."""
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable({"use_reentrant": False})
    return twin


def variants(model: Any, inputs: dict[str, Any]) -> list[Variant]:
    """Every variant, prepared, in the order in which they run in each round."""
    made: list[Variant] = []

    def add(name: str, run: Callable[[], Any], compiled: bool = True, of: Any = model) -> Variant:
        made.append(Variant(name, run, of))
        prepare(made[-1], compiled)
        print(f"{name}: peak {made[-1].peak_bytes / 1e6:.1f} MB", flush=True)
        return made[-1]

    eager = function_of(model, inputs)
    default = add("torch.compile", torch.compile(function_of(model, inputs)))
    add("eager", eager, compiled=False)
    twin = checkpointed_twin(model)
    add("eager, checkpoint per layer", function_of(twin, inputs), compiled=False, of=twin)
    for budget in TORCH_BUDGETS:
        with functorch_config.patch(activation_memory_budget=budget):
            add(f"torch budget {budget}", torch.compile(function_of(model, inputs)))
    unlimited = torch.compile(function_of(model, inputs), backend="sat")
    add("sat, no budget", unlimited)
    graph = satcompile.report(unlimited).graphs[-1]
    made[-1].predicted_bytes = graph.predicted_peak_bytes - graph.resident_bytes
    for share in OUR_SHARES:
        budget_bytes = graph.resident_bytes + int(share * default.peak_bytes)
        options = {"memory_budget": budget_bytes}
        run = torch.compile(function_of(model, inputs), backend="sat", options=options)
        try:
            variant = add(f"sat at {share:.0%}", run)
        except satcompile.BudgetError as error:
            made.pop()
            share = (error.floor_bytes - graph.resident_bytes) / default.peak_bytes
            print(f"sat: the floor is {share:.1%} of the default's peak")
            continue
        ours = satcompile.report(run).graphs[-1]
        variant.predicted_bytes = ours.predicted_peak_bytes - ours.resident_bytes
        variant.note = f"{ours.rounds} compilations, recompute {ours.recompute_time_us / ours.forward_time_us:.0%} of forward by the cost model"
        if variant.peak_bytes + graph.resident_bytes > budget_bytes:
            raise RuntimeError(f"{variant.name}: over its budget")
    return made


def rows_of(made: Sequence[Variant]) -> list[Row]:
    default = made[0]
    rows = []
    for variant in made:
        predicted = variant.predicted_bytes
        rows.append(
            Row(
                variant.name,
                variant.peak_bytes / 1e6,
                variant.peak_bytes / default.peak_bytes,
                None if predicted is None else predicted / default.peak_bytes,
                time_ratio(variant, default),
                median(variant.times_s) * 1e3,
                variant.note,
            )
        )
    return rows


def missed_goals(rows: Sequence[Row]) -> list[str]:
    ours = [row for row in rows if row.variant.startswith("sat")]
    torchs = [row for row in rows if row.variant.startswith("torch budget")]
    missed = []
    if not any(row.peak_share <= GOAL_PEAK and row.time_ratio <= GOAL_TIME for row in ours):
        missed.append(f"no plan of ours at {GOAL_PEAK} of the peak and {GOAL_TIME}x the time")
    for row in ours:
        for other in torchs:
            if other.peak_share <= row.peak_share and other.time_ratio < row.time_ratio - 0.03:
                missed.append(f"{row.variant} is dominated by {other.variant}")
    plain = next(row for row in rows if row.variant == "sat, no budget")
    if plain.time_ratio > 1.02 or plain.peak_share > 1.01:
        missed.append("without a budget, more time or memory than torch.compile's default")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    with quiet_transformers():
        model = llama(asked.layers, asked.hidden, asked.intermediate, asked.vocabulary)
        inputs = text(asked.batch, asked.length, asked.vocabulary)
        made = variants(model, inputs)
        measure_times(made, asked.rounds)
    rows = rows_of(made)
    missed = missed_goals(rows)
    facts = environment() | {
        "model": f"Llama, {asked.layers} layers, hidden {asked.hidden}, intermediate "
        f"{asked.intermediate}, batch {asked.batch} x {asked.length}, vocabulary {asked.vocabulary}",
        "rounds": asked.rounds,
    }
    write_results("step", [asdict(row) for row in rows], facts, missed, asked.output)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
