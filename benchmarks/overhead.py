"""What a call costs before its graph runs: ours beside torch.compile's, with the same code.

Budgets are far above every peak, so that the plan is torch's own and the compiled code is the
same: what is left between the two is what we do at each call. Steps are tiny, taken in
alternation, and compared pair by pair. Twelve blocks are compiled one by one, graphs break,
sizes vary and return or never return, and a million other objects live in the process.

    python -m benchmarks.overhead [--rounds 300] [--only breaks] [--output benchmarks/results]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import median
from types import FunctionType
from typing import Any

import torch
from torch import nn

from benchmarks import environment, write_results
from satcompile.torch_compat.dynamo import compiled_graphs

WIDTH, ROWS, PLENTY = 64, 64, "64GiB"
WARM_STEPS, RETURNING = 24, 16
LIVE_OBJECTS = 1_000_000
GOAL_US, GOAL_SHARE = 50.0, 0.02
LONG_US = 2_500.0  # of a step: in a shorter one, the goal in microseconds is more than its share

Inputs = Callable[[], torch.Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))


class Blocks(nn.Module):
    """One graph, of as many parameters as ``count`` blocks have."""

    def __init__(self, block: type[nn.Module], count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Broken(Blocks):
    """A graph a block."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
            torch._dynamo.graph_break()
        return x


class Routed(nn.Module):
    """Experts, each of which gets the rows that it is chosen for: sizes follow from the data."""

    def __init__(self, block: type[nn.Module], count: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(block() for _ in range(count))
        self.router = nn.Linear(WIDTH, count)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = self.router(x).argmax(-1)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = torch.nonzero(chosen == number).squeeze(-1)
            result = result.index_add(0, rows, expert(x[rows]))
        return result


_copies = itertools.count()


def with_own_code(kind: type[nn.Module]) -> type[nn.Module]:
    """The class with a ``forward`` whose code is its own: Dynamo caches by code, and backends that
    are compared must not share a cache."""
    forward = kind.forward
    code = forward.__code__.replace(co_filename=f"<copy {next(_copies)} of {kind.__name__}>")
    copied = FunctionType(code, forward.__globals__, forward.__name__, forward.__defaults__)
    return type(kind.__name__, (kind,), {"forward": copied})


def always(seed: int) -> Inputs:
    """One input for all steps."""
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return lambda: x


def returning(seed: int) -> Inputs:
    """Sizes that come again and again."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(ROWS + 4 * i, WIDTH, generator=generator) for i in range(RETURNING)]
    order = itertools.cycle(random.Random(seed).sample(made, len(made)))
    return lambda: next(order)


def never_again(seed: int) -> Inputs:
    """Sizes of which each comes once."""
    generator, rows = torch.Generator().manual_seed(seed), itertools.count(ROWS)
    return lambda: torch.randn(next(rows), WIDTH, generator=generator)


def fresh_rows(seed: int) -> Inputs:
    """Other data at each step, so that what is routed by it has other sizes."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(ROWS, WIDTH, generator=generator)


@dataclass(frozen=True)
class Case:
    """A way of calling compiled graphs.

    Args:
        graphs: calls of compiled graphs a step.
        make: a model from classes whose code is its own.
        inputs: by seed, what gives each step its input.
        blockwise: whether each block is compiled by itself.
    """

    name: str
    graphs: int
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs] = always
    blockwise: bool = False
    dynamic: bool | None = None
    live_objects: int = 0


def _blocks(kind: type[nn.Module], count: int) -> nn.Module:
    return with_own_code(kind)(with_own_code(Block), count)


CASES = [
    Case("one graph", 1, partial(_blocks, Blocks, 2)),
    Case("one graph, 400 parameters", 1, partial(_blocks, Blocks, 100)),
    Case("breaks", 6, partial(_blocks, Broken, 6)),
    Case("blocks one by one", 12, partial(_blocks, Blocks, 12), blockwise=True),
    Case("sizes that return", 1, partial(_blocks, Blocks, 2), returning, dynamic=True),
    Case("sizes that never return", 1, partial(_blocks, Blocks, 2), never_again, dynamic=True),
    Case("rows routed by data", 4, partial(_blocks, Routed, 4), fresh_rows),
    Case("a million objects", 1, partial(_blocks, Blocks, 2), live_objects=LIVE_OBJECTS),
    Case(
        "a million objects, rows routed by data", 4, partial(_blocks, Routed, 4), fresh_rows,
        live_objects=LIVE_OBJECTS,
    ),
]  # fmt: skip


class Runner:
    """A model of a case under one backend."""

    def __init__(self, case: Case, backend: str, options: dict[str, Any] | None) -> None:
        torch.manual_seed(0)
        self._model = case.make()
        self._next_input = case.inputs(1)
        settings = {"backend": backend, "options": options, "dynamic": case.dynamic}
        if case.blockwise:
            for block in self._model.blocks:
                block.compile(**settings)
        else:
            self._model.compile(**settings)

    def step_us(self) -> float:
        """Microseconds of forward and backward."""
        x = self._next_input()
        for parameter in self._model.parameters():
            parameter.grad = None
        started = time.perf_counter_ns()
        self._model(x).sum().backward()
        return (time.perf_counter_ns() - started) / 1e3


@dataclass(frozen=True)
class Row:
    case: str
    budget: str
    calls: int
    torch_step_us: float
    overhead_us_per_call: float
    overhead_share: float


def measured(case: Case, rounds: int) -> Iterator[Row]:
    torch._dynamo.reset()
    alive = [[number] for number in range(case.live_objects)]
    runners = {
        "torch": Runner(case, "inductor", None),
        "none": Runner(case, "sat", None),
        "plenty": Runner(case, "sat", {"memory_budget": PLENTY}),
    }
    for _ in range(WARM_STEPS):
        for runner in runners.values():
            runner.step_us()
    times = _alternated(list(runners.values()), rounds)
    del alive
    torch_us = times[0]
    for budget, ours_us in zip(("none", "plenty"), times[1:], strict=True):
        added_us = median(ours - theirs for ours, theirs in zip(ours_us, torch_us, strict=True))
        step_us = median(torch_us)
        yield Row(
            case.name, budget, case.graphs, step_us, added_us / case.graphs, added_us / step_us
        )


def _alternated(runners: Sequence[Runner], rounds: int) -> list[list[float]]:
    """Each runner's steps; round by round, each runner first as often as any other."""
    graphs_before = compiled_graphs()
    times: list[list[float]] = [[] for _ in runners]
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            for position in range(len(runners)):
                at = (number + position) % len(runners)
                times[at].append(runners[at].step_us())
    finally:
        gc.enable()
    if compiled_graphs() != graphs_before:
        print("note: something was compiled while times were taken", file=sys.stderr)
    return times


def missed_goals(rows: Sequence[Row]) -> list[str]:
    missed = []
    for row in rows:
        what = f"{row.case}, budget {row.budget}"
        if row.overhead_us_per_call > GOAL_US:
            missed.append(f"{what}: {row.overhead_us_per_call:.0f} us a call, wanted {GOAL_US:.0f}")
        if row.torch_step_us >= LONG_US and row.overhead_share > GOAL_SHARE:
            missed.append(f"{what}: {row.overhead_share:.1%} of the step, wanted {GOAL_SHARE:.0%}")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--only", default="*", help="a pattern of cases' names")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    cases = [case for case in CASES if fnmatch(case.name, asked.only)]
    if not cases:
        names = ", ".join(case.name for case in CASES)
        parser.error(f"no case is named {asked.only!r}; there are {names}")
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64
    rows: list[Row] = []
    for case in cases:
        rows += measured(case, asked.rounds)
        print(f"{case.name}: done", flush=True)
    missed = missed_goals(rows)
    write_results("overhead", [asdict(row) for row in rows], environment(), missed, asked.output)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
