"""Makes a report's rows from a plan's nodes: names, sizes, and their places in the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from satcompile.graph.nodes import module_path, source_line
from satcompile.graph.training_graph import storage_bytes
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.retention import RetentionPlan
from satcompile.report.entries import ValueRow
from satcompile.torch_compat.symbols import size_hint


def saved_rows(problem: PlanningProblem, plan: RetentionPlan) -> list[ValueRow]:
    """Values that occupy memory between forward and backward (parameters and inputs always do)."""
    nodes = [problem.storages[index] for index in plan.saved]
    return _sorted(_row(node, copies=1) for node in nodes if node.op == "call_function")


def recomputed_rows(plan: RetentionPlan) -> list[ValueRow]:
    """Values that the backward computes again; ``copies`` counts the forward's computation, too."""
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
