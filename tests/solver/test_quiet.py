"""What HiGHS says to itself is not shown, and what others say is."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import pytest

from satcompile.solver.base.quiet import without_chatter


@pytest.mark.skipif(os.name != "posix", reason="the C library's standard output")
def test_only_the_chatter_is_held_back(capfd: Any) -> None:
    library = ctypes.CDLL(None)
    with without_chatter():
        library.puts(b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();")
        print("progress", flush=True)
        with without_chatter():
            library.puts(b"inside")
    assert capfd.readouterr().out.splitlines() == ["progress", "inside"]
