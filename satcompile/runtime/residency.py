"""Memory that is alive on the device before a step begins, read off the run-time tensors.

It has parameters, buffers, inputs, gradients that are set, and the state of every optimizer that
holds these parameters. A step on fake tensors predicts state that does not exist yet. On a GPU
the workspaces that torch gives cuBLAS count, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from satcompile.graph.training_graph import storage_bytes
from satcompile.planner.cost.device import device_of
from satcompile.runtime.known_optimizers import OPTIMIZERS
from satcompile.torch_compat.tensors import is_fake, is_static_input, storage_address


@dataclass(frozen=True)
class Residency:
    """Bytes alive before the step, by kind; ``notes`` says what could not be predicted.

    ``workspaces`` is what a GPU's libraries for matrix products hold, from the first product on.
    ``coming_gradients`` do not exist yet: eager code that ran before a graph makes them in its
    backward, after the graph's own.
    """

    parameters: int = 0
    inputs: int = 0
    gradients: int = 0
    optimizer_state: int = 0
    notes: tuple[str, ...] = ()
    workspaces: int = 0
    coming_gradients: int = 0

    @property
    def by_kind(self) -> dict[str, int]:
        """Bytes by kind, as reports have them."""
        return {kind: getattr(self, kind) for kind in KINDS}

    @property
    def total_bytes(self) -> int:
        return (
            self.parameters + self.inputs + self.gradients + self.optimizer_state + self.workspaces
        )

    def __add__(self, other: Residency) -> Residency:
        return Residency(
            self.parameters + other.parameters,
            self.inputs + other.inputs,
            self.gradients + other.gradients,
            self.optimizer_state + other.optimizer_state,
            tuple(dict.fromkeys((*self.notes, *other.notes))),
            self.workspaces + other.workspaces,
            self.coming_gradients + other.coming_gradients,
        )

    def with_inputs(self, inputs: int) -> Residency:
        """The same with other inputs. (``dataclasses.replace`` takes several times as long.)"""
        return Residency(
            self.parameters,
            inputs,
            self.gradients,
            self.optimizer_state,
            self.notes,
            self.workspaces,
            self.coming_gradients,
        )


KINDS = ("parameters", "inputs", "gradients", "optimizer_state", "workspaces")
_WORKSPACES = -1  # a key among counted storages that no storage has


def measure_residency(
    tensors: Sequence[Any], seen: set[int] | None = None, with_optimizers: bool = True
) -> Residency:
    """Residency of a graph that is about to be called with ``tensors``.

    Args:
        tensors: the graph's inputs; those that are no tensors are skipped.
        seen: storages that are counted elsewhere, by ``storage_key``; those that are counted
            here are added.
        with_optimizers: whether the state of optimizers that are alive now counts.
    """
    seen = set() if seen is None else seen
    parameters = inputs = 0
    held = [t for t in tensors if isinstance(t, torch.Tensor)]
    for tensor in held:
        num_bytes = _new_bytes(tensor, seen)
        if is_lasting(tensor):
            parameters += num_bytes
        else:
            inputs += num_bytes
    trained = [t for t in held if isinstance(t, torch.nn.Parameter) and t.requires_grad]
    # By parameter, not by storage: gradients come and go, and addresses are reused.
    trained = list({id(t): t for t in trained if id(t) not in seen}.values())
    gradients = gradient_bytes(trained)
    state = 0
    notes: tuple[str, ...] = ()
    if with_optimizers:
        state, notes = OPTIMIZERS.state_bytes(trained)
    seen.update(map(id, trained))
    workspaces = 0
    on_gpu = next((t.device for t in held if t.device.type == "cuda"), None)
    if on_gpu is not None and _WORKSPACES not in seen:
        workspaces = device_of(on_gpu).workspace_bytes
        seen.add(_WORKSPACES)
    return Residency(parameters, inputs, gradients, state, notes, workspaces)


def is_lasting(tensor: torch.Tensor) -> bool:
    """Whether a graph's input stays from step to step. Buffers arrive as plain tensors, like
    inputs; torch marks those that outlive the call."""
    return isinstance(tensor, torch.nn.Parameter) or is_static_input(tensor)


def _new_bytes(tensor: torch.Tensor, seen: set[int]) -> int:
    """Bytes of the tensor's storage; 0 if it was counted before."""
    if is_fake(tensor):
        return storage_bytes(tensor)
    key = storage_key(tensor)
    if key in seen:
        return 0
    seen.add(key)
    return int(tensor.untyped_storage().nbytes())


def storage_key(tensor: torch.Tensor) -> int:
    """A key that tells live storages apart."""
    return storage_address(tensor.untyped_storage())


def gradient_bytes(parameters: Iterable[torch.Tensor]) -> int:
    """Bytes of the gradients that are set, for a check at every call."""
    return sum([p.grad.nbytes for p in parameters if p.grad is not None])
