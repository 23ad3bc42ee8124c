"""What importing satcompile brings in, and that its names are there when they are asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import satcompile


def run(code: str) -> str:
    """A new Python's output: in this one torch is there already."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import satcompile",
        "import satcompile.solver",
        "from satcompile.solver import Infeasible, Problem, Schedule, solve",
        "from satcompile.commands import cli, solve",
    ],
)
def test_the_solver_is_imported_without_torch(statement: str) -> None:
    assert run(f"import sys; {statement}; print('torch' in sys.modules)") == "False"


def test_the_solver_solves_without_torch() -> None:
    code = (
        "import sys; from satcompile.solver import Problem, solve; "
        "edges = [[0, 1], [1, 2], [0, 3], [2, 3]]; "
        "p = Problem.from_dict({'times': [1] * 4, 'bytes': [2, 2, 1, 1], 'edges': edges}); "
        "print(solve(p, 4).extra_time, 'torch' in sys.modules)"
    )
    assert run(code) == "1.0 False"


def test_the_command_line_solves_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "problem.json"
    path.write_text('{"times": [1, 1], "bytes": [1, 1], "edges": [[0, 1]]}')
    code = (
        "import sys; from satcompile.commands import cli; "
        f"code = cli.main(['solve', {str(path)!r}, '--budget', '100%']); "
        "print(code, 'torch' in sys.modules)"
    )
    assert run(code).splitlines()[-1] == "0 False"


def test_every_public_name_is_there_and_listed() -> None:
    for name in satcompile.__all__:
        assert callable(getattr(satcompile, name))
        assert name in dir(satcompile)


def test_report_stays_the_function_when_its_folder_is_imported() -> None:
    code = (
        "import satcompile.report.data, satcompile; from satcompile import report; "
        "print(report is satcompile.report, satcompile.report.__qualname__)"
    )
    assert run(code) == "True report"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'satcompile' has no attribute 'budget'"):
        satcompile.budget  # noqa: B018
