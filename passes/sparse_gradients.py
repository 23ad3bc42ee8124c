"""Gradients of weights, computed only where the weight is trained.

What the pass rewrites, in a joint graph:

1. The gradient of a parameter of two dimensions, if it is one matrix product or a sum of several (a
   weight that is used more than once). Only transposes, casts, copies and multiplications by
   numbers stand between the products and the gradient, so that zeros stay zero, and no other node
   reads the values between. Each product becomes ``satcompile::tile_mm``.
2. The gradient of the weight of a convolution of any number of dimensions, neither grouped nor
   transposed. It is taken out of ``convolution_backward`` and becomes
   ``satcompile::tile_convolution_weight``; the gradients of input and bias stay where they are.

What it leaves alone, each with the reason in the report: parameters of fewer dimensions, embeddings
(also where they are tied to a projection), grouped and transposed convolutions, weights of a single
tile, and any other gradient that is not a plain product. Attention's products lead to no
parameter's gradient.

The operators look up the tiles to compute when they run
(``satcompile.updates.sparsity.operators``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from satcompile.passes.contract import Ensures, Result, Stage
from satcompile.passes.facts import DenseParameter, Facts, SparseParameters, TiledParameter
from torch import fx
from torch.fx.node import map_arg

from satcompile.graph.training_graph import TrainingGraph
from satcompile.planner.cost.roofline import matrix_flops
from satcompile.planner.request import Request
from satcompile.torch_compat.tensors import is_dense
from satcompile.updates.sparsity.grid import Grid
from satcompile.updates.sparsity.operators import TILE_CONVOLUTION_WEIGHT, TILE_MM

aten, prims = torch.ops.aten, torch.ops.prims

TRANSPOSES = (aten.permute.default, aten.t.default, aten.transpose.int)
COPIES = (
    prims.convert_element_type.default, aten._to_copy.default, aten.clone.default,
    aten.view.default, aten.reshape.default, aten._unsafe_view.default,
)  # fmt: skip
_BY_NUMBERS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.neg.default)
_EMBEDDINGS = ("embedding", "index_put", "scatter", "index_add")


class _Dense(Exception):
    """Says why a gradient cannot be cut."""


@dataclass(frozen=True)
class SparseGradients:
    """The pass.

    Attributes:
        slots: positions of the trained parameters among the graph's inputs.
        block: rows and columns of a tile, as the user gave it.
    """

    slots: frozenset[int]
    block: int

    name = "sparse_gradients"
    stage = Stage.JOINT
    requires = ()
    ensures = Ensures.DENSE_VALUES

    @classmethod
    def asked_by(cls, request: Request) -> SparseGradients | None:
        """The pass with the settings of a request; None if the request does not ask for it."""
        sparsity = request.options.sparsity
        return None if sparsity is None else cls(request.subject.trained, sparsity.block)

    def run(self, graph: TrainingGraph, facts: Facts) -> Result[TrainingGraph]:
        """Rewrite the joint graph in place; data derived from the old graph becomes invalid."""
        tiled: dict[int, TiledParameter] = {}
        dense: list[DenseParameter] = []
        total = sum(matrix_flops(node) or 0.0 for node in graph.graph.nodes)
        for slot in sorted(self.slots):
            weight = graph.primals[slot].meta["val"]
            gradient = graph.backward_outputs[slot]
            try:
                tiled[slot] = self._cut(slot, weight, gradient)
            except _Dense as why:
                dense.append(DenseParameter(slot, tuple(map(int, weight.shape)), str(why)))
        graph.graph.eliminate_dead_code()
        graph.graph.lint()
        graph.module.recompile()
        found = SparseParameters(tiled, dense, total)
        changed = TrainingGraph(graph.module, graph.num_forward_outputs, graph.static_inputs)
        return Result(changed, _described(found), replace(facts, sparse=found))

    def _cut(self, slot: int, weight: torch.Tensor, gradient: Any) -> TiledParameter:
        grid = self._grid(weight, gradient)
        products = dict(_products(gradient, len(grid.shape) > 2))
        flops = sum(_flops(node) for node in products)
        for node, transposed in products.items():
            if node.target is operator.getitem:
                _cut_convolution(node, slot, self.block)
            else:
                arguments = (*node.args[:2], slot, self.block, transposed)
                replaced(node, TILE_MM, arguments)
        return TiledParameter(slot, grid, flops)

    def _grid(self, weight: torch.Tensor, gradient: Any) -> Grid:
        if weight.dim() < 2:
            raise _Dense(f"{weight.dim()} dimension{'s' * (weight.dim() != 1)}: always dense")
        if not isinstance(gradient, fx.Node):
            raise _Dense("no gradient flows to it")
        if not all(isinstance(extent, int) for extent in weight.shape):
            raise _Dense("its shape is symbolic")
        if not (weight.is_contiguous() if weight.dim() == 2 else _has_dense_rows(weight)):
            raise _Dense("its memory is in another order")
        grid = Grid.of(weight.shape, self.block)
        if grid.down * grid.across < 2:
            raise _Dense(f"a single tile (block={self.block})")
        return grid


def _described(found: SparseParameters) -> str:
    gradients_flops = sum(each.gradient_flops for each in found.tiled.values())
    share = gradients_flops / found.total_flops if found.total_flops else 0.0
    return (
        f"gradients of {len(found.tiled)} parameters in tiles ({share:.0%} of the FLOPs), "
        f"{len(found.dense)} parameters dense"
    )


def _has_dense_rows(weight: torch.Tensor) -> bool:
    """Whether each output channel's weights are together in memory, in any order."""
    return is_dense(weight) and weight.stride(0) == weight.numel() // weight.shape[0]


def _products(gradient: fx.Node, is_convolution: bool) -> Iterable[tuple[fx.Node, bool]]:
    """The products whose sum is a gradient, and whether each is transposed on its way there."""
    pending: list[tuple[fx.Node, bool]] = [(gradient, False)]
    while pending:
        node, transposed = pending.pop()
        if len(node.users) != 1:
            raise _Dense(f"its gradient is read on its way ({node.name})")
        sources = _sources(node)
        if sources is not None:
            pending += [(source, transposed ^ _is_transpose(node)) for source in sources]
        elif not is_convolution and node.target is aten.mm.default:
            yield node, transposed
        elif is_convolution and _is_convolution_weight(node):
            yield node, False
        else:
            raise _Dense(_why_dense(node))


def _sources(node: fx.Node) -> list[fx.Node] | None:
    """The nodes that a node passes on, zeros included, by element; None where it computes."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    first = node.args[0]
    if _is_transpose(node) or (node.target in COPIES and same_shape(node, first)):
        return [first]
    if node.target is aten.add.Tensor and isinstance(node.args[1], fx.Node) and not node.kwargs:
        return [first, node.args[1]] if same_shape(node, first, node.args[1]) else None
    others = node.args[1:]
    if node.target in _BY_NUMBERS and not any(isinstance(other, fx.Node) for other in others):
        return [first]
    return None


def _is_transpose(node: fx.Node) -> bool:
    """Whether a node transposes a matrix."""
    value = node.meta.get("val")
    if node.target not in TRANSPOSES or not isinstance(value, torch.Tensor) or value.dim() != 2:
        return False
    return node.target is not aten.permute.default or list(node.args[1]) in ([1, 0], [-1, -2])  # type: ignore[arg-type]


def same_shape(*nodes: fx.Node) -> bool:
    return len({str(tuple(node.meta["val"].shape)) for node in nodes}) == 1


def _operation(node: fx.Node) -> fx.Node:
    """The convolution behind one of its results."""
    return node.args[0] if node.target is operator.getitem else node  # type: ignore[return-value]


def _flops(product: fx.Node) -> float:
    if product.target is operator.getitem:
        return convolution_flops(_operation(product), 1)
    return matrix_flops(product) or 0.0


def convolution_flops(backward: fx.Node, position: int) -> float:
    """FLOPs of one of the three results of a ``convolution_backward``."""
    mask, values = list(backward.args[10]), backward.meta["val"]  # type: ignore[arg-type]
    if not mask[position]:
        return 0.0
    wanted = [p == position for p in range(3)]
    graph = fx.Graph()  # of a copy of the node, to count its FLOPs
    arguments = tuple(map_arg(backward.args, lambda node: _placeholder(graph, node)))
    alone = graph.call_function(backward.target, (*arguments[:10], wanted))  # type: ignore[arg-type]
    alone.meta["val"] = tuple(v if w else None for v, w in zip(values, wanted, strict=True))
    return matrix_flops(alone) or 0.0


def _placeholder(graph: fx.Graph, node: fx.Node) -> fx.Node:
    new = graph.placeholder(node.name)
    new.meta = node.meta
    return new


def _is_convolution_weight(node: fx.Node) -> bool:
    if node.target is not operator.getitem or node.args[1] != 1:
        return False
    backward = node.args[0]
    if not isinstance(backward, fx.Node) or backward.target != aten.convolution_backward.default:
        return False
    transposed, groups = backward.args[7], backward.args[9]
    if transposed:
        raise _Dense("a transposed convolution")
    if groups != 1:
        raise _Dense(f"a convolution in {groups} groups")
    return True


def _why_dense(node: fx.Node) -> str:
    name = str(node.target)
    if any(part in name for part in _EMBEDDINGS):
        return "an embedding (also where it is tied to a projection)"
    return f"its gradient comes from {name}, which is no plain product"


def _cut_convolution(node: fx.Node, slot: int, block: int) -> None:
    backward = _operation(node)
    arguments = (*backward.args[:3], *backward.args[4:7], slot, block)
    replaced(node, TILE_CONVOLUTION_WEIGHT, arguments)
    drop_result(backward, 1)


def drop_result(backward: fx.Node, position: int) -> None:
    """Stop a ``convolution_backward`` from computing one of its three results."""
    mask = list(backward.args[10])  # type: ignore[arg-type]
    mask[position] = False
    backward.args = (*backward.args[:10], mask)
    values = list(backward.meta["val"])
    values[position] = None
    backward.meta["val"] = tuple(values)
    if not any(mask):
        backward.graph.erase_node(backward)


def replaced(node: fx.Node, target: Callable[..., Any], arguments: tuple[Any, ...]) -> fx.Node:
    """Replace ``node`` by another operation with the same result; returns the new node."""
    graph = node.graph
    with graph.inserting_before(node):
        new = graph.call_function(target, arguments)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return new
