"""The kernels' numbers, without a GPU: Triton's interpreter runs them on the CPU.

Whether it does is settled when triton is imported, so those tests have a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
ROOT = Path(__file__).parents[3]


def _why_not() -> str:
    """Why the interpreter cannot run here; empty if it can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    triton, numpy = version("triton"), version("numpy")
    if _numbers(triton) < (3, 7) and _numbers(numpy) >= (2, 4):
        return f"triton {triton} interprets with numpy before 2.4, and this is {numpy}"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


@pytest.mark.slow  # the interpreter takes a millisecond for each operation
@pytest.mark.skipif(bool(_why_not()), reason=_why_not())
def test_kernels_in_the_interpreter() -> None:
    files = sorted(str(file) for file in FOLDER.glob("check_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
