"""The invariants of sparse training: every sparse operator refers to the right parameter.

With all tiles active, the graph is what it was (``verify.check_joint``). That says nothing about
slots and orientation, which only matter when tiles are frozen. This module checks, with code of its
own, apart from the passes:

1. the part of a gradient that an operator computes reaches only the gradient of its slot, through
   operations that keep zeros where they are;
2. the weight that an operator masks is its slot's parameter, in the orientation that it says;
3. if one use of a parameter is masked, all are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from satcompile.errors import VerificationError
from satcompile.graph.training_graph import TrainingGraph
from satcompile.passes.facts import SparseParameters
from satcompile.torch_compat.operators import schema_of
from satcompile.updates.sparsity.operators import (
    MASKED,
    MASKED_ADDMM,
    MASKED_MM,
    TILE_MM,
    TILED,
    slot_of,
)

aten, prims = torch.ops.aten, torch.ops.prims

_TURNING = {aten.permute.default, aten.t.default, aten.transpose.int}
_KEEPING = {
    prims.convert_element_type.default, aten._to_copy.default, aten.clone.default,
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.add.Tensor,
    aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.neg.default,
}  # fmt: skip
_MULTIPLYING = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.convolution.default,
}  # fmt: skip


def check_slots(graph: TrainingGraph, found: SparseParameters, passed: Iterable[str]) -> None:
    """Raises VerificationError where an operator's slot or orientation is wrong."""
    names = ", ".join(passed)
    masked = set()
    for node in graph.graph.nodes:
        if node.target in TILED:
            _check_gradient(graph, node, names)
        elif node.target in MASKED:
            _check_weight(graph, node, names)
            masked.add(slot_of(node))
    for slot, parameter in found.tiled.items():
        if (slot in masked) != parameter.has_sparse_forward:
            _fail(f"slot {slot} is masked in the graph or in the report, not in both", names)
        if slot in masked:
            _check_all_masked(graph.primals[slot], names)


def _check_gradient(graph: TrainingGraph, tile: fx.Node, names: str) -> None:
    slot = slot_of(tile)
    wanted = tuple(map(str, graph.primals[slot].meta["val"].shape))
    pending, reached = [(tile, False)], False
    while pending:
        node, turned = pending.pop()
        for user in node.users:
            if user.op == "output":
                gradients = graph.backward_outputs
                is_own = all(g is not node for i, g in enumerate(gradients) if i != slot)
                if not is_own or any(output is node for output in graph.forward_outputs):
                    _fail(f"{tile.name} of slot {slot} reaches another result", names)
                reached = True
                shape = tuple(map(str, node.meta["val"].shape))
                says_turned = bool(tile.args[4]) if tile.target is TILE_MM else False
                if shape != wanted or turned != says_turned:
                    _fail(f"{tile.name} of slot {slot} is turned otherwise than it says", names)
            elif user.target in _TURNING and user.meta["val"].dim() == 2:
                pending.append((user, not turned))
            elif user.target in _KEEPING:
                pending.append((user, turned))
            else:
                _fail(f"{tile.name} of slot {slot} is read by {user.target}", names)
    if not reached:
        _fail(f"{tile.name} of slot {slot} reaches no gradient", names)


def _check_weight(graph: TrainingGraph, masked: fx.Node, names: str) -> None:
    position = {MASKED_MM: 1, MASKED_ADDMM: 2}.get(masked.target)  # type: ignore[call-overload]
    if position is None:  # convolutions
        arguments = [argument.name for argument in schema_of(masked.target).arguments]
        position = arguments.index("weight")
    node, turned = masked.args[position], False
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target in _TURNING and node.meta["val"].dim() == 2:
            turned = not turned
        elif node.target not in _KEEPING:
            break
        node = node.args[0]
    slot = slot_of(masked)
    if node is not graph.primals[slot]:
        _fail(f"{masked.name} masks what is not the parameter of slot {slot}", names)
    says_turned = bool(masked.args[-1]) if masked.target in (MASKED_MM, MASKED_ADDMM) else False
    if turned != says_turned:
        _fail(f"{masked.name} of slot {slot} is turned otherwise than it says", names)


def _check_all_masked(weight: fx.Node, names: str) -> None:
    pending = [weight]
    while pending:
        for user in pending.pop().users:
            if user.target in _TURNING or user.target in _KEEPING:
                pending.append(user)
            elif user.target in _MULTIPLYING:
                _fail(f"{user.name} uses all of {weight.name}, other uses do not", names)


def _fail(what: str, names: str) -> None:
    raise VerificationError(
        f"{what} (after the passes: {names}). This is a defect of satcompile; please report it with "
        "the model. To train meanwhile, leave out the option 'sparsity'."
    )
