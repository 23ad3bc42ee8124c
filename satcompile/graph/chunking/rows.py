"""Which dimensions of a value are its rows, and how operators carry rows from operand to result.

Rows (the tokens of a batch) are adjacent dimensions, read in row-major order: ``[N, V]`` and
``[B, T, V]`` have the same rows where ``N = B * T``. A chunk of a value has a single dimension in
their place: rows ``[a, b)`` of ``[B, T, V]`` are ``[b - a, V]``.

Every operator that may stand in a chunk has a rule here. The rule says

1. which rows the result has, given the rows of one operand (``result``),
2. which rows each operand must have for that, or None for an operand that is the same for all rows
   (``operands``),
3. which arguments the operator has in a chunk (``emit``).

A result without rows is a sum over all rows. If there is no rule for an operator, or its rule does
not allow the way it is used, ``NotByRows`` says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import fx

from satcompile.graph.nodes import is_mutation, is_random
from satcompile.torch_compat.operators import OpOverload

aten, prims = torch.ops.aten, torch.ops.prims

Shape = tuple[int, ...]


class NotByRows(Exception):
    """Why something cannot be computed in chunks of rows."""


@dataclass(frozen=True)
class Rows:
    """The dimensions from ``start`` up to ``stop`` are rows."""

    start: int
    stop: int

    def count(self, shape: Shape) -> int:
        return math.prod(shape[self.start : self.stop])

    def flat(self, shape: Shape, count: int) -> Shape:
        """The shape of ``count`` rows of a value of ``shape``."""
        return (*shape[: self.start], count, *shape[self.stop :])

    def dimension(self, index: int) -> int:
        """The position in a chunk of a dimension that is not a row."""
        return index if index < self.start else index - (self.stop - self.start) + 1

    def has(self, index: int) -> bool:
        return self.start <= index < self.stop

    def shifted(self, by: int) -> Rows:
        return Rows(self.start + by, self.stop + by)


def trimmed(shape: Shape, start: int, stop: int) -> Rows:
    """Rows without dimensions of size one at either end, so that equal rows compare equal."""
    while stop - start > 1 and shape[start] == 1:
        start += 1
    while stop - start > 1 and shape[stop - 1] == 1:
        stop -= 1
    return Rows(start, stop)


def shape_of(node: fx.Node) -> Shape:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise NotByRows(f"{node.name} is no tensor")
    if not all(isinstance(extent, int) for extent in value.shape):
        raise NotByRows(f"the sizes of {node.name} are symbolic")
    return tuple(value.shape)


Operands = dict[fx.Node, Rows | None]


@dataclass(frozen=True)
class Use:
    """How a node is computed in chunks.

    Attributes:
        node: a node of the joint graph.
        rows: rows of its result; None where that is a sum over all rows.
        operands: rows of each operand; None for one that is the same for all rows.
        unit: the most blocks into which the rows may be cut; a chunk has whole blocks.
    """

    node: fx.Node
    rows: Rows | None
    operands: Mapping[fx.Node, Rows | None]
    unit: int | None = None


class Chunk(Protocol):
    """A chunk that a rule writes to: the graph, and the operands as they are in the chunk."""

    def of(self, operand: fx.Node, aligned_to: fx.Node | None = None) -> fx.Node:
        """The operand's rows of this chunk. An operand that is the same for all rows comes whole,
        reshaped for ``aligned_to``'s chunk where it is broadcast to that."""

    def shape(self, node: fx.Node) -> Shape:
        """The shape of the node in this chunk."""

    def blocks(self, unit: int) -> int:
        """How many of ``unit`` blocks of rows are in this chunk."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Write a new operation."""


@dataclass
class _Demands:
    """Collects the rows that operands must have; each operand has one answer."""

    found: Operands = field(default_factory=dict)

    def add(self, node: Any, rows: Rows | None) -> None:
        if not isinstance(node, fx.Node):
            return
        shape_of(node)  # a tensor, of known sizes
        if self.found.setdefault(node, rows) != rows:
            raise NotByRows(f"{node.name} is used both by rows and as a whole")


def aligned(operand: fx.Node, shape: Shape, rows: Rows) -> Rows | None:
    """Rows of an operand that is broadcast to ``shape``; None if it is the same for all rows."""
    own = shape_of(operand)
    offset = len(shape) - len(own)
    extents = [own[i - offset] if i >= offset else 1 for i in range(rows.start, rows.stop)]
    if all(extent == 1 for extent in extents):
        return None
    if tuple(extents) != shape[rows.start : rows.stop]:
        raise NotByRows(f"{operand.name} is the same for some of the tokens")
    return rows.shifted(-offset)


class _Pointwise:
    """Makes each element of the result from the same element of every operand, with broadcasts."""

    def result(self, node: fx.Node, operand: fx.Node, rows: Rows) -> Rows | None:
        return rows.shifted(len(shape_of(node)) - len(shape_of(operand)))

    def operands(self, node: fx.Node, rows: Rows) -> Operands:
        demands = _Demands()
        for operand in node.all_input_nodes:
            demands.add(operand, aligned(operand, shape_of(node), rows))
        return demands.found

    def emit(self, use: Use, chunk: Chunk) -> fx.Node:
        def own(operand: fx.Node) -> fx.Node:
            return chunk.of(operand, aligned_to=use.node)

        args, kwargs = fx.map_arg((use.node.args, dict(use.node.kwargs)), own)
        return chunk.call(use.node.target, *args, **kwargs)


class _Expand(_Pointwise):
    """As pointwise, with the result's sizes among the arguments."""

    def emit(self, use: Use, chunk: Chunk) -> fx.Node:
        operand = chunk.of(use.node.args[0], aligned_to=use.node)  # type: ignore[arg-type]
        return chunk.call(aten.expand.default, operand, list(chunk.shape(use.node)))


class _View:
    """Splits and merges dimensions, but does not merge rows with other dimensions."""

    def result(self, node: fx.Node, operand: fx.Node, rows: Rows) -> Rows | None:
        return _same_rows(shape_of(operand), rows, shape_of(node))

    def operands(self, node: fx.Node, rows: Rows) -> Operands:
        (operand,) = node.all_input_nodes
        return {operand: _same_rows(shape_of(node), rows, shape_of(operand))}

    def emit(self, use: Use, chunk: Chunk) -> fx.Node:
        (operand,) = use.operands
        if chunk.shape(operand) == chunk.shape(use.node):
            return chunk.of(operand)
        return chunk.call(aten.view.default, chunk.of(operand), list(chunk.shape(use.node)))


def _same_rows(shape: Shape, rows: Rows, other: Shape) -> Rows:
    """Rows of ``other``, a view of ``shape``."""
    before, count = math.prod(shape[: rows.start]), rows.count(shape)
    for start in reversed(range(len(other))):
        if math.prod(other[:start]) != before:
            continue
        for stop in range(start + 1, len(other) + 1):
            if math.prod(other[start:stop]) == count:
                return trimmed(other, start, stop)
    raise NotByRows("a view mixes tokens with other dimensions")


class _Permute:
    """Moves dimensions; rows stay side by side and in order."""

    def result(self, node: fx.Node, operand: fx.Node, rows: Rows) -> Rows | None:
        order = _order(node)
        start = order.index(rows.start)
        self._check(order, start, rows)
        return Rows(start, start + rows.stop - rows.start)

    def operands(self, node: fx.Node, rows: Rows) -> Operands:
        order = _order(node)
        start = order[rows.start]
        own = Rows(start, start + rows.stop - rows.start)
        self._check(order, rows.start, own)
        return {node.args[0]: own}  # type: ignore[dict-item]

    @staticmethod
    def _check(order: Sequence[int], start: int, rows: Rows) -> None:
        if list(order[start : start + rows.stop - rows.start]) != list(
            range(rows.start, rows.stop)
        ):
            raise NotByRows("tokens change their order")

    def emit(self, use: Use, chunk: Chunk) -> fx.Node:
        (operand,) = use.operands
        rows = use.operands[operand]
        assert rows is not None
        order = [rows.dimension(d) for d in _order(use.node) if d == rows.start or not rows.has(d)]
        return chunk.call(aten.permute.default, chunk.of(operand), order)


def _order(node: fx.Node) -> list[int]:
    rank = len(shape_of(node))
    if node.target is aten.permute.default:
        return [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr, arg-type]
    order = list(range(rank))
    one, other = node.args[1:3] if node.target is aten.transpose.int else (0, rank - 1)
    order[one], order[other] = order[other], order[one]  # type: ignore[index]
    return order


class _Reduce:
    """Reduces over dimensions that are not rows; a sum may be over all rows, too."""

    def __init__(self, sums: bool = False) -> None:
        self._sums = sums

    def result(self, node: fx.Node, operand: fx.Node, rows: Rows) -> Rows | None:
        reduced = _reduced(node)
        if not any(rows.has(d) for d in reduced):
            below = 0 if _keeps(node) else sum(d < rows.start for d in reduced)
            return rows.shifted(-below)
        shape = shape_of(operand)
        if not all(d in reduced for d in range(rows.start, rows.stop) if shape[d] > 1):
            raise NotByRows(f"{node.name} ({node.target}) reduces over some of the tokens")
        if not self._sums:
            raise NotByRows(f"{node.name} ({node.target}) needs all tokens at once")
        return None

    def operands(self, node: fx.Node, rows: Rows) -> Operands:
        operand = node.args[0]
        assert isinstance(operand, fx.Node)
        reduced = _reduced(node)
        if _keeps(node):
            return {operand: rows}
        kept = [d for d in range(len(shape_of(operand))) if d not in reduced]
        own = kept[rows.start : rows.stop]
        if own != list(range(own[0], own[0] + len(own))):
            raise NotByRows(f"{node.name} ({node.target}) reduces between tokens")
        return {operand: Rows(own[0], own[-1] + 1)}

    def emit(self, use: Use, chunk: Chunk) -> fx.Node:
        node = use.node
        (operand,) = use.operands
        rows = use.operands[operand]
        assert rows is not None
        kwargs = {k: v for k, v in node.kwargs.items() if k not in ("dim", "keepdim")}
        if node.target is aten.sum.default:
            return chunk.call(node.target, chunk.of(operand), **kwargs)
        dims = list(dict.fromkeys(_in_chunk(rows, d) for d in _reduced(node)))
        given = dims[0] if node.target in _ONE_DIMENSION else dims
        return chunk.call(node.target, chunk.of(operand), given, _keeps(node), **kwargs)


def _in_chunk(rows: Rows, dim: int) -> int:
    return rows.start if rows.has(dim) else rows.dimension(dim)


def _dims(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")


def _reduced(node: fx.Node) -> list[int]:
    """Dimensions that are reduced; all of them where none is named."""
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    rank, dims = len(shape_of(operand)), _dims(node)
    if node.target is aten.sum.default or dims is None or dims == []:
        return list(range(rank))
    return [int(d) % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])]


def _keeps(node: fx.Node) -> bool:
    return bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))


class _Gather:
    """``gather`` and ``scatter`` along a dimension that is no row; all operands share the rows."""

    def result(self, node: fx.Node, operand: fx.Node, rows: Rows) -> Rows | None:
        return rows

    def operands(self, node: fx.Node, rows: Rows) -> Operands:
        demands = _Demands()
        shape = shape_of(node)
        if rows.has(_along(node)):
            raise NotByRows(f"{node.name} ({node.target}) moves values between tokens")
        for operand in node.all_input_nodes:
            own = shape_of(operand)
            if (
                len(own) != len(shape)
                or own[rows.start : rows.stop] != shape[rows.start : rows.stop]
            ):
                raise NotByRows(f"{operand.name} speaks of some of the tokens")
            demands.add(operand, rows)
        return demands.found

    def emit(self, use: Use, chunk: Chunk) -> fx.Node:
        assert use.rows is not None
        args = list(fx.map_arg(use.node.args, chunk.of))
        args[1] = use.rows.dimension(_along(use.node))
        return chunk.call(use.node.target, *args, **use.node.kwargs)


def _along(node: fx.Node) -> int:
    return int(node.args[1]) % len(shape_of(node))  # type: ignore[arg-type]


class _Full:
    """One number everywhere, with as many rows as are wanted."""

    def result(self, node: fx.Node, operand: fx.Node, rows: Rows) -> Rows | None:
        raise NotByRows("full has no operands")

    def operands(self, node: fx.Node, rows: Rows) -> Operands:
        return {}

    def emit(self, use: Use, chunk: Chunk) -> fx.Node:
        shape = list(chunk.shape(use.node))
        return chunk.call(use.node.target, shape, *use.node.args[1:], **use.node.kwargs)


class _Product:
    """``mm`` and ``addmm``: rows of one factor are rows of the result, or are summed over."""

    def result(self, node: fx.Node, operand: fx.Node, rows: Rows) -> Rows | None:
        *bias, left, right = node.args
        if left is right:
            raise NotByRows(f"{node.name} is a square")
        if operand in bias:
            return rows.shifted(2 - len(shape_of(operand)))
        contracted = rows.start == (1 if operand is left else 0)
        if contracted and bias:
            raise NotByRows(f"{node.name} adds to a sum over tokens")
        return None if contracted else rows

    def operands(self, node: fx.Node, rows: Rows) -> Operands:
        *bias, left, right = node.args
        demands = _Demands()
        for operand in bias:
            assert isinstance(operand, fx.Node)
            demands.add(operand, aligned(operand, shape_of(node), rows))
        demands.add(left, rows if rows.start == 0 else None)
        demands.add(right, rows if rows.start == 1 else None)
        return demands.found

    def emit(self, use: Use, chunk: Chunk) -> fx.Node:
        *bias, left, right = use.node.args
        factors = [chunk.of(left), chunk.of(right)]  # type: ignore[arg-type]
        added = [chunk.of(each, aligned_to=use.node) for each in bias]  # type: ignore[arg-type]
        return chunk.call(use.node.target, *added, *factors, **use.node.kwargs)


class _Slice:
    """``slice`` and ``slice_scatter``. Along a dimension of rows (a token shifted against the
    next), every sequence is cut in the same way, so chunks have whole sequences."""

    def result(self, node: fx.Node, operand: fx.Node, rows: Rows) -> Rows | None:
        return rows

    def operands(self, node: fx.Node, rows: Rows) -> Operands:
        self.unit(node, rows)
        demands = _Demands()
        for operand in node.all_input_nodes:
            demands.add(operand, rows)
        return demands.found

    def unit(self, node: fx.Node, rows: Rows) -> int | None:
        dim = self._dim(node)
        if not rows.has(dim):
            return None
        blocks = math.prod(shape_of(node)[rows.start : dim])
        if blocks < 2:
            raise NotByRows(f"{node.name} takes some of the tokens of a single sequence")
        return blocks

    def emit(self, use: Use, chunk: Chunk) -> fx.Node:
        rows, node, dim = use.rows, use.node, self._dim(use.node)
        assert rows is not None
        rest = node.args[2 + self._sources(node) - 1 :]
        operands = [chunk.of(n) for n in node.args[: self._sources(node)]]  # type: ignore[arg-type]
        if not rows.has(dim):
            return chunk.call(node.target, *operands, rows.dimension(dim), *rest, **node.kwargs)
        assert use.unit is not None
        blocks = chunk.blocks(use.unit)
        apart = [
            chunk.call(aten.view.default, operand, self._apart(own, rows, dim, blocks))
            for operand, own in zip(operands, node.args, strict=False)
        ]
        taken = chunk.call(node.target, *apart, rows.start + 1, *rest, **node.kwargs)
        if not taken.meta["val"].is_contiguous():
            taken = chunk.call(aten.clone.default, taken, memory_format=torch.contiguous_format)
        return chunk.call(aten.view.default, taken, list(chunk.shape(node)))

    @staticmethod
    def _apart(own: Any, rows: Rows, dim: int, blocks: int) -> list[int]:
        shape = shape_of(own)
        return [*shape[: rows.start], blocks, *shape[dim:]]

    @staticmethod
    def _sources(node: fx.Node) -> int:
        return 2 if node.target is aten.slice_scatter.default else 1

    def _dim(self, node: fx.Node) -> int:
        position = self._sources(node)
        dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
        if "dim" in node.kwargs:
            raise NotByRows(f"{node.name} names its dimension")
        return int(dim) % len(shape_of(node))  # type: ignore[arg-type]


_ONE_DIMENSION = (aten.argmax.default, aten.any.dim)

Rule = _Pointwise | _Expand | _View | _Permute | _Reduce | _Gather | _Full | _Product | _Slice

_RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            prims.convert_element_type.default, aten.clone.default, aten.alias.default,
            aten.detach.default,
        ),
        _Pointwise(),
    ),
    aten.expand.default: _Expand(),
    **dict.fromkeys(
        (
            aten.view.default, aten.reshape.default, aten._unsafe_view.default,
            aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
        ),
        _View(),
    ),
    **dict.fromkeys((aten.permute.default, aten.t.default, aten.transpose.int), _Permute()),
    **dict.fromkeys(
        (
            aten.amax.default, aten.amin.default, aten.mean.dim, aten.argmax.default,
            aten.logsumexp.default, aten.any.dim, aten.any.dims,
        ),
        _Reduce(),
    ),
    **dict.fromkeys((aten.sum.default, aten.sum.dim_IntList), _Reduce(sums=True)),
    **dict.fromkeys(
        (aten.gather.default, aten.scatter.value, aten.scatter.src, aten.scatter_add.default),
        _Gather(),
    ),
    aten.full.default: _Full(),
    **dict.fromkeys((aten.mm.default, aten.addmm.default), _Product()),
    **dict.fromkeys((aten.slice.Tensor, aten.slice_scatter.default), _Slice()),
}  # fmt: skip


def _rule(node: fx.Node) -> Rule:
    if node.op != "call_function" or is_random(node) or is_mutation(node):
        raise NotByRows(f"nothing is known of {node.name} ({node.target})")
    if node.target in _RULES:
        return _RULES[node.target]
    if isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags:
        return _Pointwise()
    raise NotByRows(f"nothing is known of {node.name} ({node.target})")


def use_for_result(node: fx.Node, rows: Rows) -> Use:
    """How ``node`` is computed where its result has these rows."""
    rule = _rule(node)
    _check_layout(node)
    unit = rule.unit(node, rows) if isinstance(rule, _Slice) else None
    return Use(node, rows, rule.operands(node, rows), unit)


def use_of_operand(node: fx.Node, operand: fx.Node, rows: Rows) -> Use:
    """How ``node`` is computed where one of its operands has these rows."""
    found = _rule(node).result(node, operand, rows)
    if found is None:
        return Use(node, None, _summed(node, operand, rows))
    shape = shape_of(node)
    found = trimmed(shape, found.start, found.stop)
    use = use_for_result(node, found)
    if use.operands.get(operand) != rows:
        raise NotByRows(f"{node.name} ({node.target}) does not keep the tokens of {operand.name}")
    return use


def _summed(node: fx.Node, operand: fx.Node, rows: Rows) -> Operands:
    if node.target in (aten.sum.default, aten.sum.dim_IntList):
        return {operand: rows}
    left, right = node.args
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    return {left: Rows(1, 2), right: Rows(0, 1)}


def _check_layout(node: fx.Node) -> None:
    layout = node.kwargs.get("memory_format")
    if layout not in (None, torch.contiguous_format, torch.preserve_format):
        raise NotByRows(f"{node.name} has the layout {layout}")


def emit(use: Use, chunk: Chunk) -> fx.Node:
    """Write the node's operation for one chunk."""
    return _rule(use.node).emit(use, chunk)
