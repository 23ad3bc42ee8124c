"""The region computed in chunks: all values of the logits' size, and those that stand between.

The region begins at the product that makes the logits (more numbers out than in: an amplifier). It
grows to readers and to operands, through the forward and the backward, as long as values are as
large as the logits. A small value joins if it stands between two values of the region (the
logarithm of a sum that is then subtracted from all logits). All other small values are either
inputs of the region, in slices, or results: rows side by side, or sums over all rows.

The region has two stages, the forward's and the backward's. A value that needs all rows at once
would split one of them in two, with the logits alive in between. Such a region is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from satcompile.graph.chunking.rows import (
    NotByRows,
    Rows,
    Use,
    shape_of,
    use_for_result,
    use_of_operand,
)
from satcompile.graph.training_graph import TrainingGraph, is_tensor

aten = torch.ops.aten

CHUNK_OF = "chunk_of"  # in a node's meta: the name of the joint graph's node
_AMPLIFIES = 4  # times as many numbers in a row of the result as in a row of the factor
_LARGE = 0.5  # of the logits' numbers: logits of all but the last token are large, too


@dataclass(frozen=True)
class Region:
    """Nodes of a joint graph that are computed in chunks, in the graph's order.

    Attributes:
        amplifier: the product that makes the logits.
        uses: how each node is computed.
        stages: the stage of each node: 0 in the forward, 1 in the backward.
        units: the most pieces into which the rows can be cut.
        large: nodes of the logits' size.
    """

    amplifier: fx.Node
    uses: dict[fx.Node, Use]
    stages: dict[fx.Node, int]
    units: int
    large: frozenset[fx.Node]

    def of_stage(self, stage: int) -> list[Use]:
        return [use for node, use in self.uses.items() if self.stages[node] == stage]


def amplifiers(graph: TrainingGraph) -> Iterator[fx.Node]:
    """Products of the forward whose results are much larger than what they read, largest first."""
    found = [
        node
        for node in graph.graph.nodes
        if node.target in (aten.mm.default, aten.addmm.default)
        and CHUNK_OF not in node.meta
        and not graph.is_backward(node)
        and _amplifies(node)
    ]
    yield from sorted(found, key=_numbers, reverse=True)


def _amplifies(node: fx.Node) -> bool:
    value, factor = node.meta["val"], node.args[-2]
    assert isinstance(factor, fx.Node)
    width, inner = value.shape[1], factor.meta["val"].shape[1]
    # Comparing symbolic sizes would guard on them, so we do not; ``find`` refuses them.
    known = isinstance(width, int) and isinstance(inner, int)
    return known and width > _AMPLIFIES * inner


def _numbers(node: fx.Node) -> int:
    shape = node.meta["val"].shape
    return math.prod(extent for extent in shape if isinstance(extent, int))


def find(graph: TrainingGraph, amplifier: fx.Node) -> Region:
    """The region around ``amplifier``.

    Raises:
        NotByRows: some value of the region cannot be computed in chunks.
    """
    growth = _Growth(math.prod(shape_of(amplifier)))
    growth.add(use_for_result(amplifier, Rows(0, 1)))
    growth.to_its_end(graph)
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    uses = {node: growth.uses[node] for node in sorted(growth.uses, key=order.__getitem__)}
    units = math.gcd(shape_of(amplifier)[0], *(use.unit for use in uses.values() if use.unit))
    large = frozenset(node for node in uses if growth.is_large(node))
    for use in uses.values():
        _check_units(use, units)
    return Region(amplifier, uses, _stages(graph, uses), units, large)


class _Growth:
    def __init__(self, numbers: int) -> None:
        self._least = int(numbers * _LARGE)
        self.uses: dict[fx.Node, Use] = {}
        self._pending: list[fx.Node] = []

    def is_large(self, node: fx.Node) -> bool:
        """Whether the node has rows and is as large as the logits."""
        return self.uses[node].rows is not None and self._has_many(node)

    def _has_many(self, node: fx.Node) -> bool:
        return is_tensor(node) and math.prod(shape_of(node)) >= self._least

    def add(self, use: Use) -> None:
        known = self.uses.get(use.node)
        if known is None:
            self.uses[use.node] = use
            self._pending.append(use.node)
        elif known.rows != use.rows:
            raise NotByRows(f"{use.node.name} is used both by rows and otherwise")

    def to_its_end(self, graph: TrainingGraph) -> None:
        while True:
            while self._pending:
                self._around(self._pending.pop())
            if not self._joined_by_what_stands_between(graph):
                break
        for use in self.uses.values():
            for operand, rows in use.operands.items():
                if operand in self.uses and self.uses[operand].rows != rows:
                    raise NotByRows(f"{operand.name} is used both by rows and otherwise")

    def _around(self, node: fx.Node) -> None:
        use = self.uses[node]
        if self.is_large(node):
            assert use.rows is not None
            for user in node.users:
                if user.op == "output":
                    raise NotByRows(
                        f"{node.name}, as large as the logits, is a result of the graph"
                    )
                self.add(use_of_operand(user, node, use.rows))
        for operand, rows in use.operands.items():
            if rows is not None and operand.op == "call_function" and self._has_many(operand):
                self.add(use_for_result(operand, rows))

    def _joined_by_what_stands_between(self, graph: TrainingGraph) -> bool:
        """Add small values that are made from the region's and go into it; whether any were."""
        below: set[fx.Node] = set()
        for node in graph.graph.nodes:
            if any(a in below or a in self.uses for a in node.all_input_nodes):
                below.add(node)
        for use in list(self.uses.values()):
            for operand, rows in use.operands.items():
                if rows is None or operand in self.uses or operand not in below:
                    continue
                try:
                    self.add(use_for_result(operand, rows))
                except NotByRows:
                    continue  # computed from all rows: ``_stages`` decides whether that is allowed
        return bool(self._pending)


def _check_units(use: Use, units: int) -> None:
    rows = use.rows
    if units < 2 or (rows is not None and rows.count(shape_of(use.node)) % units):
        raise NotByRows("the tokens cannot be cut into chunks of whole sequences")


def _stages(graph: TrainingGraph, uses: dict[fx.Node, Use]) -> dict[fx.Node, int]:
    """The stage of each node, by the longest path through values of all rows. A node that neither
    forward nor backward claims is computed as late as its readers allow."""
    stages: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        within = node in uses
        stage = 0
        for operand in node.all_input_nodes:
            is_whole = operand in uses and (not within or uses[operand].rows is None)
            stage = max(stage, stages[operand] + is_whole)
        if within and graph.is_backward(node):
            stage = max(stage, 1)
        stages[node] = stage
        limit = 1 if within and not graph.is_forward(node) else 0
        if within and stage > limit:
            raise NotByRows(f"{node.name} ({node.target}) needs results of all tokens")
    for node in reversed(graph.graph.nodes):
        if node in uses and not graph.is_forward(node) and not graph.is_backward(node):
            readers = [stages[user] for user in node.users if user in uses]
            outside = any(user not in uses for user in node.users)
            stages[node] = max(stages[node], 0 if outside or not readers else min(readers))
    return {node: stages[node] for node in uses}
