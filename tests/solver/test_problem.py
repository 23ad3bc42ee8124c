"""Problems from data: what is read, and how each kind of bad entry is named."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from satcompile.solver import Infeasible, Problem, ProblemError, solve
from satcompile.solver.graphs.problem import loads, peak_bytes
from tests.solver import oracle
from tests.solver.problems import problems

GOOD: dict[str, Any] = {
    "name": "good",
    "times": [1, 2.5, 0],
    "bytes": [3, 0, 4],
    "edges": [[0, 1], [0, 2], [0, 1]],
    "fixed_bytes": 7,
}


def test_what_is_read() -> None:
    problem = Problem.from_dict(GOOD)
    assert (problem.name, len(problem), problem.fixed_bytes) == ("good", 3, 7)
    assert (problem.times, problem.num_bytes) == ((1.0, 2.5, 0.0), (3, 0, 4))
    assert problem.inputs == ((), (0,), (0,))
    assert (problem.total_time, problem.peak_bytes, problem.last_use) == (3.5, 7, (2, 1, 2))


@settings(max_examples=100, deadline=None)
@given(problems(most=12))
def test_a_problem_survives_its_data(problem: Problem) -> None:
    assert Problem.from_dict(json.loads(json.dumps(problem.to_dict()))) == problem


def test_name_and_fixed_bytes_may_be_missing() -> None:
    problem = Problem.from_dict({"times": [1], "bytes": [1], "edges": []})
    assert (problem.name, problem.fixed_bytes) == ("", 0)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"times": [1, -1, 0]}, ["times[1]", "-1", "number from 0 on"]),
        ({"times": [1, 1, math.nan]}, ["times[2]", "nan"]),
        ({"times": [math.inf, 1, 1]}, ["times[0]", "inf"]),
        ({"times": [1, "2", 1]}, ["times[1]", "'2'"]),
        ({"times": [True, 1, 1]}, ["times[0]", "True"]),
        ({"times": 3}, ["'times'", "int"]),
        ({"times": "123"}, ["'times'", "str"]),
        ({"times": [1, 1]}, ["2 times", "3 bytes"]),
        ({"times": [], "bytes": []}, ["at least one node"]),
        ({"bytes": [1, 1.5, 1]}, ["bytes[1]", "1.5", "whole number"]),
        ({"bytes": [1, 1, -4]}, ["bytes[2]", "-4"]),
        ({"bytes": [None, 1, 1]}, ["bytes[0]", "None"]),
        ({"bytes": [math.inf, 1, 1]}, ["bytes[0]", "inf"]),
        ({"bytes": {"0": 1}}, ["'bytes'", "dict"]),
        ({"edges": [[0, 1], [0]]}, ["edges[1]", "[0]", "[from, to]"]),
        ({"edges": [[0, 1, 2]]}, ["edges[0]", "[0, 1, 2]"]),
        ({"edges": [7]}, ["edges[0]", "7"]),
        ({"edges": ["01"]}, ["edges[0]", "'01'"]),
        ({"edges": [[0, 1.0]]}, ["edges[0]", "1.0"]),
        ({"edges": [[0, 1], [2, 1]]}, ["edges[1]", "[2, 1]", "later one"]),
        ({"edges": [[1, 1]]}, ["edges[0]", "[1, 1]"]),
        ({"edges": [[0, 3]]}, ["edges[0]", "[0, 3]", "of the 3"]),
        ({"edges": [[-1, 2]]}, ["edges[0]", "[-1, 2]"]),
        ({"fixed_bytes": -1}, ["fixed_bytes", "-1"]),
        ({"fixed_bytes": "many"}, ["fixed_bytes", "'many'"]),
    ],
)
def test_a_bad_entry_is_named(change: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ProblemError) as raised:
        Problem.from_dict({**GOOD, **change})
    assert [part for part in parts if part not in str(raised.value)] == [], raised.value


@pytest.mark.parametrize("key", ["times", "bytes", "edges"])
def test_a_missing_entry_is_named(key: str) -> None:
    data = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(ProblemError, match=rf"\['{key}'\] missing"):
        Problem.from_dict(data)


def test_data_that_is_no_mapping() -> None:
    with pytest.raises(ProblemError, match="not list"):
        Problem.from_dict([1, 2])  # type: ignore[arg-type]


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(GOOD))
    assert Problem.load(path) == Problem.from_dict(GOOD)
    path.write_text("{")
    with pytest.raises(ProblemError, match=r"problem\.json is not JSON"):
        Problem.load(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ProblemError, match="is not JSON"):
        Problem.load(path)
    with pytest.raises(FileNotFoundError):
        Problem.load(tmp_path / "nothing.json")


@settings(max_examples=100, deadline=None)
@given(problems(most=12))
def test_peaks_without_recomputation(problem: Problem) -> None:
    assert oracle.replay_sequence(problem, range(len(problem))).peak_bytes == problem.peak_bytes


def test_a_sequence_that_reads_what_is_not_there() -> None:
    problem = Problem.from_dict(GOOD)
    with pytest.raises(ProblemError, match="node 1 is computed before 0, which it reads"):
        loads(problem, [1, 0, 2])
    assert peak_bytes(problem, []) == 0


@pytest.mark.parametrize("budget", [-1, 2.5, True])
def test_a_budget_is_a_whole_number_from_0_on(budget: Any) -> None:
    with pytest.raises(ValueError, match="whole number of bytes from 0 on"):
        solve(Problem.from_dict(GOOD), budget)


def test_infeasible_says_what_is_known_and_survives_pickling() -> None:
    with pytest.raises(Infeasible) as raised:
        solve(Problem.from_dict(GOOD), 6)
    error = pickle.loads(pickle.dumps(raised.value))
    assert (error.proven, error.budget_bytes, error.floor_bytes) == (True, 6, 7)
    assert str(error) == str(raised.value)
    assert "within 9 bytes was found" in str(Infeasible(9, 8, 10))
