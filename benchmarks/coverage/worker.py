"""The process of one job: eager, torch.compile, then each budget; one line of JSON a row.

python -m benchmarks.coverage.worker ARCHITECTURE VARIANT BUDGET [BUDGET ...]
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from torch._inductor import config as inductor_config

import satcompile
from benchmarks.coverage.architecture import Architecture, Inputs
from benchmarks.coverage.architectures import ARCHITECTURES
from benchmarks.coverage.causes import (
    Failure,
    Figures,
    failure_of,
    judged,
)
from benchmarks.coverage.rows import (
    BUDGETS,
    EAGER_FAILS,
    NEAR_FLOOR,
    NO_BUDGET,
    NOT_APPLICABLE,
    NOT_INSTALLED,
    NOTHING_COMPILED,
    SHARE,
    Record,
)
from benchmarks.coverage.values import (
    OF_TORCH,
    TOLERANCES,
    Distance,
    Values,
    distance,
    least_precise,
    step,
    values_after,
)
from benchmarks.coverage.variants import NotApplicable, applied, context_of
from satcompile.torch_compat.dynamo import compiled_graphs

CHECKED_STEPS = (0, 2)  # the first, and one after whatever a first step makes known
ROUNDS = 7
FLOOR_MARGIN, NEAR_SHARE = 0.01, 0.2


@dataclass
class Trained:
    """One way to run the job's step, on a copy of the model of its own."""

    model: nn.Module
    run: Callable[[], Any]
    values: list[Values] = field(default_factory=list)
    graphs: int = 0
    compile_s: float = 0.0
    peak_bytes: int = 0


class Study:
    """One architecture under one variant: what eager and torch.compile do with it."""

    def __init__(self, architecture: Architecture, variant: str) -> None:
        self.variant = variant
        self.model, self.inputs, self.dtype = _loaded(architecture, variant)
        self.eager = self._trained(lambda model: model)
        self.torch: Trained | None = None
        self.torch_failure: Failure | None = None
        self.floor_bytes: int | None = None
        self.default_bytes: int | None = None
        precision = least_precise(self._runner(copy.deepcopy(self.model)))
        self.tolerance = max(TOLERANCES[precision], TOLERANCES[self.dtype])
        self.torch_distance = Distance(0.0, "")

    def compare_torch(self) -> None:
        """Compile with torch.compile's default: what it cannot do, nobody asks of us."""
        try:
            self.torch = self._trained(lambda model: torch.compile(model))
        except Exception as error:  # any, of a compiler and of any model: a result
            self.torch_failure = failure_of(error)
            return
        self.torch_distance = self.distance_of(self.torch)
        self.torch.peak_bytes = self._peak(self.torch)

    def distance_of(self, trained: Trained) -> Distance:
        pairs = zip(trained.values, self.eager.values, strict=True)
        return max((distance(a, b) for a, b in pairs), key=lambda found: found.share)

    def row(self, budget: str) -> Record:
        """Everything that is known of one budget."""
        try:
            asked = self._budget(budget)
            compiled: list[Any] = []

            def compiled_by_us(model: nn.Module) -> Callable[..., Any]:
                options = {} if asked is None else {"memory_budget": asked}
                compiled.append(torch.compile(model, backend="sat", options=options))
                return compiled[0]

            ours = self._trained(compiled_by_us)
            ours.peak_bytes = self._peak(ours)
            figures = self._figures(ours, compiled[0])
        except Exception as error:  # any: a row that failed is a row, and says why
            failure = failure_of(error)
            known: Record = {"floor_bytes": self.floor_bytes}
            if isinstance(error, satcompile.BudgetError):
                known["budget_bytes"] = error.budget_bytes
                self.floor_bytes = self.floor_bytes or error.floor_bytes
            return known | judged(budget, failure, self.torch_failure)
        if budget == NO_BUDGET:
            self.default_bytes = figures.default_bytes
        return self._record(ours, figures) | judged(budget, figures, self.torch_failure)

    def _budget(self, budget: str) -> int | str | None:
        if budget == NO_BUDGET:
            return None
        if budget == SHARE:
            return SHARE
        if self.floor_bytes is None:
            self.floor_bytes = self._floor()
        above = FLOOR_MARGIN * self.floor_bytes
        if budget == NEAR_FLOOR:
            default_bytes = self.default_bytes or self._torch_bytes()
            above = max(above, NEAR_SHARE * (default_bytes - self.floor_bytes))
        return self.floor_bytes + int(above)

    def _floor(self) -> int:
        """What a budget of one byte is answered with; where that says that it is the floor of a part
        alone, what the step is answered with that is given as much."""
        asked, covers_step = 1, False
        while not covers_step:
            options = {"memory_budget": asked}
            try:
                self._trained(partial(torch.compile, backend="sat", options=options))
            except satcompile.BudgetError as error:
                if error.floor_bytes <= asked:
                    raise RuntimeError(f"a floor of {asked} bytes is not met: {error}") from error
                asked, covers_step = error.floor_bytes, error.covers_step
            else:
                break
        if asked == 1:
            raise RuntimeError("a budget of one byte was accepted")
        return asked

    def _torch_bytes(self) -> int:
        """What a step of torch.compile's takes, with what is there before it; 0 where it fails."""
        if self.torch is None:
            return 0
        there = [*self.model.parameters(), *self.model.buffers(), *self.inputs.values()]
        return self.torch.peak_bytes + sum(t.nbytes for t in there if isinstance(t, torch.Tensor))

    def _runner(self, model: Callable[..., Any]) -> Callable[[], Any]:
        def run() -> Any:
            with context_of(self.variant):
                return model(**self.inputs)

        return run

    def _trained(self, compiled: Callable[[nn.Module], Callable[..., Any]]) -> Trained:
        """A fresh copy of the model after three steps."""
        model = copy.deepcopy(self.model)
        trained = Trained(model, self._runner(compiled(model)))
        before, started = compiled_graphs(), time.process_time()
        for index in range(max(CHECKED_STEPS) + 1):
            output = step(trained.run, model)
            if index == 0:
                trained.compile_s = time.process_time() - started
            if index in CHECKED_STEPS:
                trained.values.append(values_after(model, output))
        trained.graphs = compiled_graphs() - before
        return trained

    def _peak(self, trained: Trained) -> int:
        trained.model.zero_grad()
        return satcompile.measure_peak(lambda: step(trained.run, trained.model))

    def _figures(self, ours: Trained, compiled: Any) -> Figures:
        graphs = satcompile.report(compiled).graphs
        ran = [graph for graph in graphs if graph.measured_peak_bytes is not None]
        found = self.distance_of(ours)
        return Figures(
            distance=found,
            tolerance=max(self.tolerance, OF_TORCH * self.torch_distance.share),
            budget_bytes=next((g.budget_bytes for g in ran if g.budget_bytes), None),
            resident_bytes=max((g.resident_bytes for g in ran), default=0),
            predicted_bytes=max((g.predicted_peak_bytes for g in ran), default=None),
            measured_bytes=max((g.measured_peak_bytes or 0 for g in ran), default=None),
            over_bytes=max(
                ((g.measured_peak_bytes or 0) - g.budget_bytes for g in ran if g.budget_bytes),
                default=0,
            ),
            default_bytes=max((g.default_peak_bytes for g in ran), default=None),
            predictions=tuple(sorted({g.prediction for g in ran})),
            rounds=max((g.rounds for g in ran), default=0),
            graphs=len(ran),
        )

    def _record(self, ours: Trained, figures: Figures) -> Record:
        beside = self.torch
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "distance": figures.distance.share,
            "torch_distance": self.torch_distance.share if beside else None,
            "tolerance": figures.tolerance,
            "budget_bytes": figures.budget_bytes,
            "floor_bytes": self.floor_bytes,
            "resident_bytes": figures.resident_bytes,
            "predicted_bytes": figures.predicted_bytes,
            "predicted_by": " and ".join(figures.predictions),
            "measured_bytes": figures.measured_bytes,
            "default_bytes": figures.default_bytes,
            "torch_peak_bytes": beside and figures.resident_bytes + beside.peak_bytes,
            "rounds": figures.rounds,
            "graphs": ours.graphs,
            "torch_graphs": beside and beside.graphs,
            "compile_s": round(ours.compile_s, 2),
            "torch_compile_s": beside and round(beside.compile_s, 2),
            **(self._times(ours, beside) if beside else {}),
        }

    def _times(self, ours: Trained, beside: Trained) -> Record:
        """Seconds of a step by both, in turns; the ratio is the median of the rounds'."""
        found: list[tuple[float, float]] = []
        for _ in range(ROUNDS):
            found.append((_seconds(ours), _seconds(beside)))
        return {
            "step_ms": round(median(a for a, _ in found) * 1e3, 3),
            "torch_step_ms": round(median(b for _, b in found) * 1e3, 3),
            "step_ratio": round(median(a / b for a, b in found), 3),
        }


def _seconds(trained: Trained) -> float:
    started = time.process_time()
    step(trained.run, trained.model)
    return time.process_time() - started


def _loaded(architecture: Architecture, variant: str) -> tuple[nn.Module, Inputs, torch.dtype]:
    """The model, its inputs, and the most precise type in which both run uncompiled.

    Raises:
        NotApplicable: the variant means nothing for it.
    """
    torch.manual_seed(0)
    model = applied(variant, architecture.build().train())
    inputs = architecture.inputs()
    wanted = torch.float32 if variant == "bf16 autocast" else architecture.dtype
    for dtype in dict.fromkeys((wanted, torch.float32)):
        placed = copy.deepcopy(model).to(dtype)
        given = {name: _as_type(value, dtype) for name, value in inputs.items()}
        try:
            with context_of(variant):
                step(partial(copy.deepcopy(placed), **given), placed)
        except Exception:
            if dtype == torch.float32:
                raise  # not even so: the architecture's definition is wrong
            continue
        return placed, given, dtype
    raise AssertionError


def _as_type(value: Any, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value


def rows_of(name: str, variant: str, budgets: Sequence[str]) -> Iterator[Record]:
    """One record a budget, in the order of ``BUDGETS``; rows that mean nothing say so."""
    architecture = ARCHITECTURES[name]
    ordered = [budget for budget in BUDGETS if budget in budgets]
    base = {"architecture": name, "family": architecture.family, "variant": variant}
    if architecture.missing:
        note = {"result": NOT_INSTALLED, "detail": ", ".join(architecture.missing)}
        yield from (base | {"budget": budget} | note for budget in ordered)
        return
    try:
        study = Study(architecture, variant)
    except Exception as error:  # an architecture that does not run here, by any error
        result = NOT_APPLICABLE if isinstance(error, NotApplicable) else EAGER_FAILS
        note = {"result": result, "detail": failure_of(error).text}
        yield from (base | {"budget": budget} | note for budget in ordered)
        return
    study.compare_torch()
    if study.torch is not None and not study.torch.graphs:
        note = {"result": NOTHING_COMPILED, "detail": "Dynamo left all of it to eager"}
        yield from (base | {"budget": budget} | note for budget in ordered)
        return
    for budget in ordered:
        started = time.perf_counter()
        record = study.row(budget)
        seconds = round(time.perf_counter() - started, 1)
        yield base | {"budget": budget} | record | {"seconds": seconds}


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """What every row's figures depend on, the same for all of them."""
    dynamo = torch._dynamo.config.patch(
        recompile_limit=64,  # several copies of one model are compiled in one process
        allow_rnn=True,  # else LSTMs run eager, whatever the backend
    )
    inductor = inductor_config.patch({
        "cpp.simdlen": 1,
        "compile_threads": 1,
        "fx_graph_cache": False,  # what comes from the cache has no compile time
    })  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with dynamo, inductor, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def warm_up() -> None:
    """The first compilation of a process imports and compiles much that later ones have."""
    for backend in ("inductor", "sat"):
        layer = nn.Linear(3, 2)
        torch.compile(layer, backend=backend)(torch.ones(2, 3)).sum().backward()


def main(arguments: Sequence[str]) -> int:
    name, variant, *budgets = arguments
    with settled():
        if not ARCHITECTURES[name].missing:
            warm_up()
        for record in rows_of(name, variant, budgets):
            print("ROW", json.dumps(record), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
