"""Benchmarks, one command each; what they share: facts of the machine, and results as files."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def environment() -> dict[str, Any]:
    """What a result depends on: versions, date, and the machine."""
    import torch

    packages = ("torch", "satcompile", "scipy", "transformers")
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> str:
    """The processor's name as Linux knows it; elsewhere what Python says."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_results(
    name: str,
    rows: Sequence[dict[str, Any]],
    facts: dict[str, Any],
    missed: Sequence[str],
    folder: Path,
    made_by: str | None = None,
) -> None:
    """``name.json`` and ``name.md`` in ``folder``, and the table on the terminal.

    ``made_by`` is the module that was run, with its arguments, where ``name`` does not say it.
    """
    save_results(name, rows, facts, missed, folder, rows, made_by)
    print_results(name, rows, missed)


def save_results(
    name: str,
    rows: Sequence[dict[str, Any]],
    facts: dict[str, Any],
    missed: Sequence[str],
    folder: Path,
    shown: Sequence[dict[str, Any]],
    made_by: str | None = None,
) -> None:
    """``name.json`` with the rows, and ``name.md`` with the table of what is shown of them."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"environment": facts, "missed_goals": list(missed), "rows": list(rows)}
    (folder / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n")
    text = _markdown(name, made_by or name, shown, facts, missed)
    (folder / f"{name}.md").write_text(text)


def print_results(name: str, shown: Sequence[dict[str, Any]], missed: Sequence[str]) -> None:
    table = Table(*shown[0], title=name)
    for row in shown:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console(width=160)
    console.print(table)
    for goal in missed:
        console.print(f"missed: {goal}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else (f"{value:.0f}" if isinstance(value, float) else str(value))
    )


def _markdown(
    name: str,
    made_by: str,
    rows: Sequence[dict[str, Any]],
    facts: dict[str, Any],
    missed: Sequence[str],
) -> str:
    head = list(rows[0])
    lines = [
        f"# {name}",
        "",
        f"Made by `python -m benchmarks.{made_by}`: "
        + ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None)
        + ".",
        "",
        "| " + " | ".join(key.replace("_", " ") for key in head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(_cell(row[key]) for key in head) + " |" for row in rows),
        "",
        *(["Goals missed:", ""] if missed else ["All goals reached."]),
        *(f"- {goal}" for goal in missed),
    ]
    return "\n".join(lines) + "\n"
