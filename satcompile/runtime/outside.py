"""What eager code holds that ran before a compiled graph, read off autograd's graph.

Dynamo breaks a model at what it cannot compile, and what lies between two graphs runs in eager.
What it saves for its backward is alive while the next graph runs, and so are its weights, their
gradients and their optimizer's state. All of these are found from the next graph's inputs: they hang
on autograd's nodes behind them, up to the graphs that went before and to the leaves. What eager code
allocates for a moment, in its forward and in its backward, nobody knows beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from satcompile.runtime.known_optimizers import OPTIMIZERS
from satcompile.runtime.residency import Residency, gradient_bytes
from satcompile.torch_compat.autograd import is_of_compiled_graph, saved_by

_NOTE = (
    "code that Dynamo did not compile ran in the step: what it holds counts as inputs and parameters, "
    "what it allocates for a moment is not known (option 'reserve')"
)


@dataclass(frozen=True)
class Outside:
    """Behind some tensors, up to compiled graphs: what eager nodes have saved, and leaves."""

    saved: Sequence[torch.Tensor]
    leaves: Sequence[torch.Tensor]

    @property
    def residency(self) -> Residency:
        """What the leaves keep alive."""
        state, notes = OPTIMIZERS.state_bytes(self.leaves)
        if self.saved or self.leaves:
            notes = (*notes, _NOTE)
        return Residency(
            parameters=sum(leaf.untyped_storage().nbytes() for leaf in self.leaves),
            gradients=gradient_bytes(self.leaves),
            optimizer_state=state,
            notes=notes,
            coming_gradients=sum(leaf.nbytes for leaf in self.leaves if leaf.grad is None),
        )


def comes_from_eager(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether eager code with a backward has made one of them."""
    for tensor in tensors:
        node = tensor.grad_fn
        if node is not None and not is_of_compiled_graph(node):
            return True
    return False


def held_outside(tensors: Iterable[torch.Tensor]) -> Outside:
    """What is alive behind ``tensors`` for the sake of eager code."""
    saved: list[torch.Tensor] = []
    leaves: dict[int, torch.Tensor] = {}
    left: list[Any] = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(left)
    while left:
        node = left.pop()
        if is_of_compiled_graph(node):
            continue
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves[id(leaf)] = leaf
            continue
        saved += saved_by(node)
        behind = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= behind
        left += behind
    return Outside(saved, list(leaves.values()))
