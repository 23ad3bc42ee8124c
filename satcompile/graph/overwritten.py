"""Inputs that the forward overwrites: buffers, queues, moving averages.

AOTAutograd writes the new contents back at the end of the forward. The joint graph reads the old
contents. A backward that reads such an input, or that recomputes a value made from it, would find
the new contents. Torch's own partitioner lets both happen (2.11 to 2.13): it gives a wrong gradient
for ``sin(x + self.b)`` followed by ``self.b.add_(1)``. So it does for ``x @ self.queue.clone()``
followed by a write into the queue, because the copy is optimised away.

1. If the backward reads such an input or a view of it, all readers read a copy instead. The copy is
   made before anything is written, and crosses to the backward.
2. If only the forward reads it, no reader of it is computed again.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx

from satcompile.graph.aliases import storage_owners
from satcompile.torch_compat.aot import updated_inputs
from satcompile.torch_compat.operators import OpOverload, schema_of
from satcompile.torch_compat.partitioner import must_be_saved
from satcompile.torch_compat.tensors import fake_mode_of


def keep_what_is_read(joint: fx.GraphModule, num_forward_outputs: int) -> None:
    """Make the backward see inputs as the forward read them; changes the graph in place."""
    owners = storage_owners(joint.graph)
    written = {owners[node]: None for node in _written_into(joint.graph)}
    written.update(dict.fromkeys(updated_inputs(joint, num_forward_outputs)))
    overwritten = [node for node in written if node.op == "placeholder"]
    if not overwritten:
        return
    backward = _reached_by_gradients(joint.graph)
    for placeholder in overwritten:
        owners = storage_owners(joint.graph)  # with the copies that were made so far
        readers = list(_readers(placeholder, owners))
        if any(reader in backward for reader in readers):
            _read_from_copy(joint.graph, placeholder, owners)
        else:
            for reader in readers:
                for node in _with_results(reader):
                    must_be_saved(node)
    joint.recompile()


def _written_into(graph: fx.Graph) -> Iterator[fx.Node]:
    """Arguments that some operation writes into."""
    for node in graph.nodes:
        yield from _written_arguments_of(node)


def _written_arguments_of(node: fx.Node) -> list[fx.Node]:
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return []
    return [
        given
        for given, argument in zip(node.args, schema_of(node.target).arguments, strict=False)
        if argument.alias_info is not None
        and argument.alias_info.is_write
        and isinstance(given, fx.Node)
    ]


def _reached_by_gradients(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that an incoming gradient goes into: they run in the backward, and nowhere else."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_tangent = node.op == "placeholder" and "tangents" in str(node.target)
        if is_tangent or any(argument in found for argument in node.all_input_nodes):
            found.add(node)
    return found


def _readers(placeholder: fx.Node, owners: dict[fx.Node, fx.Node]) -> Iterator[fx.Node]:
    """Operations that read the input, directly or through a view, and write nothing into it."""
    for node, owner in owners.items():
        reads = any(owners[argument] is placeholder for argument in node.all_input_nodes)
        if reads and owner is not placeholder and node.op == "call_function":
            yield node


def _with_results(node: fx.Node) -> list[fx.Node]:
    """The operation and, if it has several, its results. Torch's partitioner looks at the tag of
    the operation to decide on recomputation, and at the results' tags to decide on saving."""
    return [node, *(user for user in node.users if user.target is operator.getitem)]


def _read_from_copy(graph: fx.Graph, placeholder: fx.Node, owners: dict[fx.Node, fx.Node]) -> None:
    """Make all users of the input read a copy of it, except those that write into it."""
    with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
        copied = graph.call_function(torch.ops.aten.clone.default, (placeholder,))
    _trace(copied)
    must_be_saved(copied)
    writers = {user for user in placeholder.users if placeholder in _written_arguments_of(user)}
    placeholder.replace_all_uses_with(
        copied, delete_user_cb=lambda user: user is not copied and user not in writers
    )
    # Views of the input are views of its copy now, and Inductor looks at traced values to learn
    # whose memory they use.
    for node, owner in owners.items():
        if owner is placeholder and node is not placeholder and node not in writers:
            _trace(node)


def _trace(node: fx.Node) -> None:
    """Set the node's value from those of its arguments."""
    arguments, keywords = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    tensor = next(n.meta["val"] for n in node.all_input_nodes)
    tensor = tensor[0] if isinstance(tensor, (tuple, list)) else tensor
    assert callable(node.target)
    with fake_mode_of(tensor):
        node.meta["val"] = node.target(*arguments, **keywords)
