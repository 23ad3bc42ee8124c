"""A forward, and a gradient of its input, that skip a weight's unused tiles.

With ``forward_density`` below 1, a weight counts as zero outside its forward set, wherever it is
used. Otherwise the gradient would not be that of the computed function. What the pass rewrites, in
a joint graph or in one without a backward:

1. A parameter whose every use, through transposes and casts, is as the second factor of ``mm`` or
   ``addmm``, or as the weight of a convolution or of its backward. These nodes become
   ``satcompile::masked_mm``, ``masked_addmm``, ``masked_convolution`` and
   ``masked_convolution_input``.
2. A parameter whose gradient is cut (``passes.sparse_gradients``), but which is used in any other
   way, keeps a dense forward; the report says why.

The pass must run before the planner decides what to save: it replaces operators. The rule that the
forward set lies within the trained one is Top-KAST's (Jayakumar et al. 2020).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from satcompile.passes.contract import Ensures, Result, Stage
from satcompile.passes.facts import Facts
from satcompile.passes.sparse_gradients import (
    COPIES,
    TRANSPOSES,
    convolution_flops,
    drop_result,
    replaced,
    same_shape,
)
from torch import fx

from satcompile.graph.training_graph import TrainingGraph
from satcompile.planner.cost.roofline import matrix_flops
from satcompile.planner.request import Request
from satcompile.updates.sparsity.operators import (
    MASKED_ADDMM,
    MASKED_CONVOLUTION,
    MASKED_CONVOLUTION_INPUT,
    MASKED_MM,
    TILE_CONVOLUTION_WEIGHT,
)

aten = torch.ops.aten


class _Dense(Exception):
    """Says why a use of a weight cannot skip tiles."""


@dataclass(frozen=True)
class _Use:
    """A node that multiplies by the weight, or by its transpose."""

    node: fx.Node
    transposed: bool


@dataclass(frozen=True)
class SparseForward:
    """The pass."""

    name = "sparse_forward"
    stage = Stage.JOINT
    requires = ("sparse",)
    ensures = Ensures.DENSE_VALUES

    @classmethod
    def asked_by(cls, request: Request) -> SparseForward | None:
        """The pass; None if the request does not ask for a sparse forward."""
        sparsity = request.options.sparsity
        return cls() if sparsity is not None and sparsity.is_forward_sparse else None

    def run(self, graph: TrainingGraph, facts: Facts) -> Result[TrainingGraph]:
        """Rewrite a joint graph in place, for the parameters whose gradients are cut."""
        found = facts.sparse
        assert found is not None
        changed = []
        for slot, parameter in found.tiled.items():
            try:
                flops = mask_uses(graph.graph, graph.primals[slot], slot)
                changed.append(replace(parameter, forward_flops=flops))
            except _Dense as reason:
                changed.append(replace(parameter, forward_dense=str(reason)))
        found = found.with_forward(changed)
        rewritten = TrainingGraph(graph.module, graph.num_forward_outputs, graph.static_inputs)
        masked = sum(each.has_sparse_forward for each in found.tiled.values())
        said = f"{masked} of {len(found.tiled)} parameters with a sparse forward"
        return Result(rewritten, said, replace(facts, sparse=found))

    def run_on_inference(
        self, graph: fx.Graph, inputs: Sequence[fx.Node], slots: Iterable[int]
    ) -> frozenset[int]:
        """Rewrite a graph without a backward; returns the slots whose uses skip tiles."""
        masked = set()
        for slot in sorted(slots):
            try:
                if mask_uses(graph, inputs[slot], slot):
                    masked.add(slot)
            except _Dense:
                continue  # reported at run time, if the parameter has a forward set
        return frozenset(masked)


def mask_uses(graph: fx.Graph, weight: fx.Node, slot: int) -> float:
    """Rewrite all uses of a weight, or none; returns their FLOPs."""
    uses = list(_uses(weight))
    flops = sum(_flops(use.node) for use in uses)
    for use in uses:
        _mask(use, slot)
    return flops


def _uses(weight: fx.Node) -> Iterable[_Use]:
    pending = [(weight, False)]
    while pending:
        node, transposed = pending.pop()
        for user in node.users:
            if user.target in TRANSPOSES and user.meta["val"].dim() == 2:
                pending.append((user, not transposed))
            elif user.target in COPIES and same_shape(user, node):
                pending.append((user, transposed))
            elif user.target is TILE_CONVOLUTION_WEIGHT:
                continue  # reads the shape only
            elif _position(user) is not None and _reads_once(user, node, _position(user)):
                yield _Use(user, transposed)
            else:
                raise _Dense(f"it is used by {user.target} too")


def _position(user: fx.Node) -> int | None:
    """The position among a node's arguments where the weight must stand."""
    if user.target is aten.mm.default:
        return 1
    if user.target is aten.addmm.default:
        return None if user.kwargs else 2
    if user.target is aten.convolution.default:
        return 1 if _is_plain(user.args[6], user.args[8]) else None
    if user.target is aten.convolution_backward.default:
        return 2 if _is_plain(user.args[7], user.args[9]) else None
    return None


def _is_plain(transposed: Any, groups: Any) -> bool:
    return not transposed and groups == 1


def _reads_once(user: fx.Node, node: fx.Node, position: int | None) -> bool:
    return [i for i, argument in enumerate(user.args) if argument is node] == [position]


def _flops(node: fx.Node) -> float:
    """FLOPs of a product that will be masked."""
    if node.target is not aten.convolution_backward.default:
        return matrix_flops(node) or 0.0
    return convolution_flops(node, 0)


def _mask(use: _Use, slot: int) -> None:
    node = use.node
    if node.target is aten.mm.default:
        replaced(node, MASKED_MM, (*node.args, slot, use.transposed))
    elif node.target is aten.addmm.default:
        replaced(node, MASKED_ADDMM, (*node.args, slot, use.transposed))
    elif node.target is aten.convolution.default:
        replaced(node, MASKED_CONVOLUTION, (*node.args[:6], slot))
    else:
        _mask_input_gradient(node, slot)


def _mask_input_gradient(backward: fx.Node, slot: int) -> None:
    for result in list(backward.users):
        if result.target is operator.getitem and result.args[1] == 0:
            arguments = (*backward.args[:3], *backward.args[4:7], slot)
            replaced(result, MASKED_CONVOLUTION_INPUT, arguments)
    if backward.args[10][0]:  # type: ignore[index]
        drop_result(backward, 0)
