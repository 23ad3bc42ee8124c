"""Graphs as text, one line per node, and the change that a pass made to one.

A line shows what its node computes and nothing about its surroundings, so that nodes that a pass
left alone compare equal.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from satcompile.graph.nodes import module_path
from satcompile.torch_compat.operators import OpOverload
from satcompile.torch_compat.symbols import size_hint

Text = Callable[[], str]


@dataclass(frozen=True)
class GraphChange:
    """A graph before and after a pass, written out on demand."""

    before: Text
    after: Text

    def diff(self) -> str:
        """The change as a unified diff; empty where nothing differs."""
        before, after = self.before().splitlines(), self.after().splitlines()
        return "\n".join(difflib.unified_diff(before, after, "before", "after", lineterm=""))


def graph_text(graph: fx.Graph) -> str:
    """Every node with its type, its arguments and the module that made it."""
    return "".join(f"{_line(node)}\n" for node in graph.nodes)


def kept(text: str) -> Text:
    """A text that must be written now, because its graph will change: compressed until read."""
    packed = zlib.compress(text.encode(), level=1)
    return lambda: zlib.decompress(packed).decode()


def _line(node: fx.Node) -> str:
    module = module_path(node)
    where = f"  # {module}" if module else ""
    if node.op == "output":
        return f"return {_arguments(node)}"
    if node.op in ("placeholder", "get_attr"):
        return f"{node.name}: {_type(node.meta.get('val'))} = {node.op}{where}"
    return (
        f"{node.name}: {_type(node.meta.get('val'))} = {_target(node)}({_arguments(node)}){where}"
    )


def _target(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    is_operator = isinstance(node.target, OpOverload)
    return str(node.target) if is_operator else getattr(node.target, "__name__", str(node.target))


def _arguments(node: fx.Node) -> str:
    keywords = [f"{name}={value!r}" for name, value in node.kwargs.items()]
    return ", ".join([*map(repr, node.args), *keywords])


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        shape = ", ".join(str(size_hint(extent)) for extent in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')}[{shape}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_type, value))})"
    return type(value).__name__
