"""Which nodes of a functional FX graph share storage.

Operator schemas decide this (a result that aliases an argument), not the storages of traced
values: fake tensors share storage by accident of tracing, a schema by contract.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from satcompile.torch_compat.operators import OpOverload, schema_of

# Views that the schema does not mark as views, because eager mode sometimes copies; Inductor
# lowers them as views of the same buffer.
_VIEWS_IN_INDUCTOR = {torch.ops.aten._unsafe_view.default, torch.ops.aten.reshape.default}


def aliased_argument(node: fx.Node) -> fx.Node | None:
    """The argument whose storage ``node``'s result shares, or None if it has its own.

    ``getitem`` of an operator that returns several views (``split``) shares the storage of the
    operator's argument; ``getitem`` of any other operator has a storage of its own. An operator
    that writes into an argument (``copy_``) returns that argument's storage.
    """
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        producer = node.args[0]
        return aliased_argument(producer) if isinstance(producer, fx.Node) else None
    if node.target in _VIEWS_IN_INDUCTOR:
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if not isinstance(node.target, OpOverload):
        return None
    return _argument_aliased_by_schema(node, schema_of(node.target))


def _argument_aliased_by_schema(node: fx.Node, schema: torch.FunctionSchema) -> fx.Node | None:
    infos = [result.alias_info for result in schema.returns if result.alias_info is not None]
    if not infos:
        return None
    returned = {name for info in infos for name in info.before_set}
    for index, argument in enumerate(schema.arguments):
        info = argument.alias_info
        if info is None or not _shares(returned, info):
            continue
        value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        return value if isinstance(value, fx.Node) else None
    return None


def _shares(returned: set[str], info: Any) -> bool:
    """Whether the results alias an argument. A schema writes a list of views (``split``) as
    ``a -> *``, and the results then name no set."""
    return bool(returned & set(info.before_set)) or (not returned and "*" in info.after_set)


def storage_owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For every node, the node that made its storage (mostly the node itself)."""
    owners: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        base = aliased_argument(node)
        owners[node] = owners[base] if base is not None else node
    return owners
