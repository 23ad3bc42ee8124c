"""Private names of torch stand in ``satcompile.torch_compat`` and nowhere else in the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import satcompile
from satcompile import passes

ROOTS = [Path(satcompile.__file__).parent, *map(Path, passes.__path__)]
FILES = sorted(
    {file for root in ROOTS for file in root.rglob("*.py") if "torch_compat" not in file.parts}
)
TREES = {file: ast.parse(file.read_text()) for file in FILES}
OF_OTHERS = {
    *("_replace", "_asdict", "_fields"),  # of named tuples
    *("_getframe", "_exit"),  # of sys and os
    *("_to_copy", "_unsafe_view"),  # operators, whose names are torch's interface
    "_model_mapping",  # of transformers
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def our_own() -> set[str]:
    """Private names that some module of the package defines."""
    found: set[str] = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    found.add(name)
                case ast.alias(name=name, asname=asname):
                    found.add(asname or name)
    return found


OURS = our_own() | OF_OTHERS


def private_names(tree: ast.AST) -> Iterator[str]:
    """Imports from modules that torch keeps to itself, and attributes that nobody here defines."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "torch":
                if any(map(is_private, module.split("."))) or "experimental" in module:
                    yield f"from {module} import ..."
                yield from (each.name for each in names if is_private(each.name))
            case ast.Import(names=names):
                for each in names:
                    if each.name.startswith("torch.") and any(
                        map(is_private, each.name.split("."))
                    ):
                        yield f"import {each.name}"
            case ast.Attribute(value=ast.Name("torch"), attr=name) if is_private(name):
                yield f"torch.{name}"
            case ast.Attribute(attr=name) if is_private(name) and name not in OURS:
                yield f".{name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(file.parts[-3:]))
def test_no_other_file_uses_a_private_name_of_torch(file: Path) -> None:
    assert not list(private_names(TREES[file]))


def test_private_names_are_seen() -> None:
    text = "import torch._inductor.ir\nfrom torch._guards import x\ntorch._C.f(tensor._cdata)"
    assert len(list(private_names(ast.parse(text)))) == 4
