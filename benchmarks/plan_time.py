"""Time and memory of ``satcompile plan``, each in a process of its own, with the largest batch.

Goals, with the exit status, on two cores: Llama-13B at 4 x 4096 in under three minutes and 12 GiB.

    python -m benchmarks.plan_time [--output benchmarks/results]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import environment, write_results

GOAL_S, GOAL_BYTES = 180, 12 * 2**30
LARGE = "llama-13b --batch 4 --sequence 4096 --device h200"
COMMANDS = (LARGE, "llama-7b --batch 1 --sequence 2048 --device rtx4090 --train lora")


def measure(arguments: str) -> dict[str, Any]:
    """Seconds by the clock and of the processor, and the most memory that was resident."""
    command = [sys.executable, "-m", "satcompile.commands.cli", "plan", *arguments.split()]
    started_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise RuntimeError(f"satcompile plan {arguments}: exit status {running.returncode}")
    return {
        "satcompile plan": arguments,
        "elapsed_s": time.perf_counter() - started_s,
        "processor_s": used.ru_utime + used.ru_stime,
        "resident_gib": used.ru_maxrss * 1024 / 2**30,  # Linux counts in KiB
    }


def missed_goals(rows: Sequence[dict[str, Any]]) -> list[str]:
    missed = []
    for row in rows:
        if row["satcompile plan"] != LARGE:
            continue
        if row["elapsed_s"] >= GOAL_S:
            missed.append(f"{LARGE}: {row['elapsed_s']:.0f} s, wanted under {GOAL_S}")
        if row["resident_gib"] * 2**30 >= GOAL_BYTES:
            missed.append(f"{LARGE}: {row['resident_gib']:.1f} GiB, wanted under 12")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args(arguments)
    rows = [measure(command) for command in COMMANDS]
    missed = missed_goals(rows)
    write_results("plan_time", rows, environment(), missed, asked.output)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
