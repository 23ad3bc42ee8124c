"""Every snippet of README and docs runs: Python as one program for each document, commands where
that is feasible, and elsewhere as far as their options go."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sybil import Sybil
from sybil.evaluators.skip import Skipper
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from torch import nn

import satcompile
from satcompile.commands.cli import main

CHECKOUT = Path(__file__).parents[1]
DOCUMENTS = [
    path.relative_to(CHECKOUT).as_posix()
    for path in [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *(CHECKOUT / "docs").glob("*.md")]
]  # fmt: skip
WIDTH, ROWS = 256, 512  # four tiles of 128 x 128, and enough rows for something to plan

SLOW = (
    "README.md",
    "docs/first-steps.md",
    "docs/large-vocabularies.md",
)  # plans under tight budgets

# The commands of CONTRIBUTING and README that a test cannot run, and who runs them.
RUN_BY_CI = ("pip", "pytest", "ruff", "mypy", "lint-imports")
OF_THE_SHELL = ("python3 -m venv", "source", "export")


class MyModel(nn.Module):
    """What stands for the reader's model: tiny, with something to recompute."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + nn.functional.gelu(layer(x))
        return x


def names_of_the_reader(compiles_itself: bool) -> dict[str, Any]:
    """What documents take for granted: a model in training, its batches, its optimizer. The model
    is compiled unless the document does that."""
    module = MyModel()
    optimizer = torch.optim.AdamW(module.parameters())
    model = module if compiles_itself else torch.compile(module, backend="sat")
    batch = torch.randn(ROWS, WIDTH)

    @torch.compile(backend="sat")
    def function(x: torch.Tensor) -> torch.Tensor:
        return module(x).mean()

    def step() -> torch.Tensor:
        loss = model(batch).mean()
        loss.backward()
        return loss

    step()
    function(batch).backward()
    module.zero_grad()
    return {
        "MyModel": MyModel, "batch": batch, "batches": [batch, torch.randn(ROWS, WIDTH)],
        "function": function, "model": model, "optimizer": optimizer,
        "satcompile": satcompile, "step": step, "torch": torch,
    }  # fmt: skip


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which snippets may write, with the problem of docs/solver.md in it."""
    monkeypatch.chdir(tmp_path)
    for example in blocks("docs/solver.md", "json"):
        (tmp_path / "problem.json").write_text(example)
    return tmp_path


def blocks(document: str, language: str) -> Iterator[str]:
    parsed = Sybil([CodeBlockParser(language, evaluator=lambda example: None)], "*.md").parse(
        CHECKOUT / document
    )
    for example in parsed.examples():
        yield str(example.parsed)


def with_python() -> list[Any]:
    return [
        pytest.param(document, marks=[pytest.mark.slow] if document in SLOW else [])
        for document in DOCUMENTS
        if any(blocks(document, "python"))
    ]


@pytest.mark.parametrize("document", with_python())
def test_python(document: str, somewhere: Path) -> None:
    """All of a document's blocks, in order, in one namespace."""
    parsed = Sybil([PythonCodeBlockParser()], "*.md").parse(CHECKOUT / document)
    parsed.namespace.update(names_of_the_reader("torch.compile(model" in parsed.text))
    for example in parsed.examples():
        assert not isinstance(example.region.evaluator, Skipper)
        example.evaluate()


def commands(document: str) -> Iterator[str]:
    for block in blocks(document, "bash"):
        for line in block.splitlines():
            yield from (part.strip() for part in line.partition("#")[0].split("&&") if part.strip())


ALL_COMMANDS = sorted({command for document in DOCUMENTS for command in commands(document)})


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_command(command: str, somewhere: Path) -> None:
    words = shlex.split(command.replace("[FOLDER]", ""))
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # set for the command
        words = words[1:]
    if words[0] in RUN_BY_CI or command.startswith(OF_THE_SHELL) or words[0].startswith(".ci/"):
        assert not words[0].startswith(".ci/") or (CHECKOUT / words[0]).exists()
        return
    if words[:2] == ["satcompile", "solve"]:
        assert main([*words[1:], "--time-limit", "5"]) == 0
    elif words[0] == "satcompile":
        assert_options_exist([sys.executable, "-m", "satcompile.commands.cli", words[1]], words[2:])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None, f"{words[2]} does not exist"
        if words[2].startswith("benchmarks."):
            assert_options_exist([sys.executable, *words[1:3]], words[3:])
    elif words[0] == "tlparse":
        assert_options_exist(["tlparse"], words[1:])
    elif words != ["python", "train.py"]:  # the reader's own
        pytest.fail(f"nothing here knows how to check {command!r}")


def assert_options_exist(program: list[str], arguments: list[str]) -> None:
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    if not options:
        return
    shown = subprocess.run(
        [*program, "--help"], cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert all(option in shown for option in options), shown


def test_the_problem_of_the_docs_is_one() -> None:
    (problem,) = map(json.loads, blocks("docs/solver.md", "json"))
    assert satcompile.solver.Problem.from_dict(problem).peak_bytes == 5


def test_documents_link_to_files_that_are_there() -> None:
    for document in DOCUMENTS:
        path = CHECKOUT / document
        for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{document} links to {target}"
