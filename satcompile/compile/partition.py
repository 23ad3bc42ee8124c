"""Splits a joint graph into a forward and a backward graph, as a plan says.

Torch does the extraction and sets the calling convention. The plan chooses the values that cross,
and thus the operations that are computed again, and the order of both graphs. Torch's own plan
keeps torch's order, and so does a plan for a graph whose order must not change.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from satcompile.graph.emission import emit, move_up
from satcompile.graph.nodes import is_random
from satcompile.graph.training_graph import TrainingGraph
from satcompile.planner.retention import RetentionPlan
from satcompile.torch_compat.partitioner import extract_modules, finish_modules, is_opaque


@dataclass(frozen=True)
class Partition:
    """The two graphs of one joint graph.

    Attributes:
        num_outputs: how many of the forward's results go to its caller; the rest is saved.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    num_outputs: int


def partition(graph: TrainingGraph, plan: RetentionPlan) -> Partition:
    """Split the joint graph as the plan says."""
    tensors = [node for node in plan.crossing if not is_opaque(node)]
    opaque = [node for node in plan.crossing if is_opaque(node)]
    scalars = list(plan.scalars)
    forward, backward = extract_modules(
        graph.module,
        tensors,
        scalars,
        opaque,
        graph.num_forward_outputs,
        graph.roles.static_lifetime_input_nodes,
    )

    def in_planned_order(module: fx.GraphModule) -> fx.GraphModule:
        order = (plan.operations[index].name for index in plan.backward_order)
        return emit(graph.module, module, order, planned=(node.name for node in plan.operations))

    if plan.has_own_order:
        move_up(forward, (plan.operations[index].name for index in plan.forward_order))
    reorder = in_planned_order if plan.has_own_order else None
    forward, backward = finish_modules(
        graph.module, forward, backward, len(scalars), is_random, reorder
    )
    return Partition(forward, backward, graph.num_forward_outputs)
