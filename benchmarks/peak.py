"""Models x budgets: floor, predicted and measured peak, and time; torch's own budget beside ours.

Each model is compiled by torch.compile's default, under torch's activation budget, and by ours at
budgets spread from the floor (what a budget of one byte is answered with) to the default's
measured peak, both ends included. Peaks are real allocations: of the CPU's allocator, or the
counters of the GPU's. Checked for every model, with the exit status:

1. no measured peak is over its budget, and every budget from the floor up is accepted;
2. the peak predicted from the generated code is within 1% of the measured one;
3. a lower budget has no higher peak (1% tolerance);
4. what reports give as the default's peak is within 1% of torch.compile's measured one;
5. the two large models of a GPU: an activation peak 70% below the default's, at 1.10x the time at
   most, and then at 1.05x.

Budgets, floors and peaks are totals: what is alive before the step, and what the step allocates.
Shares and deviations are of what the step allocates alone, which is the stricter reading. The
activation peak is that less the bytes of all gradients, whether or not they exist at the peak.

    python -m benchmarks.peak [--models gpt2 llama-8 ...] [--budgets 10] [--rounds 20]
    python -m benchmarks.peak --quick          # under ten minutes: two models, or one of a GPU

All models at ten budgets take hours on two cores, nearly all of it to compile some twenty variants
of each. With ``--add`` a run keeps the other models' rows of an earlier one, so that they can be
measured one at a time.

Needs matplotlib: ``pip install -e ".[bench]"``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch._functorch import config as functorch_config

import satcompile
from benchmarks import environment, print_results, save_results
from benchmarks.models import WORKLOADS, Inputs, forget, load
from benchmarks.training import Variant, function_of, measure_times, prepare, step, time_ratio
from benchmarks.workloads import quiet_transformers
from satcompile.report.data import GraphReport

# The lower part closely: there the peaks of pytorch issue 197838 rise as the budget falls.
TORCH_BUDGETS = (0.9, 0.7, 0.5, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)
TOLERANCE = 0.01
MARKED_MODELS = ("gpt2-medium", "llama-1b")
MARK_PEAK, MARK_TIMES = 0.30, (1.10, 1.05)


@dataclass
class Case:
    """A variant and what it was asked for.

    Attributes:
        kind: "torch.compile", "torch budget" or "sat".
        graph: the report of its graph, where it is one of ours.
        refused: why there is no plan, where there is none.
    """

    variant: Variant
    kind: str
    torch_budget: float | None = None
    budget_bytes: int | None = None
    graph: GraphReport | None = None
    refused: str = ""


@dataclass(frozen=True)
class Row:
    """One variant of one model.

    Attributes:
        kind: "torch.compile", "torch budget" or "sat".
        budget_bytes, floor_bytes: totals.
        resident_bytes: alive before the step. What follows is beyond it.
        gradient_bytes: of all parameters.
        default_peak_bytes: measured, of torch.compile's default.
        peak_bytes: measured; None where no plan was found.
        predicted_bytes, predicted_default_bytes: as the report of the graph has them.
        compilations: until the generated code was within the budget.
        recompute_share: time of what is computed again, of the forward's, by the cost model.
        time_ratio: to the default's step.
    """

    model: str
    kind: str
    torch_budget: float | None
    budget_bytes: int | None
    floor_bytes: int
    resident_bytes: int
    gradient_bytes: int
    default_peak_bytes: int
    peak_bytes: int | None
    predicted_bytes: int | None = None
    predicted_default_bytes: int | None = None
    compilations: int | None = None
    recompute_share: float | None = None
    time_ratio: float | None = None
    step_ms: float | None = None
    note: str = ""

    @property
    def variant(self) -> str:
        if self.kind == "torch budget":
            return f"{self.kind} {self.torch_budget}"
        if self.kind == "sat":
            return "sat, no budget" if self.budget_share is None else f"sat {self.budget_share:.1%}"
        return self.kind

    @property
    def budget_share(self) -> float | None:
        """What the budget leaves to the step, of the default's measured peak."""
        if self.budget_bytes is None:
            return None
        return (self.budget_bytes - self.resident_bytes) / self.default_peak_bytes

    @property
    def peak_share(self) -> float | None:
        return None if self.peak_bytes is None else self.peak_bytes / self.default_peak_bytes

    @property
    def activation_share(self) -> float | None:
        if self.peak_bytes is None:
            return None
        default = self.default_peak_bytes - self.gradient_bytes
        return (self.peak_bytes - self.gradient_bytes) / default

    @property
    def deviation(self) -> float | None:
        """How far the predicted peak is from the measured one."""
        if self.peak_bytes is None or self.predicted_bytes is None:
            return None
        return self.predicted_bytes / self.peak_bytes - 1

    @property
    def default_deviation(self) -> float | None:
        if self.predicted_default_bytes is None:
            return None
        return self.predicted_default_bytes / self.default_peak_bytes - 1


# -- measuring -------------------------------------------------------------------------------


class Sweep:
    """The variants of one model, compiled and measured one after the other."""

    def __init__(self, name: str, model: nn.Module, inputs: Inputs) -> None:
        self.name, self.model, self.inputs = name, model, inputs
        self.cases: list[Case] = []
        self.floor_bytes = 0

    def run(self, num_budgets: int, torch_budgets: Sequence[float], rounds: int) -> list[Row]:
        self.add(Case(self.variant("torch.compile"), "torch.compile"))
        for budget in torch_budgets:
            variant = self.variant(f"torch budget {budget}")
            with functorch_config.patch(activation_memory_budget=budget):
                self.add(Case(variant, "torch budget", torch_budget=budget))
        self.add(Case(self.variant("sat, no budget", backend="sat"), "sat"))
        self.floor_bytes = self.find_floor()
        top_bytes = self.unlimited.resident_bytes + self.default.peak_bytes
        for budget_bytes in reversed(spread(self.floor_bytes, top_bytes, num_budgets)):
            options = {"memory_budget": budget_bytes}
            variant = self.variant(f"sat {mb(budget_bytes)} MB", backend="sat", options=options)
            self.add(Case(variant, "sat", budget_bytes=budget_bytes))
        measure_times([case.variant for case in self.cases if not case.refused], rounds)
        return [self.row(case) for case in self.cases]

    def variant(self, name: str, **settings: Any) -> Variant:
        run = torch.compile(function_of(self.model, self.inputs), **settings)
        return Variant(name, run, self.model)

    def add(self, case: Case) -> None:
        """Compile and measure; a budget that is refused is a result as well."""
        self.cases.append(case)
        variant, started = case.variant, time.perf_counter()
        try:
            graphs = prepare(variant)
        except satcompile.SatcompileError as error:
            case.refused = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            print(f"{self.name}, {variant.name}: {case.refused}", flush=True)
            return
        if graphs != 1:
            raise RuntimeError(
                f"{self.name} makes {graphs} graphs: the budget holds for each alone"
            )
        if case.kind == "sat":
            case.graph = satcompile.report(variant.run).graphs[-1]
        seconds = time.perf_counter() - started
        print(
            f"{self.name}, {variant.name}: the step's peak is {mb(variant.peak_bytes)} MB, "
            f"{variant.peak_bytes / self.default.peak_bytes:.1%} of the default's ({seconds:.0f} s)",
            flush=True,
        )

    def find_floor(self) -> int:
        """The floor by generated code: what a budget of one byte is answered with."""
        try:
            step(self.variant("floor", backend="sat", options={"memory_budget": 1}).run)
        except satcompile.BudgetError as error:
            return error.floor_bytes
        raise RuntimeError(f"{self.name}: a budget of one byte was accepted")

    @property
    def default(self) -> Variant:
        return self.cases[0].variant

    @property
    def unlimited(self) -> GraphReport:
        """The report of our plan without a budget: what is resident is the same for all."""
        return next(case.graph for case in self.cases if case.graph is not None)

    def row(self, case: Case) -> Row:
        variant, graph = case.variant, case.graph
        timed = bool(variant.times_s)
        parameters = [value for value in self.model.parameters() if value.requires_grad]
        return Row(
            model=self.name,
            kind=case.kind,
            torch_budget=case.torch_budget,
            budget_bytes=case.budget_bytes,
            floor_bytes=self.floor_bytes,
            resident_bytes=self.unlimited.resident_bytes,
            gradient_bytes=sum(value.nbytes for value in parameters),
            default_peak_bytes=self.default.peak_bytes,
            peak_bytes=None if case.refused else variant.peak_bytes,
            predicted_bytes=graph and graph.predicted_peak_bytes - graph.resident_bytes,
            predicted_default_bytes=graph and graph.default_peak_bytes - graph.resident_bytes,
            compilations=graph and graph.rounds,
            recompute_share=graph and graph.recompute_time_us / graph.forward_time_us,
            time_ratio=time_ratio(variant, self.default) if timed else None,
            step_ms=median(variant.times_s) * 1e3 if timed else None,
            note=case.refused,
        )


def spread(lowest: int, highest: int, count: int) -> list[int]:
    """``count`` budgets at equal distances, both ends included."""
    if count == 1:
        return [lowest]
    return [lowest + (highest - lowest) * i // (count - 1) for i in range(count)]


def measure(name: str, asked: argparse.Namespace) -> list[Row]:
    """All rows of one model. Nothing of it is alive when this returns."""
    model, inputs = load(WORKLOADS[name], asked.device)
    rows = Sweep(name, model, inputs).run(asked.budgets, asked.torch_budgets, asked.rounds)
    del model, inputs
    forget()
    return rows


# -- what has to hold ------------------------------------------------------------------------


def missed_goals(rows: Sequence[Row]) -> list[str]:
    """A line for everything that does not hold; empty when all goals are met."""
    missed = []
    for name in models_of(rows):
        found = [row for row in rows if row.model == name]
        ours = [row for row in found if row.kind == "sat"]
        missed += over_budget(ours) + badly_predicted(ours) + badly_predicted_default(ours)
        missed += [f"{name}, sat: {line}" for line in rises(ours)] + missed_marks(ours)
    return missed


def over_budget(rows: Sequence[Row]) -> list[str]:
    missed = []
    for row in rows:
        if row.peak_bytes is None:
            missed.append(f"{row.model}, {row.variant}: refused, {row.note}")
        elif row.budget_bytes is not None:
            excess_bytes = row.resident_bytes + row.peak_bytes - row.budget_bytes
            if excess_bytes > 0:
                missed.append(f"{row.model}, {row.variant}: {excess_bytes} bytes over its budget")
    return missed


def badly_predicted(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row.model}, {row.variant}: predicted {row.deviation:+.2%} of the measured peak"
        for row in rows
        if row.deviation is not None and abs(row.deviation) > TOLERANCE
    ]


def badly_predicted_default(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row.model}, {row.variant}: default_peak_bytes is {row.default_deviation:+.2%} of "
        "torch.compile's measured peak"
        for row in rows
        if row.default_deviation is not None and abs(row.default_deviation) > TOLERANCE
    ]


def rises(rows: Sequence[Row]) -> list[str]:
    """Where a lower budget has a higher peak, against the least of all higher budgets."""
    found = []
    least: Row | None = None
    for row in sorted(_on_curve(rows), key=_setting, reverse=True):
        if least is not None and row.peak_bytes > (1 + TOLERANCE) * least.peak_bytes:
            found.append(
                f"at {_setting(row):.3g} the peak is {row.peak_bytes / least.peak_bytes - 1:.1%} "
                f"higher than at {_setting(least):.3g}"
            )
        if least is None or row.peak_bytes < least.peak_bytes:
            least = row
    return found


def missed_marks(rows: Sequence[Row]) -> list[str]:
    """The marks of the GPU's models. Without times there is nothing to say."""
    timed = [row for row in rows if row.time_ratio is not None]
    if not timed or timed[0].model not in MARKED_MODELS:
        return []
    low = [row.time_ratio for row in timed if row.activation_share <= MARK_PEAK]
    best = f"best {min(low):.3f}x" if low else "no plan has so low a peak"
    return [
        f"{timed[0].model}: activation peak {1 - MARK_PEAK:.0%} below the default's at {mark}x: {best}"
        for mark in MARK_TIMES
        if not low or min(low) > mark
    ]


def models_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.model for row in rows))


def _on_curve(rows: Sequence[Row]) -> list[Row]:
    """The rows that were given a budget, ours or torch's, and have a peak."""
    return [row for row in rows if row.peak_bytes is not None and _setting(row) is not None]


def _setting(row: Row) -> float | None:
    """What was asked: a share of the saved bytes of torch, of the default's peak of ours."""
    return row.torch_budget if row.kind == "torch budget" else row.budget_share


# -- results ---------------------------------------------------------------------------------


def mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.4g}"


def table_row(row: Row) -> dict[str, Any]:
    def total_mb(num_bytes: int | None) -> str | None:
        return None if num_bytes is None else mb(row.resident_bytes + num_bytes)

    return {
        "model": row.model,
        "variant": row.variant,
        "budget_mb": row.budget_bytes and mb(row.budget_bytes),
        "floor_mb": mb(row.floor_bytes) if row.kind == "sat" else None,
        "predicted_mb": total_mb(row.predicted_bytes),
        "measured_mb": total_mb(row.peak_bytes),
        "off": None if row.deviation is None else f"{row.deviation:+.2%}",
        "peak_share": row.peak_share,
        "activation_share": row.activation_share,
        "time_ratio": row.time_ratio,
        "recompute_share": row.recompute_share,
        "compilations": row.compilations,
        "note": row.note,
    }


def curve(rows: Sequence[Row]) -> str:
    """Budget and measured peak, both as shares, from the largest budget to the least."""
    points = sorted(_on_curve(rows), key=_setting, reverse=True)
    return ", ".join(f"{_setting(row):.3g}: {row.peak_share:.3f}" for row in points)


def print_curves(rows: Sequence[Row]) -> None:
    print("measured share of the default's peak, by budget")
    for name in models_of(rows):
        for kind in ("torch budget", "sat"):
            found = [row for row in rows if (row.model, row.kind) == (name, kind)]
            print(f"  {name}, {kind}: {curve(found)}")
            for line in rises(found):
                print(f"    rises: {line}")


def facts_of(rows: Sequence[Row], asked: argparse.Namespace) -> dict[str, Any]:
    torch_rises = [
        f"{name} {line}"
        for name in models_of(rows)
        for line in rises([row for row in rows if (row.model, row.kind) == (name, "torch budget")])
    ]
    return conditions(asked) | {
        "models": "; ".join(f"{name}: {WORKLOADS[name].title}" for name in models_of(rows)),
        "higher peaks of torch's budget at lower budgets:": "; ".join(torch_rises) or "none",
    }


def conditions(asked: argparse.Namespace) -> dict[str, Any]:
    return environment() | {"device": str(asked.device), "rounds": asked.rounds}


def save(rows: Sequence[Row], asked: argparse.Namespace) -> None:
    data, shown = [asdict(row) for row in rows], [table_row(row) for row in rows]
    facts = facts_of(rows, asked)
    save_results("peak", data, facts, missed_goals(rows), asked.output, shown)


def earlier_rows(asked: argparse.Namespace) -> list[Row]:
    """Rows of the models that are not asked for, from the results that are there already.

    Raises:
        ValueError: they come from other conditions, and one table cannot hold both.
    """
    file = asked.output / "peak.json"
    if not file.exists():
        return []
    data = json.loads(file.read_text())
    for key, value in conditions(asked).items():
        if key != "date" and data["environment"].get(key) != value:
            was = data["environment"].get(key)
            raise ValueError(f"{file} was made with {key} {was}, not {value}")
    return [Row(**row) for row in data["rows"] if row["model"] not in asked.models]


# -- the command -----------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    runnable = [name for name, workload in WORKLOADS.items() if gpu or not workload.gpu]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=runnable)
    parser.add_argument("--budgets", type=int, help="how many, from the floor up; default 10")
    parser.add_argument("--torch-budgets", type=float, nargs="*")
    parser.add_argument("--rounds", type=int, help="alternations; 0 takes no times; default 20")
    parser.add_argument("--add", action="store_true", help="keep other models' earlier rows")
    parser.add_argument("--quick", action="store_true", help="a run of under ten minutes")
    parser.add_argument("--device", type=torch.device, default="cuda" if gpu else "cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    quick_models = ["gpt2-medium"] if gpu else ["gpt2", "resnet"]
    defaults = {
        "models": quick_models if asked.quick else runnable,
        "budgets": 3 if asked.quick else 10,
        "torch_budgets": (0.5, 0.1) if asked.quick else TORCH_BUDGETS,
        "rounds": 5 if asked.quick else 20,
    }
    for name, value in defaults.items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    if asked.budgets < 1:
        parser.error("--budgets: at least one")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse(arguments)
    # Both before an hour of measuring: matplotlib may be missing, the earlier rows unfit.
    from benchmarks.plots import plot_peaks

    rows = earlier_rows(asked) if asked.add else []
    with quiet_transformers():
        for name in asked.models:
            rows += measure(name, asked)
            save(rows, asked)  # now: what was measured stays if a later model fails
    if asked.rounds:
        plot_peaks(rows, asked.output / "peak.svg")
    missed = missed_goals(rows)
    print_results("peak", [table_row(row) for row in rows], missed)
    print_curves(rows)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
