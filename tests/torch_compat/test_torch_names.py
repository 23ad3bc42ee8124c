"""Every name of torch that torch_compat uses is there: a torch that lacks one fails here, by name.

Two ways of asking are checked. What is imported or reached from an import (``config.a.b``) is looked
up. What is asked of an object with a default (``getattr(node, "name", None)``) never fails where it
is used, so its name must stand somewhere in torch's own sources.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import satcompile.torch_compat

COMPAT = Path(inspect.getfile(satcompile.torch_compat))
SOURCES = sorted(COMPAT.parent.rglob("*.py")) if COMPAT.name == "__init__.py" else [COMPAT]
TREES = [ast.parse(path.read_text()) for path in SOURCES]

# Only some of the supported versions have these. The code says what is done where one is missing.
OF_SOME_VERSIONS = {"is_opaque_node", "_get_memory_budget_annotation"}  # 2.13, 2.14
# Imported in a ``try``: one of them has to be there.
ALTERNATIVES = [{"optimization_hint", "size_hint"}]  # 2.13, 2.11
# Set by us, not by torch.
OURS = {"_watched", "uuid", "_watching"}


def imported() -> Iterator[tuple[str, str, str]]:
    """Module, name ("" for the module itself) and what it is called here."""
    for tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
                for alias in node.names:
                    yield str(node.module), alias.name, alias.asname or alias.name
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "torch":
                        yield alias.name, "", alias.asname or "torch"


def found(module: str, name: str) -> Any:
    if not name:
        return importlib.import_module(module.split(".")[0])
    owner = importlib.import_module(module)
    return (
        getattr(owner, name)
        if hasattr(owner, name)
        else importlib.import_module(f"{module}.{name}")
    )


def chains() -> Iterator[tuple[str, ...]]:
    """Attributes in a row, from a name on: ``partitioners.x.y``; and methods that are replaced."""
    for tree in TREES:
        for node in ast.walk(tree):
            match node:
                case ast.Call(ast.Name("_replaced"), [ast.Name(owner), ast.Constant(name), _]):
                    yield owner, str(name)
            names: list[str] = []
            while isinstance(node, ast.Attribute):
                names.insert(0, node.attr)
                node = node.value
            if names and isinstance(node, ast.Name):
                yield (node.id, *names)


def asked_with_a_default() -> Iterator[str]:
    for tree in TREES:
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr")
                and isinstance(node.args[1], ast.Constant)
            ):
                yield str(node.args[1].value)


def is_there(module: str, name: str) -> bool:
    try:
        found(module, name)
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("module, name", sorted({each[:2] for each in imported()}))
def test_an_imported_name_is_there(module: str, name: str) -> None:
    names = next((each for each in ALTERNATIVES if name in each), {name})
    assert any(is_there(module, each) for each in names), f"{module} has no {' or '.join(names)}"


def reaches(root: Any, names: tuple[str, ...]) -> bool:
    """Up to the first object that is neither a module nor a class: what it has is not known here."""
    for name in names:
        if not (inspect.ismodule(root) or inspect.isclass(root)):
            break
        if not hasattr(root, name):
            return False
        root = getattr(root, name)
    return True


def test_what_is_reached_from_an_import_is_there() -> None:
    roots: dict[str, list[Any]] = {}  # several modules are called config here
    for module, name, here in imported():
        if is_there(module, name):
            roots.setdefault(here, []).append(found(module, name))
    asked = {(root, *names) for root, *names in chains() if root in roots}
    gone = [
        ".".join((root, *names))
        for root, *names in sorted(asked)
        if not any(reaches(each, tuple(names)) for each in roots[root])
    ]
    assert not gone, f"torch {torch.__version__} lacks {gone}"
    assert len(asked) > 60


def test_what_is_asked_with_a_default_is_known_to_torch() -> None:
    asked = set(asked_with_a_default()) - OURS - OF_SOME_VERSIONS
    sources = Path(inspect.getfile(torch)).parent
    for path in sources.rglob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            text = path.read_text(errors="ignore")
            asked -= {name for name in asked if name in text}
        if not asked:
            return
    assert not asked, f"nothing in torch {torch.__version__} is called {sorted(asked)}"
