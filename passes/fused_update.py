"""The optimizer's update inside the backward: gradients are consumed where they appear.

What the pass rewrites, in a backward graph:

1. A gradient that is to be updated with goes to ``satcompile::update``, behind the last node that
   reads the parameter's memory under any name (a saved parameter, a saved view of one, a view of
   either), and behind the node that computes the gradient.
2. The operator declares that it writes into those inputs, so that Inductor moves no reader behind
   it and gives the gradient's memory to others after it.
3. The graph returns None in the gradient's place.
4. Small gradients wait for the next ones until together they are worth a call.

What it leaves alone: gradients of anything that is no parameter of such an optimizer. Which
parameter a gradient belongs to is found out at run time, from autograd's own graph, and so is
whether it may be applied at all (``satcompile.optimizers.in_backward``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from satcompile.aliases import storage_owners
from satcompile.optimizers.in_backward import take_gradients
from satcompile.training_graph import storage_bytes

_WORTH_A_CALL = 1 << 20  # bytes of gradients,
_SHARE_OF_ALL = 64  # or this part of them all, if that is less

_library = torch.library.Library("satcompile", "FRAGMENT")
_library.define("update(Tensor[] gradients, Tensor(a!)[] read, int[] slots) -> ()")


@torch.library.impl(_library, "update", "CompositeExplicitAutograd")
def _update(
    gradients: Sequence[torch.Tensor], read: Sequence[torch.Tensor], slots: Sequence[int]
) -> None:
    take_gradients(gradients, slots)


@torch.library.register_fake("satcompile::update", lib=_library)
def _update_fake(
    gradients: Sequence[torch.Tensor], read: Sequence[torch.Tensor], slots: Sequence[int]
) -> None:
    return None


@dataclass(frozen=True)
class _Ready:
    """A gradient, and the position behind which its parameter may be written."""

    position: int
    slot: int
    gradient: fx.Node
    read: tuple[fx.Node, ...]


@dataclass(frozen=True)
class FusedUpdate:
    """Hand gradients to the optimizer inside the backward.

    Attributes:
        parameters: by a gradient's position among the backward's results: names of the
            backward's inputs that share memory with the parameter.
    """

    parameters: Mapping[int, tuple[str, ...]]
    name: str = "fused_update"

    def run(self, graph: fx.Graph) -> str:
        """Rewrite ``graph``; what changed, in words."""
        output = next(iter(graph.find_nodes(op="output")))
        results = list(output.args[0])
        ready = sorted(self._ready(graph, results), key=lambda r: (r.position, r.slot))
        nodes = list(graph.nodes)
        calls = list(_groups(ready))
        for group in calls:
            read = tuple(dict.fromkeys(node for each in group for node in each.read))
            arguments = ([r.gradient for r in group], list(read), [r.slot for r in group])
            with graph.inserting_after(nodes[group[-1].position]):
                call = graph.call_function(torch.ops.satcompile.update.default, arguments)
            call.meta["val"] = None
        for each in ready:
            results[each.slot] = None
        output.args = (type(output.args[0])(results),)
        num_bytes = sum(storage_bytes(each.gradient.meta["val"]) for each in ready)
        return (
            f"{len(ready)} gradients ({num_bytes} bytes) go to their optimizer, in {len(calls)} "
            "calls, and are not returned"
        )

    def _ready(self, graph: fx.Graph, results: Sequence[object]) -> Iterator[_Ready]:
        owners = storage_owners(graph)
        position = {node: i for i, node in enumerate(graph.nodes)}
        inputs = {node.name: node for node in graph.find_nodes(op="placeholder")}
        last_reader: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if node.op != "output":
                for read in node.all_input_nodes:
                    last_reader[owners[read]] = position[node]
        first = max((position[node] for node in inputs.values()), default=0)
        for slot, names in self.parameters.items():
            gradient = results[slot] if slot < len(results) else None
            if not isinstance(gradient, fx.Node):
                continue  # nothing flows to this parameter
            read = tuple(inputs[name] for name in names if name in inputs)
            behind = max([first, position[gradient], *(last_reader.get(n, 0) for n in read)])
            yield _Ready(behind, slot, gradient, read)


def _groups(ready: Sequence[_Ready]) -> Iterator[list[_Ready]]:
    sizes = [storage_bytes(each.gradient.meta["val"]) for each in ready]
    worth = min(_WORTH_A_CALL, sum(sizes) // _SHARE_OF_ALL)
    group: list[_Ready] = []
    waiting = 0
    for each, size in zip(ready, sizes, strict=True):
        group.append(each)
        waiting += size
        if waiting >= worth:
            yield group
            group, waiting = [], 0
    if group:
        yield group
