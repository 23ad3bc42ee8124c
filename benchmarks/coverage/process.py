"""A process per job: its rows as they come, and an end to it when its time is over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence

from benchmarks.coverage.rows import CRASH, TIME_OUT, Job, Record

_LAST_CHARACTERS = 300
_MARK = "ROW "


def run_job(job: Job, family: str, limit_s: float) -> Iterator[Record]:
    """A record for each of the job's rows. A process that dies or hangs costs the row that it was
    at; the rows after it are run in another one."""
    left = list(job.budgets)
    while left:
        lost = (CRASH, "its process ended without it")
        for found in _in_process(job, left, limit_s):
            if isinstance(found, dict):
                left.remove(found["budget"])
                yield found
            else:
                lost = found
        if left:
            result, detail = lost
            yield {
                "architecture": job.architecture, "family": family, "variant": job.variant,
                "budget": left.pop(0), "result": result, "faults": [result], "detail": detail,
            }  # fmt: skip


def _in_process(
    job: Job, budgets: Sequence[str], limit_s: float
) -> Iterator[Record | tuple[str, str]]:
    """Records, and how the process ended if not well: the result and the detail of its row."""
    worker = [sys.executable, "-m", "benchmarks.coverage.worker"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
    # A row's time, and as much again for eager and torch.compile, which come first.
    allowed_s = limit_s * (len(budgets) + 1)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*worker, job.architecture, job.variant, *budgets],
            env=variables, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True,  # with the C++ compilers that it starts
        )  # fmt: skip
        late = threading.Event()
        timer = threading.Timer(allowed_s, _end, (process, late))
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(_MARK):
                    yield json.loads(line.removeprefix(_MARK))
            process.wait()
        finally:
            timer.cancel()
            _kill(process)
        if late.is_set():
            yield TIME_OUT, f"after {allowed_s:.0f} s"
        elif process.returncode:
            errors.seek(0)
            last = " ".join(errors.read()[-_LAST_CHARACTERS:].split())
            yield CRASH, f"the process ended with {process.returncode}: {last}"


def _end(process: subprocess.Popen[str], late: threading.Event) -> None:
    late.set()
    _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
