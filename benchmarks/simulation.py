"""How far simulated peaks are from those of generated code, over the architectures of coverage.

Where generated code cannot be followed, a budget is held by the plan's simulated peak and a margin
(``satcompile.compile.code.UNREADABLE_MARGIN``). Here the code can be followed: each architecture is
asked for a budget of one byte, which is answered with its floor, and for that the code of its
lowest plans and of torch's own is generated, not compiled. Of each plan, the ratio of what its code
allocates at the peak to what was simulated.

    python -m benchmarks.simulation [--architectures gpt2 resnet ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

import satcompile
from benchmarks import environment, print_results, save_results
from benchmarks.coverage.architecture import Architecture, loss_of
from benchmarks.coverage.architectures import ARCHITECTURES
from benchmarks.models import forget
from benchmarks.workloads import quiet_transformers
from satcompile.compile import rounds
from satcompile.compile.code import UNREADABLE_MARGIN
from satcompile.compile.generation import Generated


@contextmanager
def ratios_seen() -> Iterator[list[float]]:
    """Collect, for each plan whose code is generated inside, its peak over the simulated one."""
    found: list[float] = []
    generate = rounds.generate

    def noted(*args: Any) -> Generated:
        made = generate(*args)
        if made.walk is not None:
            simulated_bytes = made.graphs.plan.profile.peak_bytes
            found.append(made.walk.peak_bytes / max(1, simulated_bytes))
        return made

    rounds.generate = noted
    try:
        yield found
    finally:
        rounds.generate = generate


def row(architecture: Architecture) -> dict[str, Any]:
    """The row of one architecture; ``note`` says why there are no plans."""
    note = ""
    with ratios_seen() as found:
        try:
            torch.manual_seed(0)
            model, inputs = architecture.build().train(), architecture.inputs()
            run = torch.compile(model, backend="sat", options={"memory_budget": 1})
            loss_of(run(**inputs)).backward()
        except satcompile.BudgetError:
            pass
        except Exception as error:  # whatever torch or a model cannot do is a row, too
            note = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    forget()
    return {
        "architecture": architecture.name,
        "plans": len(found),
        "lowest": min(found, default=None),
        "median": median(found) if found else None,
        "highest": max(found, default=None),
        "note": note,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    chosen = [a for a in ARCHITECTURES.values() if not a.missing]
    if asked.architectures:
        chosen = [ARCHITECTURES[name] for name in asked.architectures]
    rows: list[dict[str, Any]] = []
    with quiet_transformers():
        for architecture in chosen:
            rows.append(row(architecture))
            print(*rows[-1].values(), flush=True)
            save(rows, asked.output)
    print_results("simulation", rows, missed_goals(rows))
    return 1 if missed_goals(rows) else 0


def missed_goals(rows: Sequence[dict[str, Any]]) -> list[str]:
    highest = [r for r in rows if r["highest"] is not None]
    over = [r for r in highest if r["highest"] > 1 + UNREADABLE_MARGIN]
    return [
        f"{r['architecture']}: code takes {r['highest']:.3f} of what was simulated, over the margin"
        for r in over
    ]


def save(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    plans = sum(row["plans"] for row in rows)
    facts = environment() | {"plans": plans, "margin": UNREADABLE_MARGIN}
    save_results("simulation", rows, facts, missed_goals(rows), folder, rows)


if __name__ == "__main__":
    sys.exit(main())
