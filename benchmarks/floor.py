"""The lowest peak of a step with a large vocabulary: logits whole, and in chunks of tokens.

GPT-2 with its 50,257 tokens and Llama with Llama 3's 128,256, of few layers, each returning its loss
alone. The floor is what the ``BudgetError`` of an impossible budget says; then the step is compiled
at that floor, measured and timed, round by round beside ``torch.compile``'s default. Chunks are also
timed at the floor of whole logits: the price of the same bytes by other means. Where
``liger_kernel`` and a GPU are, Liger's fused linear cross-entropy stands beside them.

    python -m benchmarks.floor [--rounds 5] [--device cuda --batch 8 --length 512 --hidden 768]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput

import satcompile
from benchmarks import environment, write_results
from benchmarks.training import Variant, function_of, measure_times, prepare, time_ratio
from benchmarks.workloads import gpt2, llama, quiet_transformers, text

VOCABULARIES = {"GPT-2": 50_257, "Llama 3": 128_256}
GOAL_FLOOR = 0.75  # of the floor of whole logits

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Row:
    """Bytes of a whole step, resident ones included, in MB; nothing of what did not run."""

    vocabulary: str
    variant: str
    budget_mb: float | None = None
    peak_mb: float | None = None
    of_whole_floor: float | None = None
    time_ratio: float | None = None
    step_ms: float | None = None
    note: str = ""


class LossOnly(torch.nn.Module):
    """A model that returns no logits: who wants them has them whole."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> CausalLMOutput:
        return CausalLMOutput(loss=self.model(**inputs).loss)


class Liger(torch.nn.Module):
    """The same model with Liger's loss, which never has the logits whole."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        self.model, self.loss = model, LigerFusedLinearCrossEntropyLoss()
        self.body = torch.compile(model.base_model)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> CausalLMOutput:
        hidden = self.body(input_ids=input_ids)[0][:, :-1].flatten(0, 1)
        return CausalLMOutput(
            loss=self.loss(self.model.lm_head.weight, hidden, labels[:, 1:].flatten())
        )


def sat(
    model: torch.nn.Module, inputs: Inputs, budget_bytes: int, whole: bool
) -> Callable[[], Any]:
    options: dict[str, Any] = {"memory_budget": budget_bytes}
    if whole:
        options["disable_passes"] = ["chunked_loss"]
    return torch.compile(function_of(model, inputs), backend="sat", options=options)


def floor_bytes(model: torch.nn.Module, inputs: Inputs, whole: bool) -> int:
    try:
        sat(model, inputs, 1, whole)()
    except satcompile.BudgetError as error:
        return error.floor_bytes
    raise RuntimeError("a budget of one byte was met")


def resident_bytes(model: torch.nn.Module, inputs: Inputs) -> int:
    tensors = {id(t): t for t in (*model.parameters(), *inputs.values())}
    return sum(tensor.nbytes for tensor in tensors.values())


def rows_of(name: str, model: torch.nn.Module, inputs: Inputs, rounds: int) -> list[Row]:
    whole, chunked = (floor_bytes(model, inputs, each) for each in (True, False))
    print(f"{name}: floor {whole / 1e6:.0f} MB whole, {chunked / 1e6:.0f} MB in chunks", flush=True)
    default = torch.compile(function_of(model, inputs))
    made = [
        (Variant("torch.compile", default, model), None),
        (Variant("logits whole, at their floor", sat(model, inputs, whole, True), model), whole),
        (Variant("in chunks, at that floor", sat(model, inputs, whole, False), model), whole),
        (Variant("in chunks, at their floor", sat(model, inputs, chunked, False), model), chunked),
    ]
    note = why_no_liger()
    if not note:
        made.append((Variant("Liger", function_of(Liger(model.model), inputs), model), None))
    variants = [variant for variant, _ in made]
    for variant in variants:
        prepare(variant)
        print(f"{name}, {variant.name}: compiled", flush=True)
    measure_times(variants, rounds)
    outside = resident_bytes(model, inputs)
    rows = [_row(name, v, budget, outside, whole, variants[0]) for v, budget in made]
    return rows + ([Row(name, "Liger", note=note)] if note else [])


def _row(
    name: str, variant: Variant, budget: int | None, outside: int, whole: int, first: Variant
) -> Row:
    peak_bytes = outside + variant.peak_bytes
    return Row(
        name,
        variant.name,
        None if budget is None else budget / 1e6,
        peak_bytes / 1e6,
        peak_bytes / whole,
        time_ratio(variant, first),
        median(variant.times_s) * 1e3,
    )


def why_no_liger() -> str:
    if not torch.cuda.is_available():
        return "not run: needs CUDA"
    if importlib.util.find_spec("liger_kernel") is None:
        return "not run: liger_kernel is not installed"
    return ""


def missed_goals(rows: Sequence[Row]) -> list[str]:
    missed = []
    for row in rows:
        where = f"{row.vocabulary}, {row.variant}"
        if row.budget_mb is not None and row.peak_mb is not None and row.peak_mb > row.budget_mb:
            missed.append(f"{where}: {row.peak_mb - row.budget_mb:.2f} MB over its budget")
        lower = row.variant == "in chunks, at their floor"
        if lower and row.of_whole_floor is not None and row.of_whole_floor > GOAL_FLOOR:
            missed.append(
                f"{where}: {row.of_whole_floor:.3f} of the floor of whole logits, not {GOAL_FLOOR}"
            )
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", nargs="+", choices=VOCABULARIES, default=[*VOCABULARIES])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    # Tokens to hidden numbers as of GPT-2 at 8 x 512: 5.3.
    parser.add_argument("--length", type=int, default=168)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    rows: list[Row] = []
    with quiet_transformers():
        for name in asked.vocabularies:
            size = VOCABULARIES[name]
            if name == "GPT-2":
                model = gpt2(asked.layers, asked.hidden, size, asked.length, 64, dropout=0.0)
            else:
                model = llama(asked.layers, asked.hidden, 3 * asked.hidden, size)
            model = LossOnly(model).to(asked.device, getattr(torch, asked.dtype))
            inputs = text(asked.batch, asked.length, size)
            inputs = {key: value.to(asked.device) for key, value in inputs.items()}
            rows += rows_of(name, model, inputs, asked.rounds)
    missed = missed_goals(rows)
    facts = environment() | {
        "models": f"{asked.layers} layers, hidden {asked.hidden}, {asked.dtype}",
        "tokens": f"{asked.batch} x {asked.length}",
        "device": asked.device,
        "rounds": asked.rounds,
    }
    name = "floor" if asked.device == "cpu" else f"floor-{asked.device}"
    write_results(name, [asdict(row) for row in rows], facts, missed, asked.output)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
