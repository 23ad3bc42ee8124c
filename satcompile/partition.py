"""A plan becomes a forward and a backward graph.

The extraction and its calling convention are torch's; the choice of what crosses, and with it
what is computed twice, is the plan's. Recomputed operations stand right before their first
reader.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from satcompile.plan import Plan
from satcompile.torch_compat import extract_modules, finish_modules, is_opaque
from satcompile.training_graph import TrainingGraph


@dataclass(frozen=True)
class Partition:
    """The two graphs of one joint graph.

    Attributes:
        num_outputs: how many of the forward's results go to its caller; the rest is saved.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    num_outputs: int


def partition(graph: TrainingGraph, plan: Plan) -> Partition:
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
    forward, backward = finish_modules(graph.module, forward, backward, len(scalars))
    return Partition(forward, backward, graph.num_forward_outputs)
