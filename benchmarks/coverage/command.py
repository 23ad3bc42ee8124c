"""The command: chooses what to run, runs it in processes, keeps and shows what came out."""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import environment
from benchmarks.coverage import records as store
from benchmarks.coverage import tables
from benchmarks.coverage.architectures import ARCHITECTURES
from benchmarks.coverage.process import run_job
from benchmarks.coverage.rows import (
    BUDGETS,
    VARIANTS,
    Job,
    Key,
    Record,
    by_age,
    key_of,
    wanted,
)

TIME_LIMIT_S = 300  # of a row
PACKAGES = ("torch", "satcompile", "transformers", "peft", "diffusers", "timm")


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def run(jobs: Sequence[Job], asked: argparse.Namespace) -> dict[Key, Record]:
    """Run until the minutes are over; every row is on disk as soon as it is known."""
    file = asked.output / "coverage.json"
    records = store.load(file)
    deadline = time.monotonic() + 60 * asked.minutes
    stamp = {"versions": versions()}
    for job in by_age(jobs, records):
        if time.monotonic() > deadline:
            break
        for record in run_job(job, ARCHITECTURES[job.architecture].family, asked.limit):
            when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            records[key_of(record)] = record | stamp | {"when": when}
            save(records, asked.output)
            print(f"{key_of(record)}: {record['result']} {record.get('detail', '')}", flush=True)
    return records


def save(records: dict[Key, Record], folder: Path) -> None:
    store.save(folder / "coverage.json", records)
    facts: dict[str, Any] = environment()
    planned = sum(len(job.keys) for job in wanted(ARCHITECTURES))
    page = tables.page(list(records.values()), facts, planned)
    store.write_whole(folder / "coverage.md", page)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Architectures x budgets x variants.")
    parser.add_argument("--minutes", type=float, default=30, help="of running; default 30")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="PATTERN",
        help='an architecture, or a row as in "qwen3*/plain/*"',
    )  # fmt: skip
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=BUDGETS)
    parser.add_argument("--list", action="store_true", help="the rows, and how each ended last")
    parser.add_argument("--limit", type=float, default=TIME_LIMIT_S, help="seconds of a row")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(arguments)


def _stop(number: int, frame: Any) -> NoReturn:
    """Leave through every ``finally``: a worker must not outlive the command."""
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse(arguments)
    signal.signal(signal.SIGTERM, _stop)
    jobs = wanted(ARCHITECTURES, asked.only, asked.variants, asked.budgets)
    if not jobs:
        print(f"no row is named {' or '.join(asked.only)}; --list shows them", file=sys.stderr)
        return 2
    if asked.list:
        known = store.load(asked.output / "coverage.json")
        for job in jobs:
            for key in job.keys:
                print(f"{key}: {known[key]['result'] if key in known else 'never run'}")
        return 0
    records = run(jobs, asked)
    chosen = [records[key] for job in jobs for key in job.keys if key in records]
    missed = tables.missed_goals(chosen)
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed else 0
