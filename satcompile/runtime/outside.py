"""Memory that eager code before a compiled graph holds, read off autograd's graph.

Dynamo breaks a model at code that it cannot compile, and code between two graphs runs in eager.
The tensors that it saves for its backward are alive while the next graph runs, and so are its
weights, their gradients and their optimizer's state. All of these are found from the next graph's
inputs: autograd's nodes behind the inputs have them, up to earlier graphs and to the leaves. What
eager code allocates for a moment, in its forward and in its backward, is not known beforehand.
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
    """Eager nodes' saved tensors and leaves behind some tensors, up to compiled graphs."""

    saved: Sequence[torch.Tensor]
    leaves: Sequence[torch.Tensor]

    @property
    def residency(self) -> Residency:
        """Memory of the leaves, their gradients and their optimizer's state."""
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
    """Whether eager code with a backward has made one of these tensors."""
    for tensor in tensors:
        node = tensor.grad_fn
        if node is not None and not is_of_compiled_graph(node):
            return True
    return False


def held_outside(tensors: Iterable[torch.Tensor]) -> Outside:
    """Find what eager code keeps alive behind ``tensors``."""
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
