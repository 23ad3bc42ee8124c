"""Updates inside the backward: which gradients may be applied as they appear, and which were.

The backward of a compiled graph hands each gradient to ``satcompile::update_``. The run, and not
the compilation, decides about each gradient. It is *applied* to its parameter and dropped, or
*kept* and returned, so that autograd handles it as usual and ``step()`` applies it. It is applied
only if no other code has to see it and no other gradient of the same parameter can follow before
``step()``:

1. the parameter belongs to an optimizer with ``in_backward``, one backward per step, no clipping;
2. its ``.grad`` is None, and it has no hooks;
3. this is a plain ``backward()``: no ``retain_graph``, no ``autograd.grad``, no ``inputs=``;
4. no other forward that used the parameter still waits for its backward, and no other graph has
   returned a gradient for it in the same ``backward()``;
5. the loss was not scaled by a GradScaler, and the model is not inside DistributedDataParallel.

After its gradient is applied, the parameter is *spent* until ``step()``. Another gradient for a
spent parameter would belong to the earlier weights, so it raises an ``UpdateError``.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from satcompile.errors import UpdateError
from satcompile.torch_compat.autograd import (
    backward_node,
    current_backward_node,
    current_backward_task,
    has_gradient_hooks,
    keeps_graph,
    will_accumulate,
)
from satcompile.torch_compat.distributed import inside_data_parallel
from satcompile.torch_compat.optimizers import watch_clipping, watch_loss_scaling
from satcompile.updates.kernels.sweep import sweep
from satcompile.updates.optimizers.rules import Numbers
from satcompile.updates.optimizers.state import update_of
from satcompile.updates.optimizers.support import numbers_of

log = logging.getLogger("satcompile")

_HOOKS = "a hook is to see them"
_SCALED = "a GradScaler scaled the loss"
_DATA_PARALLEL = "DistributedDataParallel is to see them"
_NO_OWNER = "no optimizer updates them in the backward any more"
_TWICE = "the graph has the parameter as two inputs"
_NORM_ONLY = (
    "in_backward=True: a norm of gradients was asked for, without clipping, after the backward has "
    "applied and dropped them. The norm is of those that are left, 0 where none are."
)
NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Owner:
    """The optimizer and the group that update ``parameter``, held by weak references."""

    parameter: weakref.ReferenceType[torch.Tensor]
    reference: weakref.ReferenceType[Any]
    number: int

    def updates(self, parameter: torch.Tensor) -> bool:
        """Whether ``parameter`` is the same object: Python reuses the ids of dead objects."""
        return self.parameter() is parameter

    @property
    def optimizer(self) -> Any:
        """The optimizer, alive whenever its parameters are about to be updated; None once gone."""
        return self.reference()

    @property
    def group(self) -> dict[str, Any]:
        found: dict[str, Any] = self.optimizer.param_groups[self.number]
        return found


@dataclass(frozen=True)
class Offer:
    """Which gradients of a graph's inputs a backward may hand over.

    Attributes:
        positions: among the inputs.
        withheld: by position, why another gradient of such an optimizer is not handed over.
    """

    positions: frozenset[int] = NOTHING
    withheld: Mapping[int, str] = field(default_factory=dict)


_NO_OFFER = Offer()


@dataclass(eq=False)
class PendingBackward:
    """A forward whose backward has not begun; ``parameters`` by id."""

    parameters: frozenset[int]


@dataclass
class Applied:
    """Numbers that the backward applied since an optimizer's last step, by the parameter's id."""

    numbers: dict[int, Numbers] = field(default_factory=dict)


class BackwardUpdates:
    """Every fused optimizer, and the state of the step in progress."""

    def __init__(self) -> None:
        # In the order in which they were added.
        self._optimizers: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()
        self._is_used = False  # whether there ever was an optimizer: most processes never fuse any
        self._applied: weakref.WeakKeyDictionary[Any, Applied] = weakref.WeakKeyDictionary()
        self._owners: dict[int, Owner] | None = None
        self._holders: dict[int, Owner] = {}
        self._counted: tuple[int, ...] = ()
        self._pending: list[PendingBackward] = []
        self._kept: tuple[int, set[int]] = (-1, set())
        self._loss_is_scaled = self._last_loss_was_scaled = False
        self._reported: set[str] = set()
        # Reentrant: a node collected while the lock is held takes the lock in its finalizer.
        self._lock = threading.RLock()

    # -- optimizers ------------------------------------------------------------------------

    def add(self, optimizer: Any) -> None:
        """Add an optimizer that was fused, or fused again with other settings."""
        self._optimizers[optimizer] = None
        self._is_used = True
        self.changed()
        if optimizer._fused_settings.in_backward:
            watch_loss_scaling(self._scaled)
            watch_clipping(self._about_to_clip)

    def changed(self) -> None:
        """Note that parameters or settings of some optimizer changed."""
        self._owners = None

    def owners(self) -> Mapping[int, Owner]:
        """The owner that updates each parameter, by the parameter's id."""
        if self._owners is None or self._optimizers or self._counted:
            self._look_again()
        assert self._owners is not None
        return self._owners

    def holder(self, parameter: torch.Tensor) -> Any | None:
        """The fused optimizer that updates ``parameter``, inside the backward or not; if there are
        several, the one that was fused last."""
        self._look_again()
        found = self._holders.get(id(parameter))
        return found.optimizer if found is not None and found.updates(parameter) else None

    def _look_again(self) -> None:
        """Find owners again if there are other optimizers, or these have other parameters."""
        live = list(self._optimizers)
        counted = tuple(len(g["params"]) for o in live for g in o.param_groups)
        if self._owners is None or counted != self._counted:
            self._owners, self._counted = _owners(live), counted
            self._holders = dict(_holders(live))

    # -- forwards --------------------------------------------------------------------------

    def offer(self, args: Sequence[Any], trained: Sequence[int]) -> Offer:
        """Which of a graph's inputs are parameters that its backward may update."""
        if not self._is_used:
            return _NO_OFFER
        owners = self.owners()
        if not owners:
            return _NO_OFFER
        owned = [p for p in trained if id(args[p]) in owners]
        if owned and (self._loss_is_scaled or self._last_loss_was_scaled):
            return self._withheld(_SCALED, owned)
        if owned and inside_data_parallel():
            return self._withheld(_DATA_PARALLEL, owned)
        hooked = [position for position in owned if has_gradient_hooks(args[position])]
        return self._withheld(_HOOKS, hooked, frozenset(owned).difference(hooked))

    def _withheld(
        self, reason: str, positions: Sequence[int], others: frozenset[int] = NOTHING
    ) -> Offer:
        if positions:
            self._report_once(reason)
        return Offer(others, dict.fromkeys(positions, reason))

    def forward_ran(
        self, args: Sequence[Any], trained: Sequence[int], results: Sequence[Any]
    ) -> None:
        """Note that a forward has run."""
        if not self._is_used:
            return
        owners = self.owners() if self._owners is None else self._owners  # as when it was planned
        if not owners:
            return
        used = frozenset(id(args[position]) for position in trained) & owners.keys()
        if not used:
            return
        tensors = (result for result in results if isinstance(result, torch.Tensor))
        node = next((n for n in map(backward_node, tensors) if n is not None), None)
        if node is None:
            return
        pending = PendingBackward(used)
        node.metadata["satcompile"] = pending
        with self._lock:
            self._pending.append(pending)
        weakref.finalize(node, self._dropped, pending).atexit = False

    def _dropped(self, pending: PendingBackward | None) -> None:
        with self._lock:
            if pending in self._pending:
                self._pending.remove(pending)

    # -- backwards -------------------------------------------------------------------------

    def plain_backward(self) -> None:
        """Note that a compiled backward is about to run that returns all gradients."""
        if not self._is_used or not self._optimizers:
            return
        pending = self._pending_of(current_backward_node())
        if pending is not None:
            self._kept_in_this_task().update(pending.parameters)

    @contextmanager
    def backward(self, edges: Mapping[int, int]) -> Iterator[Backward]:
        """Decide about the gradients that a compiled backward, run inside, hands over.

        Args:
            edges: by a gradient's position, its position among autograd's edges.
        """
        node = current_backward_node()
        pending = self._pending_of(node)
        with self._lock:
            waiting = [other.parameters for other in list(self._pending) if other is not pending]
        kept = self._kept_in_this_task()
        to_apply, returned = self._decide(node, edges, kept.union(*waiting))
        applied = {id(parameter) for parameter, _ in to_apply.values()}
        if pending is not None:
            kept.update(pending.parameters - applied)
        call = Backward(self, to_apply, returned)
        _running.stack.append(call)
        try:
            yield call
        finally:
            _running.stack.pop()
            torch.autograd.graph.increment_version(call.changed)

    def _pending_of(self, node: Any) -> PendingBackward | None:
        self._last_loss_was_scaled = self._loss_is_scaled
        found: PendingBackward | None = None if node is None else node.metadata.get("satcompile")
        if not keeps_graph():
            self._dropped(found)
        return found

    def _kept_in_this_task(self) -> set[int]:
        """Parameters to which autograd itself gives a gradient by the end of the running
        ``backward()``. It adds up the gradients of several graphs before anyone sees them."""
        task = current_backward_task()
        if self._kept[0] != task:
            self._kept = (task, set())
        return self._kept[1]

    def _decide(
        self, node: Any, edges: Mapping[int, int], shared: set[int]
    ) -> tuple[dict[int, tuple[torch.Tensor, Owner]], dict[int, str]]:
        """The parameter and owner of each gradient to apply, by slot; and why each other gradient is
        not applied, by slot."""
        owners = self.owners()
        found: dict[int, tuple[torch.Tensor, Owner]] = {}
        returned: dict[int, str] = {}
        seen: dict[int, int] = {}  # slots by the parameter's id
        for slot, position in edges.items():
            edge = node.next_functions[position][0]
            parameter = getattr(edge, "variable", None)
            owner = owners.get(id(parameter))
            if parameter is None or owner is None or not owner.updates(parameter):
                returned[slot] = _NO_OWNER
                continue
            if id(parameter) in self._numbers_applied(owner.optimizer):
                raise _second_backward(parameter)
            reason = self._reason_to_keep(parameter, edge, shared)
            if id(parameter) in seen:
                returned |= dict.fromkeys((slot, seen[id(parameter)]), _TWICE)
                found.pop(seen[id(parameter)], None)
            elif reason is None:
                found[slot] = (parameter, owner)
            else:
                self._report_once(reason)
                returned[slot] = reason
            seen[id(parameter)] = slot
        return found, returned

    def _reason_to_keep(self, parameter: torch.Tensor, edge: Any, shared: set[int]) -> str | None:
        if id(parameter) in shared:
            return "another graph, or another forward, uses the parameter in this step"
        if parameter.grad is not None:
            return "there is a gradient in .grad already"
        if has_gradient_hooks(parameter):
            return _HOOKS
        if self._loss_is_scaled:
            return _SCALED
        if keeps_graph():
            return "the graph is retained"
        return None if will_accumulate(edge) else "gradients were asked for, not accumulated"

    def _report_once(self, reason: str) -> None:
        self._tell_once(
            "in_backward=True: gradients are returned to autograd and applied by step(), "
            f"without the saving in memory, because {reason}."
        )

    def _tell_once(self, message: str) -> None:
        if message not in self._reported:
            self._reported.add(message)
            log.warning(message)

    def applied(self, owner: Owner, parameter: torch.Tensor, numbers: Numbers) -> None:
        self._applied.setdefault(owner.optimizer, Applied()).numbers[id(parameter)] = numbers

    def _numbers_applied(self, optimizer: Any) -> Mapping[int, Numbers]:
        applied = self._applied.get(optimizer)
        return applied.numbers if applied is not None else {}

    # -- the end of a step -----------------------------------------------------------------

    def finish(self, optimizer: Any) -> None:
        """End a step, when ``optimizer.step()`` is called: its parameters may be updated again.

        Raises:
            UpdateError: a spent parameter has a gradient, too, or was updated with other numbers
                than its group has now.
        """
        applied = self._applied.pop(optimizer, None)
        self._loss_is_scaled = False
        if applied is None:
            return
        for group in optimizer.param_groups:
            now = numbers_of(group, optimizer.torch_class)
            for parameter in group["params"]:
                numbers = applied.numbers.get(id(parameter))
                if numbers is None:
                    continue
                if parameter.grad is not None:
                    raise _gradient_from_elsewhere(parameter)
                if numbers != now:
                    raise UpdateError(
                        "A learning rate or another setting of the optimizer was changed between "
                        f"backward() and step(): the update was applied with {numbers}, the group "
                        f"now says {now}. With in_backward=True set it before the backward."
                    )

    def check_not_applied(self, optimizer: Any) -> None:
        """Check before gradients are dropped.

        Raises:
            UpdateError: the update was applied and cannot be dropped with them.
        """
        if self._numbers_applied(optimizer):
            self._applied.pop(optimizer)
            raise UpdateError(
                "zero_grad() was called between backward() and step(), but with in_backward=True "
                "the backward has already updated the parameters; the update cannot be dropped. "
                "Call step() after every backward(), and decide whether to skip a step before the "
                "backward (by the loss), or use in_backward=False."
            )

    # -- what torch's own tools would not see ----------------------------------------------

    def _scaled(self) -> None:
        self._loss_is_scaled = True

    def _about_to_clip(self, parameters: Sequence[Any] | None, may_clip: bool) -> None:
        applied = {key for o in self._optimizers for key in self._numbers_applied(o)}
        misses = applied and (parameters is None or not applied.isdisjoint(map(id, parameters)))
        if misses and not may_clip:
            self._tell_once(_NORM_ONLY)  # the Hugging Face Trainer asks for the norm, to log it
        elif misses:
            raise UpdateError(
                "Gradient clipping misses gradients: with in_backward=True the backward has "
                "applied and dropped them. Use satcompile.fuse_optimizer(optimizer, "
                "in_backward=True, max_grad_norm=...), which clips as torch does, and remove the "
                "call (in the Hugging Face Trainer: max_grad_norm=0)."
            )


def _holders(optimizers: Sequence[Any]) -> Iterator[tuple[int, Owner]]:
    for optimizer in optimizers:
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                yield id(parameter), Owner(weakref.ref(parameter), weakref.ref(optimizer), number)


def _owners(optimizers: Sequence[Any]) -> dict[int, Owner]:
    found: dict[int, Owner] = {}
    memory: dict[int, int] = {}  # parameters that share memory have no owner: both updates count
    twice: set[int] = set()
    for optimizer in optimizers:
        if not optimizer._fused_settings.updates_in_backward:
            continue
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if id(parameter) in found:  # in two optimizers
                    twice.add(id(parameter))
                found[id(parameter)] = Owner(weakref.ref(parameter), weakref.ref(optimizer), number)
                address = parameter.untyped_storage().data_ptr()
                if memory.setdefault(address, id(parameter)) != id(parameter):
                    twice.update((id(parameter), memory[address]))
    return {key: owner for key, owner in found.items() if key not in twice}


@dataclass(eq=False)
class Backward:
    """One run of a compiled backward; ``returned`` says per slot why autograd gets the gradient."""

    ledger: BackwardUpdates
    to_apply: dict[int, tuple[torch.Tensor, Owner]]
    returned: dict[int, str]
    kept: dict[int, torch.Tensor] = field(default_factory=dict)
    changed: list[torch.Tensor] = field(default_factory=list)

    def take(self, gradients: Sequence[torch.Tensor], slots: Sequence[int]) -> None:
        """Take computed gradients; their memory is reused afterwards."""
        updates = []
        for slot, gradient in zip(slots, gradients, strict=True):
            if slot not in self.to_apply:
                self.kept[slot] = gradient.clone()
                continue
            parameter, owner = self.to_apply[slot]
            update = update_of(
                owner.optimizer, owner.group, owner.optimizer.torch_class, parameter, gradient
            )
            self.ledger.applied(owner, parameter, update.numbers)
            self.changed.append(parameter)
            updates.append(update)
        sweep(updates)

    def filled(self, results: Sequence[Any]) -> list[Any]:
        """The backward's results, with the gradients that were kept."""
        return [self.kept.get(slot, result) for slot, result in enumerate(results)]


class _Running(threading.local):
    """Backwards that run in this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Backward] = []


_running = _Running()
BACKWARD_UPDATES = BackwardUpdates()


def take_gradients(gradients: Sequence[torch.Tensor], slots: Sequence[int]) -> None:
    """The implementation of ``satcompile::update_``."""
    with torch.no_grad():
        _running.stack[-1].take(gradients, slots)


def _second_backward(parameter: torch.Tensor) -> UpdateError:
    return UpdateError(
        f"A second backward() before step(): the parameter of shape {tuple(parameter.shape)} has "
        "been updated inside the first one, and this gradient belongs to the weights of before. "
        "Nothing of the second backward was applied. To accumulate N backwards per step, use "
        "satcompile.fuse_optimizer(optimizer, in_backward=True, accumulate=N)."
    )


def _gradient_from_elsewhere(parameter: torch.Tensor) -> UpdateError:
    return UpdateError(
        f"The parameter of shape {tuple(parameter.shape)} was updated inside the compiled backward "
        "and then got another gradient, from outside that graph (an uncompiled use of the same "
        "weight, such as a penalty on it). The update applied only a part of its gradient. Use "
        "in_backward=False, or move the other use into the compiled model."
    )
