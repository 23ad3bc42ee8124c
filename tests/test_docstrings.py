"""House rules for docstrings that a reader would otherwise have to point out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
FILES = sorted(
    file
    for folder in ("satcompile", "passes", "benchmarks", "tests", "examples")
    for file in (CHECKOUT / folder).rglob("*.py")
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(file: Path) -> list[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    found = (ast.get_docstring(node) for node in nodes if isinstance(node, DOCUMENTED))
    return [text for text in found if text]


@pytest.mark.parametrize("folder", ["satcompile", "passes", "benchmarks", "tests", "examples"])
def test_docstrings_name_their_noun(folder: str) -> None:
    """ "Of the leaves" does not say what: "What the leaves keep alive" does."""
    files = [file for file in FILES if file.relative_to(CHECKOUT).parts[0] == folder]
    assert files
    vague = [
        (str(file.relative_to(CHECKOUT)), text.split("\n")[0])
        for file in files
        for text in docstrings(file)
        if text.startswith(("Of ", "By "))
    ]
    assert not vague


def test_every_room_says_what_it_holds() -> None:
    rooms = [file for file in FILES if file.name == "__init__.py" and "tests" not in file.parts]
    assert all(docstrings(file) for file in rooms), [
        str(file) for file in rooms if not docstrings(file)
    ]
