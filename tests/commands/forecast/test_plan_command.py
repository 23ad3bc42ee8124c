"""``satcompile plan``: what it prints, what it writes, how it ends, and what it says of mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from satcompile.commands import cli
from satcompile.commands.forecast import command
from satcompile.torch_compat.cuda import blas_workspaces_stay

STEP = """
import torch
from torch import nn

def step():
    layers = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.GELU())]
    return nn.Sequential(*layers), torch.zeros(512, 64)

def broken():
    def fn(x):
        torch._dynamo.graph_break()
        return x.sum()
    return fn, torch.zeros(4, requires_grad=True)

def frozen():
    return nn.Linear(4, 4).requires_grad_(False), torch.zeros(2, 4)
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_steps.py").write_text(STEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_steps", raising=False)
    return tmp_path


def plan(*argv: str) -> int:
    return cli.main(["plan", *argv])


@pytest.mark.parametrize("width", [80, 110])
def test_everything_asked_for_is_printed_and_nothing_is_cut(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert plan("my_steps:step", "--budget", "68MiB") == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    for name in (
        "parameters and buffers", "gradients", "optimizer state", "inputs", "activations",
        "peak of torch.compile", "floor", "budget", "predicted peak", "time added", "satcompile",
        "peak against time", "largest batch within 68.00 MiB", *(["workspaces"] if blas_workspaces_stay() else []),
    ):  # fmt: skip
        assert any(line.startswith(name) for line in lines), name
    assert "…" not in out and "the plan for H200" in out
    assert "no measurement on it was compared" in out
    # No cell runs over: nothing but a table's first column begins a line.
    assert not [line for line in lines if line.startswith(" " * 30) and "no meas" not in line]


def test_a_budget_below_the_floor_ends_with_1_and_says_what_helps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan("my_steps:step", "--budget", "1KiB", "--quick") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "does not fit" in out
    assert "No plan was found within 1.00 KiB" in out and "budget of the floor" in out
    assert "largest batch" not in out  # quick


def test_figures_and_page_are_written(in_folder: Path) -> None:
    code = plan(
        "my_steps:step", "--budget", "20.25MiB", "--json", "plan.json", "--report", "plan.html",
        "--device", "rtx4090", "--optimizer", "sgd",
    )  # fmt: skip
    assert code == 0
    found = json.loads((in_folder / "plan.json").read_text())
    assert found["device"] == "RTX 4090" and found["fits"] is True
    assert found["resident"]["optimizer_state"] == 0
    held_bytes = 2 * (8320 + 1024) * 1024
    assert found["resident"]["workspaces"] == (held_bytes if blas_workspaces_stay() else 0)
    assert found["curve"] and found["largest_batch"]["planned"] > 512
    assert found["resident"]["parameters"] == 4 * (64 * 64 + 64) * 4
    assert "<html" in (in_folder / "plan.html").read_text()


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_a_file_that_cannot_be_written_is_known_before_anything_is_planned(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "plan", lambda *args, **kwargs: pytest.fail("it was planned"))
    target = "my_steps.py/plan" + option.replace("--", ".")
    assert plan("my_steps:step", option, target) == 1
    error = capsys.readouterr().err
    assert target in error and "could not be written" in error


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("my_steps:step", "--device", "h20"), ("'h20'", "Did you mean 'h200'", "RTX 4090")),
        (("my_steps:step", "--budget", "lots"), ("'lots'",)),
        (("my_steps:step", "--reserve", "some"), ("'some'",)),
        (("my_steps:step", "--optimizer", "adamv"), ("'adamv'", "Did you mean")),
        (("my_steps:step", "--device", "cpu"), ("give a memory_budget",)),
        (("my_steps:stepp",), ("'stepp'", "Did you mean 'step'")),
        (("my_steps:broken",), ("cannot be planned as one graph",)),
        (("my_steps:frozen",), ("requires gradients",)),
        (("gpt3",), ("'gpt3'", "Did you mean 'gpt2'")),
        (("gpt2", "--dtype", "int4"), ("'int4'", "bfloat16")),
        (("gpt2", "--train", "half"), ("'half'", "full, lora")),
        (("--config", "none.json"), ("none.json", "No such file")),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    argv: tuple[str, ...], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(*argv) == 1
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("satcompile: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize("argv", [(), ("gpt2", "--config", "config.json")])
def test_a_model_or_a_configuration_is_asked_for(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(*argv) == 2
    assert "--config" in capsys.readouterr().err


def test_a_batch_of_nothing_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        plan("gpt2", "--batch", "0")
    assert stopped.value.code == 2
    assert "'0'; it takes a whole number from 1 on" in capsys.readouterr().err


def test_help_needs_no_torch_and_names_models_and_devices() -> None:
    code = (
        "import sys; from satcompile.commands import cli\n"
        "try: cli.main(['plan', '--help'])\n"
        "except SystemExit as stopped: print(stopped.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    from satcompile.commands.forecast.catalogue import names

    said = "".join(done.stdout.split())
    assert not [name for name in names() if name not in said]


def test_progress_is_for_terminals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    command._progress(Console(stderr=True, force_terminal=False), "tracing")
    assert not capsys.readouterr().err
    command._progress(Console(stderr=True, force_terminal=True), "tracing")
    assert "tracing" in capsys.readouterr().err
