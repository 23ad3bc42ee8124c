"""Optimizers, schedulers, clipping and loss scaling."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch


def watch_optimizers_given(told: Callable[[torch.optim.Optimizer], None]) -> None:
    """Call ``told`` with every optimizer that has been given parameters, as each is when it is
    made, or a state, as by ``load_state_dict``, a copy, and unpickling. Torch has a public hook for
    neither (``register_optimizer_step_post_hook`` runs at the first step at the earliest). Both are
    methods of the base class; subclasses extend and call them. 2.11, 2.13."""
    from torch.optim import Optimizer

    def watched(original: Any) -> Any:
        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            told(self)
            return result

        return method

    Optimizer.add_param_group = watched(Optimizer.add_param_group)  # type: ignore[method-assign]
    Optimizer.__setstate__ = watched(Optimizer.__setstate__)  # type: ignore[method-assign]


def watch_loss_scaling(scaled: Callable[[], None]) -> None:
    """Call ``scaled`` whenever any GradScaler scales a loss: the gradients do not show the factor.
    ``GradScaler._enabled``: 2.11, 2.13."""
    from torch.amp import GradScaler

    original = GradScaler.scale
    if hasattr(original, "_watched"):
        return

    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        if self._enabled:
            scaled()
        return original(self, outputs)

    scale._watched = True  # type: ignore[attr-defined]
    GradScaler.scale = scale  # type: ignore[method-assign]


def watch_clipping(about_to_clip: Callable[[Sequence[Any] | None, bool], None]) -> None:
    """Call ``about_to_clip`` before torch clips gradients. Its first argument is the parameters
    (norm), or None where there is no gradient at all (values). The second says whether anything can
    be clipped: an infinite limit only asks for the norm. ``clip_grad_norm_`` and
    ``clip_grad_value_`` look these helpers up in their module, under whatever name the two were
    imported. 2.11, 2.13."""
    from torch.nn.utils import clip_grad

    by_norm, by_value = (
        clip_grad._clip_grads_with_norm_,
        clip_grad._group_tensors_by_device_and_dtype,
    )
    if hasattr(by_norm, "_watched"):
        return

    @functools.wraps(by_norm)
    def watched_norm(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        about_to_clip(parameters, float(max_norm) != math.inf)
        return by_norm(parameters, max_norm, *args, **kwargs)

    @functools.wraps(by_value)
    def watched_value(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(tensors):
            about_to_clip(None, True)
        return by_value(tensors, *args, **kwargs)

    watched_norm._watched = True  # type: ignore[attr-defined]
    clip_grad._clip_grads_with_norm_ = watched_norm
    clip_grad._group_tensors_by_device_and_dtype = watched_value  # type: ignore[assignment]


def counts_for_schedulers(step: Any) -> bool:
    """Whether ``step`` is a learning-rate scheduler's wrapper, which records that the optimizer
    steps first. ``_wrapped_by_lr_sched``: 2.11, 2.13."""
    return hasattr(step, "_wrapped_by_lr_sched")


def take_over_step(optimizer: torch.optim.Optimizer, is_scheduled: bool) -> None:
    """After an optimizer's class has changed, let its new ``step`` run torch's hooks, count for
    schedulers that wrapped the old one, and get unscaled gradients from a GradScaler. (It hands its
    scale to optimizers that declare support for it.) ``_patch_step_function``, ``_opt_called``,
    ``_step_supports_amp_scaling``: 2.11, 2.13."""
    optimizer._patch_step_function()
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    if not is_scheduled:
        return
    reference = weakref.ref(optimizer)

    def step(*args: Any, **kwargs: Any) -> Any:
        alive = reference()
        assert alive is not None
        alive._opt_called = True  # type: ignore[attr-defined]
        return type(alive).step(alive, *args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = step  # type: ignore[method-assign]
