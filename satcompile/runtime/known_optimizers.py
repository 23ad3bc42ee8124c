"""Every optimizer of the process, and the bytes of its state, known by notification.

Users and trainers make optimizers before and after us. One search, at the first request, finds
those from before. Later ones notify us when they get parameters (each does when it is made), when
a state is loaded into them (``load_state_dict``, copies, unpickling), and when they have taken a
step, which may have grown their state. An optimizer that is freed notifies us, too. Bytes are added
up on request, and only if a notification came since.
"""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from satcompile.graph.training_graph import storage_bytes
from satcompile.torch_compat.optimizers import watch_optimizers_given
from satcompile.torch_compat.tensors import fake_tensor_mode


@dataclass
class _Known:
    """An optimizer, and its ``_entries`` when its state was last added up; None before."""

    reference: weakref.ReferenceType[torch.optim.Optimizer]
    entries: tuple[int, ...] | None = None


@dataclass
class _State:
    """The state of one parameter: bytes, and the optimizer class whose state is unpredictable."""

    num_bytes: int = 0
    unpredictable: str = ""


_Held = tuple["weakref.ReferenceType[torch.optim.Optimizer]", int]  # and its group's number


class KnownOptimizers:
    """Bytes of state by parameter, over all optimizers that are alive."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._holders: dict[int, list[_Held]] = {}  # by the parameter's id
        self._found: dict[int, _State] = {}  # of parameters that were asked for
        self._is_watching = self._is_stale = False
        self._version = 0

    def watch(self) -> None:
        """Get notifications from now on, and find the optimizers that exist already."""
        if self._is_watching:
            return
        self._is_watching = True
        watch_optimizers_given(self._tell)
        register_optimizer_step_post_hook(lambda optimizer, args, kwargs: self._stepped(optimizer))
        for found in gc.get_objects():
            if issubclass(type(found), torch.optim.Optimizer):  # isinstance would run proxies
                self._tell(found)

    def alive(self) -> list[torch.optim.Optimizer]:
        self.watch()
        found = (known.reference() for known in list(self._known.values()))
        return [optimizer for optimizer in found if optimizer is not None]

    @property
    def version(self) -> int:
        """A number that changes when the state bytes of a parameter that was asked for change."""
        if self._is_stale or not self._is_watching:
            self._look_again()
        return self._version

    def state_bytes(self, parameters: Iterable[torch.Tensor]) -> tuple[int, tuple[str, ...]]:
        """Bytes of the state for these parameters, and notes on state that is unpredictable."""
        _ = self.version
        total, unpredictable = 0, ""
        for parameter in parameters:
            if id(parameter) not in self._found:
                self._found[id(parameter)] = self._state_of(parameter)
            state = self._found[id(parameter)]
            total += state.num_bytes
            unpredictable = unpredictable or state.unpredictable
        if not unpredictable:
            return total, ()
        return total, (
            f"the state of {unpredictable} cannot be predicted before its first step; keep bytes "
            "free for it with the option 'reserve'",
        )

    def existing_bytes(self, parameters: Iterable[torch.Tensor]) -> int:
        """Bytes of the state that exists already for these parameters."""
        states = [
            optimizer.state.get(parameter) for parameter in parameters for optimizer in self.alive()
        ]
        found = (state for state in states if isinstance(state, dict))
        return sum(_bytes_in(value) for state in found for value in state.values())

    # -- being told ------------------------------------------------------------------------

    def _tell(self, optimizer: torch.optim.Optimizer) -> None:
        """Note that an optimizer exists, or that it holds more than before."""
        if not _has_state_of_its_own(optimizer):
            return
        known = self._known.get(id(optimizer))
        if known is None or known.reference() is not optimizer:
            number = id(optimizer)
            gone = weakref.ref(optimizer, lambda reference: self._forget(number, reference))
            self._known[number] = _Known(gone)
        self._is_stale = True

    def _forget(self, number: int, reference: Any) -> None:
        known = self._known.get(number)
        if known is not None and known.reference is reference:  # ids are reused
            del self._known[number]
            self._is_stale = True

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        known = self._known.get(id(optimizer))
        if known is None:
            self._tell(optimizer)
        elif known.entries != _entries(optimizer):
            self._is_stale = True

    # -- counting --------------------------------------------------------------------------

    def _look_again(self) -> None:
        self.watch()
        self._is_stale = False
        self._holders, asked = {}, []
        for optimizer in self.alive():
            known = self._known[id(optimizer)]
            known.entries = _entries(optimizer)
            for number, group in enumerate(optimizer.param_groups):
                for parameter in group["params"]:
                    self._holders.setdefault(id(parameter), []).append((known.reference, number))
                    if id(parameter) in self._found:
                        asked.append(parameter)
        # Parameters that no optimizer holds stay, at 0 bytes: theirs may be made later.
        found = {number: _State() for number in self._found}
        found.update({id(parameter): self._state_of(parameter) for parameter in asked})
        if found != self._found:
            self._found = found
            self._version += 1

    def _state_of(self, parameter: torch.Tensor) -> _State:
        state = _State()
        for reference, number in self._holders.get(id(parameter), ()):
            optimizer = reference()
            if optimizer is None:
                continue
            num_bytes = _state_bytes_of(optimizer, optimizer.param_groups[number], parameter)
            if num_bytes is None:
                state.unpredictable = type(optimizer).__name__
            else:
                state.num_bytes += num_bytes
        return state


def _has_state_of_its_own(optimizer: torch.optim.Optimizer) -> bool:
    """False for the wrapper that accelerate, and so the Hugging Face Trainer, puts around an
    optimizer: its state and groups are properties, those of the wrapped one, which is alive, too.
    Counting both would count twice; a step on fake tensors would be a step of the real one."""
    return {"state", "param_groups"} <= vars(optimizer).keys()


def _entries(optimizer: torch.optim.Optimizer) -> tuple[int, ...]:
    """How much an optimizer holds, without looking at tensors: counts of parameters, of state
    entries, and of items in entries that are lists (those of LBFGS grow)."""
    states = [state for state in optimizer.state.values() if isinstance(state, dict)]
    values = (value for state in states for value in state.values())
    listed = sum(len(value) for value in values if type(value) in (list, tuple, dict))
    num_parameters = sum(len(group["params"]) for group in optimizer.param_groups)
    return num_parameters, sum(map(len, states)), listed


def _state_bytes_of(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: torch.Tensor
) -> int | None:
    state = optimizer.state.get(parameter)
    if not state:
        return predict_state_bytes(optimizer, group, parameter)
    return sum(_bytes_in(value) for value in state.values())


def _bytes_in(value: Any) -> int:
    if type(value) is torch.Tensor and value.layout == torch.strided:
        return int(value.nbytes)  # the general way is much slower
    return storage_bytes(value)


_predictions: dict[Any, int | None] = {}


def predict_state_bytes(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: torch.Tensor
) -> int | None:
    """Bytes of state after a first step, predicted by a step on fake tensors."""
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
        torch_class = getattr(optimizer, "torch_class", type(optimizer))  # of a fused optimizer
        twin = torch_class.__new__(torch_class)  # not a copy: a fused one would register it
        twin.__dict__ = dict(optimizer.__dict__)
        twin.state = type(optimizer.state)(dict)
        plain = {**settings, "fused": None, "foreach": False, "capturable": False}
        twin.param_groups = [
            {**{k: v for k, v in plain.items() if k in settings}, "params": [fake]}
        ]
        try:
            inspect.unwrap(torch_class.step)(twin)  # without hooks, profiling, gradients
        except Exception:
            # An optimizer's step may run any code. "Not predictable" is an answer, which the
            # report shows; it is not a reason to stop the training.
            return None
        return sum(storage_bytes(value) for value in twin.state[fake].values())


OPTIMIZERS = KnownOptimizers()
