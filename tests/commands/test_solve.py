"""``satcompile solve``: what it reads, prints and writes, and how it refuses."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from satcompile.commands import cli
from satcompile.commands.solve import read_budget
from satcompile.solver import Problem
from satcompile.solver.graphs.floors import floor_bytes

# Node 0 is read early and late. Its peak is 5 bytes (0, 1, 2 while 2 is computed); dropping node 0
# and computing it again before 3 takes 4 bytes and one unit of time.
SMALL = {
    "name": "small",
    "times": [1, 1, 1, 1],
    "bytes": [2, 2, 1, 1],
    "edges": [[0, 1], [1, 2], [0, 3], [2, 3]],
}


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    return str(path)


def facts(text: str) -> dict[str, str]:
    split = (line.partition("  ") for line in text.splitlines())
    return {name: fact.strip() for name, _, fact in split}


def test_what_was_found_is_printed_a_line_a_fact(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["solve", small, "--budget", "80%"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = facts(out)
    assert found["problem"] == "small, 4 nodes"
    assert found["peak without recomputation"] == "5 B (5 bytes)"
    assert found["budget"] == "4 B (4 bytes), 80.0% of what no recomputation takes"
    assert found["floor"].startswith("4 B (4 bytes)")
    assert found["peak"].startswith("4 B (4 bytes)")
    assert found["extra time"] == "25.000% of the sum of times"
    assert found["lower bound"].startswith("25.000% for any schedule")
    assert found["gap"] == "0.000%, proven least"
    assert found["recomputations"] == "1 of 1 nodes"


def test_the_schedule_is_written(small: str, tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    assert cli.main(["solve", small, "--budget", "4", "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["sequence"] == [0, 1, 2, 0, 3]
    assert (written["budget_bytes"], written["peak_bytes"], written["extra_time"]) == (4, 4, 1)
    assert (written["bound_extra_time"], written["gap"], written["proven"]) == (1, 0, True)
    assert written["bound_kind"].startswith("any schedule")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("60%", 3),
        (" 62.5 % ", 3),
        ("100%", 5),
        ("8GiB", 8 * 2**30),
        ("800MB", 800 * 10**6),
        ("4", 4),
        ("floor", 4),
        ("floor+50%", 6),
        ("Floor + 25 %", 5),
    ],
)
def test_forms_of_a_budget(text: str, num_bytes: int) -> None:
    problem = Problem.from_dict(SMALL)
    assert (problem.peak_bytes, floor_bytes(problem)) == (5, 4)
    assert read_budget(text, problem) == num_bytes


@pytest.mark.parametrize("text", ["much", "6GiB or so", "1,5GiB", "-3", "60% of default", "", "%"])
def test_another_budget_is_answered_with_the_forms_there_are(
    text: str, small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["solve", small, f"--budget={text}"]) == 1
    refused_with(capsys, repr(text), '"60%"', '"8GiB"', '"floor+10%"')


def refused_with(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("satcompile: ")
    assert err.count("\n") == 1
    assert [part for part in parts if part not in err] == [], err


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        (json.dumps({"times": [1]}), "missing"),
        (json.dumps({**SMALL, "edges": [[2, 1]]}), "edges[0]"),
    ],
)
def test_a_file_that_holds_no_problem(
    content: str | None, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "problem.json"
    if content is not None:
        path.write_text(content)
    assert cli.main(["solve", str(path), "--budget", "80%"]) == 1
    refused_with(capsys, str(path), part)


def test_a_budget_that_nothing_fits_into(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["solve", small, "--budget", "3"]) == 1
    refused_with(capsys, "3 bytes (proven)", "lowest peak found is 5 bytes", "below 4")


def test_a_schedule_that_cannot_be_written(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "no such folder" / "schedule.json")
    assert cli.main(["solve", small, "--budget", "80%", "--json", nowhere]) == 1
    refused_with(capsys, nowhere, "No such file")


@pytest.mark.parametrize(
    ("argv", "culprit"),
    [
        (("solve",), "problem"),
        (("solve", "p.json"), "--budget"),
        (("solve", "p.json", "--budget", "1", "--time-limit", "0"), "seconds above 0"),
        (("solve", "p.json", "--budget", "1", "--time-limit", "soon"), "'soon'"),
        (("solve", "p.json", "--budget", "1", "--seed", "-1"), "'-1'"),
    ],
)
def test_a_wrong_call(
    argv: tuple[str, ...], culprit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert culprit in capsys.readouterr().err


def hard_problem(nodes: int = 300) -> dict[str, object]:
    """One that takes minutes: every node reads three of the hundred before it."""
    draw = random.Random(0)
    edges = [[draw.randrange(max(0, j - 100), j), j] for j in range(1, nodes) for _ in range(3)]
    sizes = [draw.randint(1, 100) for _ in range(nodes)]
    return {"times": [draw.randint(1, 100) for _ in range(nodes)], "bytes": sizes, "edges": edges}


def test_an_interrupt_ends_it_at_once_and_says_where_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "hard.json"
    path.write_text(json.dumps(hard_problem()))
    command = [
        sys.executable,
        "-m",
        "satcompile.commands.cli",
        "solve",
        str(path),
        "--budget",
        "70%",
    ]
    # What is started in the background may have been told to ignore interrupts, and so its children.
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    for _ in range(5):  # on a busy machine the first may come, and be lost, while it imports
        time.sleep(4)
        running.send_signal(signal.SIGINT)
        started = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(timeout=10)
            break
    out, err = running.communicate(timeout=10)
    assert running.returncode == 130, err
    assert time.monotonic() - started < 10
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("satcompile: interrupted")
