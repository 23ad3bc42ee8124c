"""What is alive on the device before a step begins: read off the tensors given at run time.

Parameters, buffers, inputs, gradients that are set, and the state of every optimizer that
holds these parameters, predicted by a step on fake tensors where it does not exist yet.
"""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from satcompile.torch_compat import fake_tensor_mode, is_fake, is_static_input
from satcompile.training_graph import storage_bytes


@dataclass(frozen=True)
class Residency:
    """Bytes alive before the step, by kind; ``notes`` says what could not be predicted."""

    parameters: int = 0
    inputs: int = 0
    gradients: int = 0
    optimizer_state: int = 0
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        return self.parameters + self.inputs + self.gradients + self.optimizer_state


def measure_residency(
    tensors: Sequence[Any], seen: set[int] | None = None, with_optimizers: bool = True
) -> Residency:
    """Residency of a graph that is about to be called with ``tensors`` (others are skipped).

    Args:
        tensors: the graph's inputs.
        seen: storages that are counted elsewhere, by ``storage_key``; those that are counted
            here are added.
        with_optimizers: whether the state of optimizers that are alive now counts.
    """
    seen = set() if seen is None else seen
    parameters = inputs = gradients = 0
    held = [t for t in tensors if isinstance(t, torch.Tensor)]
    for tensor in held:
        num_bytes = _new_bytes(tensor, seen)
        # Buffers arrive as plain tensors, like inputs; torch marks what outlives the call.
        if isinstance(tensor, torch.nn.Parameter) or is_static_input(tensor):
            parameters += num_bytes
        else:
            inputs += num_bytes
    trained = [t for t in held if isinstance(t, torch.nn.Parameter) and t.requires_grad]
    for parameter in trained:
        if parameter.grad is not None:
            gradients += _new_bytes(parameter.grad, seen)
    state = 0
    notes: tuple[str, ...] = ()
    if with_optimizers:
        state, notes = _optimizer_state_bytes([t for t in trained if id(t) not in seen])
    seen.update(map(id, trained))
    return Residency(parameters, inputs, gradients, state, notes)


def _new_bytes(tensor: torch.Tensor, seen: set[int]) -> int:
    """Bytes of the tensor's storage, 0 if it was counted before."""
    if is_fake(tensor):
        return storage_bytes(tensor)
    key = storage_key(tensor)
    if key in seen:
        return 0
    seen.add(key)
    return int(tensor.untyped_storage().nbytes())


def storage_key(tensor: torch.Tensor) -> int:
    """Tells storages that are alive apart."""
    return int(tensor.untyped_storage()._cdata)


def gradient_bytes(parameters: Iterable[torch.Tensor]) -> int:
    """Bytes of the gradients that are set, for a check at every call."""
    return sum(p.grad.nbytes for p in parameters if p.grad is not None)


def _optimizer_state_bytes(parameters: Iterable[torch.Tensor]) -> tuple[int, tuple[str, ...]]:
    wanted = {id(parameter) for parameter in parameters}
    total, notes = 0, []
    for optimizer in live_optimizers():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in wanted:
                    continue
                state = optimizer.state.get(parameter)
                if state:
                    total += sum(storage_bytes(value) for value in state.values())
                    continue
                predicted = predict_state_bytes(optimizer, group, parameter)
                if predicted is None:
                    notes.append(
                        f"the state of {type(optimizer).__name__} cannot be predicted before its "
                        "first step; keep bytes free for it with the option 'reserve'"
                    )
                    return total, tuple(notes)
                total += predicted
    return total, tuple(notes)


def live_optimizers() -> list[torch.optim.Optimizer]:
    # Optimizers are made before and after us, by users and by trainers: asking the collector
    # finds them all, once per compilation.
    alive = (o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer))
    found = [optimizer for optimizer in alive if _has_state_of_its_own(optimizer)]
    for optimizer in found:
        _parameters_known[optimizer] = _num_parameters(optimizer)
    return found


def _has_state_of_its_own(optimizer: torch.optim.Optimizer) -> bool:
    """Not so the wrapper that accelerate, and so the Hugging Face Trainer, puts around an
    optimizer: a subclass whose state and groups are properties, those of the wrapped one, which
    is alive, too. Counting both would be twice; a step on fake tensors would be the real one's."""
    return {"state", "param_groups"} <= vars(optimizer).keys()


# How many parameters each optimizer had when we last counted its state.
_parameters_known: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = (
    weakref.WeakKeyDictionary()
)
_changes = 0
_watching = False


def optimizer_changes() -> int:
    """How often an optimizer took a step that was made, or was given parameters, after its
    state was last counted: the state must then be counted again."""
    return _changes


def watch_optimizers() -> None:
    """From now on, look at each optimizer when it takes a step."""
    global _watching
    if not _watching:
        register_optimizer_step_pre_hook(_before_step)
        _watching = True


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    global _changes
    if _parameters_known.get(optimizer) != _num_parameters(optimizer):
        _parameters_known[optimizer] = _num_parameters(optimizer)
        _changes += 1


def _num_parameters(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


_predictions: dict[Any, int | None] = {}


def predict_state_bytes(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: torch.Tensor
) -> int | None:
    """Bytes of state after a first step, by taking that step on fake tensors."""
    settings = {key: value for key, value in group.items() if key != "params"}
    key = (type(optimizer), repr(sorted(settings.items(), key=lambda item: item[0])),
           tuple(parameter.shape), parameter.dtype)  # fmt: skip
    if key not in _predictions:
        _predictions[key] = _step_on_fake(optimizer, settings, parameter)
    return _predictions[key]


def _step_on_fake(
    optimizer: torch.optim.Optimizer, settings: dict[str, Any], parameter: torch.Tensor
) -> int | None:
    with fake_tensor_mode(), torch.no_grad():
        fake = torch.nn.Parameter(
            torch.empty_strided(
                tuple(parameter.shape), parameter.stride(), dtype=parameter.dtype, device="cpu"
            )
        )
        fake.grad = torch.empty_like(fake)
        torch_class = getattr(optimizer, "torch_class", type(optimizer))  # of a fused one
        twin = torch_class.__new__(torch_class)  # not a copy, which a fused one would enlist
        twin.__dict__ = dict(optimizer.__dict__)
        twin.state = type(optimizer.state)(dict)
        plain = {**settings, "fused": None, "foreach": False, "capturable": False}
        twin.param_groups = [
            {**{k: v for k, v in plain.items() if k in settings}, "params": [fake]}
        ]
        try:
            inspect.unwrap(torch_class.step)(twin)  # without hooks, profiling, gradients
        except Exception:
            # Any optimizer may come along, with any code in its step. Not predictable is an
            # answer, which the report shows; it is not a reason to stop the training.
            return None
        return sum(storage_bytes(value) for value in twin.state[fake].values())
