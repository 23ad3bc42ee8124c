"""A model's step on a GPU: what was predicted, asked for, given out and reserved, and its time.

Beside ours at several budgets: eager, eager with the model's own checkpointing, torch.compile, and
torch's activation budget. Bytes are the step's, beyond what is resident. *Requested* is what a plan
predicts; *allocated* is in the allocator's units; *reserved* is what the process took from the
driver at most since its cache was emptied, all that is resident included, over what is allocated.
Steps are forward and backward, timed in alternation.

Checked, with the exit status: what is requested is within 0.1% of what was predicted, and no budget is
exceeded by what is requested.

    python -m benchmarks.gpu.memory --model gpt2-medium [--shares 0.8 0.6] [--rounds 10]
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch._functorch import config as functorch_config

import satcompile
from benchmarks import environment, print_results, save_results
from benchmarks.models import WORKLOADS, load
from benchmarks.training import Variant, clear_gradients, function_of, measure_times, step
from benchmarks.workloads import quiet_transformers

TORCH_BUDGETS = (0.5,)
TOLERANCE = 0.001


@dataclass(frozen=True)
class Row:
    variant: str
    budget_mb: float | None
    predicted_mb: float | None
    requested_mb: float
    allocated_over_requested: float
    reserved_over_allocated: float
    peak_share: float
    time_ratio: float | None
    step_ms: float | None
    compile_s: float
    retries: int
    note: str = ""


@dataclass
class Measured:
    """A variant, and the counters of a step of it."""

    variant: Variant
    budget_bytes: int | None = None
    resident_bytes: int = 0
    predicted_bytes: int | None = None
    requested_bytes: int = 0
    allocated_bytes: int = 0
    reserved_ratio: float = 0.0
    retries: int = 0
    compile_s: float = 0.0
    note: str = ""


def measure(found: Measured) -> None:
    """Compile, warm up, and count one step."""
    variant = found.variant
    started = time.perf_counter()
    step(variant.run)
    torch.cuda.synchronize()
    found.compile_s = time.perf_counter() - started
    clear_gradients(variant.model)
    step(variant.run)
    clear_gradients(variant.model)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    step(variant.run)
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    clear_gradients(variant.model)

    def beyond(kind: str) -> int:
        return after[f"{kind}.all.peak"] - before[f"{kind}.all.current"]

    found.requested_bytes = variant.peak_bytes = beyond("requested_bytes")
    found.allocated_bytes = beyond("allocated_bytes")
    reserved, allocated = (after[f"{k}_bytes.all.peak"] for k in ("reserved", "allocated"))
    found.reserved_ratio = reserved / allocated
    found.retries = after["num_alloc_retries"] - before["num_alloc_retries"]


def checkpointed_twin(model: Any) -> Any | None:
    """A copy that checkpoints its layers; None where it cannot."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        return None
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable({"use_reentrant": False})
    return twin


def variants(model: Any, inputs: dict[str, Any], shares: Sequence[float]) -> Iterator[Measured]:
    def made(name: str, run: Callable[[], Any], of: Any = model) -> Measured:
        found = Measured(Variant(name, run, of))
        try:
            measure(found)
        except (satcompile.SatcompileError, torch.OutOfMemoryError) as error:
            found.note = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            clear_gradients(of)
        print(f"{name}: {found.requested_bytes / 1e6:.1f} MB {found.note}", flush=True)
        return found

    def ours(name: str, budget_bytes: int | None) -> Measured:
        options = {} if budget_bytes is None else {"memory_budget": budget_bytes}
        run = torch.compile(function_of(model, inputs), backend="sat", options=options)
        found = made(name, run)
        found.budget_bytes = budget_bytes
        if not found.note:
            graph = satcompile.report(run).graphs[-1]
            found.resident_bytes = graph.resident_bytes
            found.predicted_bytes = graph.predicted_peak_bytes - graph.resident_bytes
        return found

    default = made("torch.compile", torch.compile(function_of(model, inputs)))
    yield default
    plain = ours("sat, no budget", None)
    yield plain
    for share in shares if not plain.note else ():
        budget_bytes = plain.resident_bytes + int(share * default.requested_bytes)
        yield ours(f"sat at {share:.0%}", budget_bytes)
    for budget in TORCH_BUDGETS:
        with functorch_config.patch(activation_memory_budget=budget):
            yield made(f"torch budget {budget}", torch.compile(function_of(model, inputs)))
    yield made("eager", function_of(model, inputs))
    twin = checkpointed_twin(model)
    if twin is not None:
        yield made("eager, checkpointed", function_of(twin, inputs), twin)


def rows_of(found: Sequence[Measured]) -> list[Row]:
    default = found[0]

    def row(one: Measured) -> Row:
        times = one.variant.times_s
        ratios = [a / b for a, b in zip(times, default.variant.times_s, strict=False)]
        return Row(
            one.variant.name,
            None if one.budget_bytes is None else one.budget_bytes / 1e6,
            None if one.predicted_bytes is None else one.predicted_bytes / 1e6,
            one.requested_bytes / 1e6,
            one.allocated_bytes / max(1, one.requested_bytes),
            one.reserved_ratio,
            one.requested_bytes / default.requested_bytes,
            median(ratios) if ratios else None,
            median(times) * 1e3 if times else None,
            one.compile_s,
            one.retries,
            one.note,
        )

    return [row(one) for one in found]


def missed_goals(found: Sequence[Measured]) -> list[str]:
    missed = []
    for one in found:
        if one.predicted_bytes is None:
            continue
        name, off = one.variant.name, one.requested_bytes / one.predicted_bytes - 1
        if abs(off) > TOLERANCE:
            missed.append(f"{name}: requested is {off:+.2%} of what was predicted")
        left_bytes = None if one.budget_bytes is None else one.budget_bytes - one.resident_bytes
        if left_bytes is not None and one.requested_bytes > left_bytes:
            over_bytes = one.requested_bytes - left_bytes
            missed.append(f"{name}: {over_bytes} bytes over its budget")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=WORKLOADS, required=True)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.6])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu"))
    asked = parser.parse_args(arguments)
    workload = WORKLOADS[asked.model]
    if torch.cuda.get_device_name().endswith("stub"):
        torch.backends.cudnn.enabled = False  # it has none
    with quiet_transformers():
        model, inputs = load(workload, torch.device("cuda"))
        found: list[Measured] = []
        for one in variants(model, inputs, asked.shares):
            found.append(one)
            save(
                found, workload.title, asked
            )  # what was measured stays if a later one takes too long
        measure_times([one.variant for one in found if not one.note], asked.rounds)
    rows, missed = save(found, workload.title, asked)
    print_results(f"memory-{asked.model}", rows, missed)
    return 1 if missed else 0


def save(
    found: Sequence[Measured], title: str, asked: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[str]]:
    rows, missed = [asdict(row) for row in rows_of(found)], missed_goals(found)
    facts = environment() | {"model": title, "rounds": asked.rounds}
    made_by = f"gpu.memory --model {asked.model}"
    save_results(f"memory-{asked.model}", rows, facts, missed, asked.output, rows, made_by)
    return rows, missed


if __name__ == "__main__":
    sys.exit(main())
