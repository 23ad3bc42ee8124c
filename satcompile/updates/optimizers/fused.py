"""``fuse_optimizer``: an optimizer's step as one sweep, or inside the backward.

The optimizer stays the same object, with the same ``param_groups`` and ``state``. Only its class
changes, to one that inherits torch's and steps with our kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from satcompile.errors import OptionError, UnsupportedError
from satcompile.torch_compat.optimizers import counts_for_schedulers, take_over_step
from satcompile.updates.kernels.sweep import sweep
from satcompile.updates.optimizers import in_backward as backward_updates
from satcompile.updates.optimizers.rules import Update
from satcompile.updates.optimizers.state import update_of
from satcompile.updates.optimizers.support import check_class, check_gradients, check_groups
from satcompile.updates.sparsity import population

_Optimizer = TypeVar("_Optimizer", bound=torch.optim.Optimizer)


@dataclass(frozen=True)
class Settings:
    """The settings that ``fuse_optimizer`` was given."""

    in_backward: bool = False
    accumulate: int = 1
    max_grad_norm: float | None = None

    @property
    def updates_in_backward(self) -> bool:
        """Whether a gradient may be applied when it appears. Clipping needs all gradients first;
        accumulation needs all backwards."""
        return self.in_backward and self.accumulate == 1 and self.max_grad_norm is None


def fuse_optimizer(
    optimizer: _Optimizer,
    in_backward: bool = False,
    accumulate: int = 1,
    max_grad_norm: float | None = None,
) -> _Optimizer:
    """Let ``optimizer`` update all parameters in one compiled sweep. In place; returns it.

    The loop stays ``loss.backward(); optimizer.step(); optimizer.zero_grad()``.

    Args:
        optimizer: torch.optim.AdamW, Adam or SGD, at any time in its life.
        in_backward: update each parameter inside the compiled backward as soon as its gradient
            exists. ``p.grad`` stays None, and if gradients set the peak, the peak falls. Applies to
            graphs of ``backend="sat"``, and there to parameters whose gradient no other code has
            to see; ``step()`` updates all others. Set learning rates before the backward.
        accumulate: backwards per ``step()``. With more than one, and ``in_backward``, gradients
            are summed in ``p.grad``, and ``step()`` applies them.
        max_grad_norm: clip the norm of all gradients together, as
            ``torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)`` before ``step()`` would;
            ``optimizer.grad_norm`` is then the norm of the last step. All gradients must be known
            first, so ``step()`` applies them.

    Raises:
        UnsupportedError: another class of optimizer, ``capturable``, ``differentiable``, DTensors,
            complex or non-dense parameters.
        OptionError: an impossible value.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptionError(
            f"fuse_optimizer takes a torch.optim.Optimizer, not {type(optimizer).__name__}."
        )
    settings = _settings(in_backward, accumulate, max_grad_norm)
    if not isinstance(optimizer, FusedOptimizer):
        check_class(optimizer)
        check_groups(optimizer.param_groups, type(optimizer))
        scheduled = _is_scheduled(optimizer)
        optimizer.__class__ = _FUSED[type(optimizer)]  # type: ignore[assignment]
        take_over_step(optimizer, scheduled)
    fused: Any = optimizer
    fused._fused_settings = settings
    backward_updates.BACKWARD_UPDATES.add(fused)
    return optimizer


def _settings(in_backward: Any, accumulate: Any, max_grad_norm: Any) -> Settings:
    if not isinstance(in_backward, bool):
        raise OptionError(f"in_backward is True or False, not {in_backward!r}.")
    if not isinstance(accumulate, int) or isinstance(accumulate, bool) or accumulate < 1:
        raise OptionError(f"accumulate is a number of backwards from 1 on, not {accumulate!r}.")
    if max_grad_norm is None:
        return Settings(in_backward, accumulate)
    if not isinstance(max_grad_norm, (int, float)) or not max_grad_norm > 0:
        raise OptionError(f"max_grad_norm is a number above 0, or None, not {max_grad_norm!r}.")
    return Settings(in_backward, accumulate, float(max_grad_norm))


def _is_scheduled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a learning-rate scheduler wraps this instance's ``step``."""
    own = vars(optimizer).get("step")
    if own is not None and not counts_for_schedulers(own):
        raise UnsupportedError(
            f"The step() of this {type(optimizer).__name__} was replaced by something that "
            "fuse_optimizer does not know. Call fuse_optimizer before that."
        )
    return own is not None


class FusedOptimizer(torch.optim.Optimizer):
    """The methods that the fused classes add to torch's.

    Attributes:
        torch_class: the class whose formula it uses.
        grad_norm: of the last step, before clipping; None without ``max_grad_norm``.
    """

    torch_class: type[torch.optim.Optimizer]
    grad_norm: torch.Tensor | None = None
    _fused_settings = Settings()

    @torch.compiler.disable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply the gradients that are set, after ``closure`` if one is given.

        Raises:
            UpdateError: the backward applied other updates than this step would apply.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            backward_updates.BACKWARD_UPDATES.finish(self)
            updates = list(self._updates())
            scale = self._clipping_scale(updates)
            sweep(updates, scale)
            population.step_taken(self)
        torch.autograd.graph.increment_version([update.parameter for update in updates])
        return loss

    def _updates(self) -> Iterator[Update]:
        for group in self.param_groups:
            check_gradients(group["params"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield update_of(self, group, self.torch_class, parameter, parameter.grad)

    def _clipping_scale(self, updates: list[Update]) -> torch.Tensor | None:
        """The factor by which torch's ``clip_grad_norm_`` multiplies gradients."""
        limit = self._fused_settings.max_grad_norm
        if limit is None:
            return None
        gradients = [update.gradient for update in updates]
        self.grad_norm = torch.nn.utils.get_total_norm(gradients)
        return torch.clamp(limit / (self.grad_norm + 1e-6), max=1.0)

    def zero_grad(self, set_to_none: bool = True) -> None:
        backward_updates.BACKWARD_UPDATES.check_not_applied(self)
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            check_groups(self.param_groups, self.torch_class)
        except UnsupportedError:
            self.param_groups.pop()
            raise
        backward_updates.BACKWARD_UPDATES.changed()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load as torch does; refuse settings that cannot be fused before anything is loaded."""
        check_groups([{**g, "params": ()} for g in state_dict["param_groups"]], self.torch_class)
        super().load_state_dict(state_dict)  # type: ignore[arg-type]
        backward_updates.BACKWARD_UPDATES.changed()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_fused_settings": self._fused_settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_fused_settings" in state:  # a copy, or unpickled
            backward_updates.BACKWARD_UPDATES.add(self)


class FusedAdamW(FusedOptimizer, torch.optim.AdamW):
    torch_class = torch.optim.AdamW


class FusedAdam(FusedOptimizer, torch.optim.Adam):
    torch_class = torch.optim.Adam


class FusedSGD(FusedOptimizer, torch.optim.SGD):
    torch_class = torch.optim.SGD


_FUSED: dict[type, type[FusedOptimizer]] = {
    fused.torch_class: fused for fused in (FusedAdamW, FusedAdam, FusedSGD)
}
