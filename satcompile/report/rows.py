"""From a plan's nodes to a report's rows: names, sizes, and where in the model they come from."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

from satcompile.planning_problem import PlanningProblem
from satcompile.report.entries import ValueRow
from satcompile.retention import RetentionPlan
from satcompile.torch_compat import size_hint
from satcompile.training_graph import storage_bytes


def saved_rows(problem: PlanningProblem, plan: RetentionPlan) -> list[ValueRow]:
    """What occupies memory between forward and backward (parameters and inputs do anyway)."""
    nodes = [problem.storages[index] for index in plan.saved]
    return _sorted(_row(node, copies=1) for node in nodes if node.op == "call_function")


def recomputed_rows(plan: RetentionPlan) -> list[ValueRow]:
    """What the backward computes again; ``copies`` counts its computation in the forward too."""
    return _sorted(_row(node, copies=plan.times_computed[node]) for node in plan.recomputed)


def _sorted(rows: Any) -> list[ValueRow]:
    return sorted(rows, key=lambda row: (-row.num_bytes, row.name))


def _row(node: fx.Node, copies: int) -> ValueRow:
    value = node.meta.get("val")
    first: Any = value
    while isinstance(first, (tuple, list)) and first:
        first = first[0]
    is_tensor = isinstance(first, torch.Tensor)
    return ValueRow(
        name=node.name,
        num_bytes=storage_bytes(value),
        dtype=str(first.dtype).removeprefix("torch.") if is_tensor else "",
        shape=tuple(size_hint(s) for s in first.shape) if is_tensor else (),
        module=module_path(node),
        source=source_line(node),
        copies=copies,
    )


def module_path(node: fx.Node) -> str:
    """Path of the innermost module whose forward made the node, as in ``named_modules()``; for a
    node of the backward, of the module that it differentiates."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    path = re.sub(r"\['?([^'\]]+)'?\]", r".\1", path)
    path = re.sub(r"^L\.?", "", path.replace("_modules.", "").replace("._orig_mod", ""))
    return re.sub(r"^\.*(self\.?)?", "", path)


def source_line(node: fx.Node) -> str:
    """ "file.py:123" of the innermost frame of the user's code."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    file, line = frames[-1]
    return f"{file.rsplit('/', 1)[-1]}:{line}"
