"""Everything about one GPU within so many minutes: rates, memory, times, kernels, and the tests.

Sections run one after the other, each in a process of its own; what was measured stays if a later one
fails, runs out of time or is not reached. ``gpu.md`` in the folder of results says how each ended.

    python -m benchmarks.gpu [--minutes 25] [--only rates memory ...] [--output benchmarks/results/gpu]

On a stub of a GPU (its name ends in "stub") sizes are small, and times mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment, print_results, save_results
from benchmarks.gpu.sections import SECTIONS, Section

NO_GPU = 2  # the exit code
_SAYS = {0: "done", 1: "done, goals missed or tests failed"}


def run(section: Section, output: Path, seconds: float, is_small: bool) -> dict[str, Any]:
    """Its process, for at most so long; what it prints goes into a file."""
    log = output / f"{section.name.replace(', ', '-').replace(' ', '_')}.log"
    command = [sys.executable, *section.command(is_small)]
    if any(part.startswith("benchmarks.") for part in command):
        command += ["--output", str(output)]
    started = time.monotonic()
    with log.open("w") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, check=False
            ).returncode
            ended = _SAYS.get(code, f"failed: exit status {code}")
        except subprocess.TimeoutExpired:
            ended = f"ended after {seconds:.0f} s"
    last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
    return {
        "section": section.name,
        "result": ended,
        "seconds": time.monotonic() - started,
        "last_line": "".join(last)[:120],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="sections whose names begin so")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu"))
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu measures a GPU; torch sees none.", file=sys.stderr)
        return NO_GPU
    asked.output.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name()
    is_small = name.endswith("stub")
    facts = environment() | {"minutes": asked.minutes}
    if is_small:
        facts["times"] = "meaningless: a stub of a GPU computes nothing"
    wanted = [s for s in SECTIONS if not asked.only or s.name.startswith(tuple(asked.only))]
    ends_at = time.monotonic() + 60 * asked.minutes
    rows: list[dict[str, Any]] = []
    for section in wanted:
        left_s = ends_at - time.monotonic()
        if left_s < 20:
            rows.append({"section": section.name, "result": "not begun: no time left", "seconds": None,
                         "last_line": ""})  # fmt: skip
            continue
        rows.append(run(section, asked.output, min(left_s, section.limit_s), is_small))
        print(*rows[-1].values(), flush=True)
        save_results("gpu", rows, facts, [], asked.output, rows)
    unfinished = [f"{row['section']}: {row['result']}" for row in rows if row["result"] != "done"]
    save_results("gpu", rows, facts, unfinished, asked.output, rows)
    print_results("gpu", rows, unfinished)
    return 1 if unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
