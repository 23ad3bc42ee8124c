"""The joint graph as passes see it: which nodes are forward, which are backward, who needs what.

It is built from the module that AOTAutograd traced, after Inductor's joint-graph passes. It knows
nodes and storages, not plans; ``satcompile.planner.problem`` turns it into a problem.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx

from satcompile.graph.aliases import storage_owners
from satcompile.graph.overwritten import keep_what_is_read
from satcompile.torch_compat.partitioner import (
    classify_nodes,
    forward_backward_outputs,
    prepare_joint_graph,
)
from satcompile.torch_compat.symbols import is_symbolic, size_hint
from satcompile.torch_compat.trees import pytree


class TrainingGraph:
    """A joint forward+backward graph.

    Attributes:
        module: the joint module; ``prepare_joint_graph`` has cleaned it and marked what torch
            itself insists on saving.
        num_forward_outputs: how many of the graph's outputs are the forward's.
        static_inputs: positions of inputs whose memory outlives the step (parameters, buffers).
        roles: torch's classification of nodes.
    """

    def __init__(
        self, module: fx.GraphModule, num_forward_outputs: int, static_inputs: Sequence[int]
    ) -> None:
        self.module = prepare_joint_graph(module, num_forward_outputs)
        keep_what_is_read(self.module, num_forward_outputs)
        self.num_forward_outputs = num_forward_outputs
        self.static_inputs = list(static_inputs)
        self.roles = classify_nodes(self.module, self.static_inputs, num_forward_outputs)
        outputs = forward_backward_outputs(self.module, num_forward_outputs)
        self.forward_outputs: list[Any] = outputs[0]
        self.backward_outputs: list[Any] = outputs[1]

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    @cached_property
    def owners(self) -> dict[fx.Node, fx.Node]:
        """For each node, the node that made the storage of its result."""
        return storage_owners(self.graph)

    @cached_property
    def has_backward(self) -> bool:
        return len(self.roles.required_bw_nodes) > 0

    def is_backward(self, node: fx.Node) -> bool:
        """Whether an incoming gradient goes into ``node`` (or it must run in the backward)."""
        return node in self.roles.tangents_closure

    def is_forward(self, node: fx.Node) -> bool:
        """Whether the forward's own outputs need ``node``."""
        return self.roles.is_required_fw(node)

    @cached_property
    def inputs(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @cached_property
    def tangents(self) -> list[fx.Node]:
        return [node for node in self.inputs if "tangents" in str(node.target)]

    @cached_property
    def primals(self) -> list[fx.Node]:
        """Inputs of the forward; the backward's results are their gradients, in this order."""
        tangents = set(self.tangents)
        return [node for node in self.inputs if node not in tangents]

    @cached_property
    def transient_outputs(self) -> tuple[int, ...]:
        """Positions of forward outputs that are updated inputs: copied back, then dropped."""
        output = next(iter(self.graph.find_nodes(op="output")))
        described = pytree.arg_tree_leaves(output.meta.get("desc") or ())
        return tuple(
            position
            for position in range(min(self.num_forward_outputs, len(described)))
            if "Mutation" in type(described[position]).__name__
        )

    def nodes_of(self, values: Iterable[Any]) -> list[fx.Node]:
        return [value for value in values if isinstance(value, fx.Node)]


def is_multi_output(node: fx.Node) -> bool:
    """Whether ``node`` returns a tuple, whose parts ``getitem`` takes."""
    return isinstance(node.meta.get("val"), (tuple, list))


def is_getitem(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem


def is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def is_scalar(node: fx.Node) -> bool:
    """Whether ``node`` is a symbolic size or number, which crosses to the backward for free."""
    return is_symbolic(node.meta.get("val"))


def num_elements(value: torch.Tensor) -> int:
    """Elements at the sizes of this call. Sizes may be symbolic: asking torch would guard."""
    return math.prod(size_hint(extent) for extent in value.shape)


def storage_bytes(value: Any) -> int:
    """Bytes of memory that a traced value occupies: the span of its strides."""
    total = 0
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            shape = [size_hint(extent) for extent in leaf.shape]
            strides = [size_hint(stride) for stride in leaf.stride()]
            span = 1 + sum((e - 1) * s for e, s in zip(shape, strides, strict=True))
            total += 0 if 0 in shape else span * leaf.dtype.itemsize
    return total
