"""Writes a graph again, with its operations in a planned order and some of them several times.

The emitter maps every node to its latest copy. Nodes that are not operations of the plan (views,
parts of tuples, arithmetic on sizes) cost nothing. Each stands right before its first reader, and
is derived again once its source has a new copy, so that no reader keeps an old copy alive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import fx

from satcompile.graph.nodes import is_random
from satcompile.graph.training_graph import TrainingGraph
from satcompile.torch_compat.partitioner import has_side_effect, replays_random_state

COPY_OF = "copy_of"  # in a node's meta: the name of the joint graph's node


def why_order_is_kept(graph: TrainingGraph) -> str | None:
    """Why the plan may not have its own order; None if it may.

    The forward's own updates of its inputs stay in the forward, whose operations keep their order:
    only operations that the backward alone needs move up in it.
    """
    if replays_random_state(graph.module, is_random):
        return "a checkpointed region draws random numbers again from a saved state"
    for node in graph.graph.nodes:
        if has_side_effect(node) and not graph.is_forward(node):
            return f"{node.name} ({node.target}) has an effect in the backward"
    return None


def emit(
    joint: fx.GraphModule, module: fx.GraphModule, order: Iterable[str], planned: Iterable[str]
) -> fx.GraphModule:
    """A graph that takes and returns what ``module`` does and computes in ``order``.

    Args:
        joint: where operations come from.
        module: the backward as torch extracted it; its placeholders and results have the
            names of the joint graph's nodes.
        order: names of operations, repeated where several copies are wanted. ``module`` must
            compute these operations, or values that they read might not cross.
        planned: names of all operations that a plan may order; the rest is derived.
    """
    emitter = _Emitter(joint, frozenset(planned))
    for node in module.graph.find_nodes(op="placeholder"):
        emitter.take(node)
    for name in order:
        emitter.compute(name)
    (output,) = module.graph.find_nodes(op="output")
    return emitter.give(output)


def move_up(module: fx.GraphModule, order: Iterable[str]) -> None:
    """Bring the forward's operations into ``order``, in which some stand further up than in
    ``module``. Derived nodes that they read move up with them if they stand further down."""
    rank = {node: number for number, node in enumerate(module.graph.nodes)}
    by_name = {node.name: node for node in rank}
    nodes = [by_name[name] for name in order if name in by_name]
    up = _standing_too_low(nodes, rank)
    passed = -1
    front: fx.Node | None = None
    for node in nodes:
        if node not in up:
            passed, front = rank[node], node
            continue
        for moved in _derived_below(node, rank, passed):
            assert front is not None  # what it reads is made before it
            front.append(moved)
            front, rank[moved] = moved, passed
    module.recompile()


def _standing_too_low(order: Sequence[fx.Node], rank: dict[fx.Node, int]) -> set[fx.Node]:
    """Nodes that stand after a node that comes later in ``order``."""
    found, highest = set(), len(rank)
    for node in reversed(order):
        if rank[node] > highest:
            found.add(node)
        highest = min(highest, rank[node])
    return found


def _derived_below(node: fx.Node, rank: dict[fx.Node, int], passed: int) -> list[fx.Node]:
    """The node, after the nodes below rank ``passed`` that it reads."""
    below = [n for n in node.all_input_nodes if rank[n] > passed]
    before = [found for each in below for found in _derived_below(each, rank, passed)]
    return list(dict.fromkeys([*before, node]))


class _Emitter:
    def __init__(self, joint: fx.GraphModule, planned: frozenset[str]) -> None:
        self._joint, self._planned = joint, planned
        self._by_name = {node.name: node for node in joint.graph.nodes}
        self._graph = fx.Graph()
        self._latest: dict[fx.Node, fx.Node] = {}  # of nodes of the joint graph
        self._made: Counter[fx.Node] = Counter()

    def take(self, placeholder: fx.Node) -> None:
        node = self._by_name.get(placeholder.name, placeholder)
        self._latest[node] = self._graph.node_copy(placeholder)
        self._made[node] += 1

    def compute(self, name: str) -> None:
        node = self._by_name[name]
        self._bring(node.all_input_nodes)
        self._copy(node)
        self._forget_what_derives_from(node)

    def give(self, output: fx.Node) -> fx.GraphModule:
        results = fx.map_arg(output.args, lambda node: self._by_name[node.name])
        self._bring(self._by_name[node.name] for node in output.all_input_nodes)
        made = self._graph.create_node(
            "output", output.target, fx.map_arg(results, self._latest.__getitem__)
        )
        made.meta = dict(output.meta)
        return fx.GraphModule(self._joint, self._graph)

    def _bring(self, nodes: Iterable[fx.Node]) -> None:
        """Make a copy of each node that has none, from the latest copies of what it reads."""
        stack = list(nodes)
        while stack:
            node = stack[-1]
            missing = [n for n in node.all_input_nodes if n not in self._latest]
            if node not in self._latest and missing:
                stack.extend(missing)
                continue
            stack.pop()
            if node.op == "placeholder" and node not in self._latest:
                raise ValueError(f"the backward's order needs {node.name}, which does not cross")
            if node not in self._latest:
                self._copy(node)

    def _copy(self, node: fx.Node) -> None:
        self._made[node] += 1
        # A name of its own: FX's next number is the name of some other node.
        name = node.name if self._made[node] == 1 else f"{node.name}_copy{self._made[node]}"
        arguments, keywords = fx.map_arg((node.args, node.kwargs), self._latest.__getitem__)
        made = self._graph.create_node(node.op, node.target, arguments, keywords, name, node.type)
        made.meta = {**node.meta, "autograd_backward": True, COPY_OF: node.name}
        self._latest[node] = made

    def _forget_what_derives_from(self, node: fx.Node) -> None:
        stack = list(node.users)
        while stack:
            user = stack.pop()
            if user.name not in self._planned and self._latest.pop(user, None) is not None:
                stack.extend(user.users)
