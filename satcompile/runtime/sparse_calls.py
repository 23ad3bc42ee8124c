"""A call of a graph that is trained sparsely: its parameters meet their masks and their optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from satcompile.compile.attempt import Attempt
from satcompile.compile.rounds import Planned
from satcompile.errors import UnsupportedError
from satcompile.runtime.known_optimizers import OPTIMIZERS
from satcompile.updates.optimizers.fused import FusedOptimizer
from satcompile.updates.optimizers.in_backward import LEDGER
from satcompile.updates.sparsity import masks, population

log = logging.getLogger("satcompile")


def forward_of(planned: Planned) -> Callable[..., Any]:
    """What runs a plan's forward, with nothing in front of it where there are no tiles."""
    attempt = planned.attempt
    is_plain = attempt.options.sparsity is None or attempt.is_training
    if attempt.sparse is None and is_plain:
        return planned.compiled
    return lambda *args: _run(planned, args)


def _run(planned: Planned, args: Sequence[Any]) -> Any:
    """The forward of a plan.

    Raises:
        UnsupportedError: a parameter is to be trained in tiles, and no fused optimizer holds it.
    """
    attempt = planned.attempt
    if attempt.sparse is not None:
        bound = _joined(attempt, args)
        attempt.latest_masks = {slot: each.mask for slot, each in bound.items()}
        with masks.running(bound):
            return planned.compiled(*args)
    bound = masks.bindings({slot: args[slot] for slot in attempt.masked})
    _warn_of_dense_uses(attempt, args)
    with masks.running(bound):
        return planned.compiled(*args)


def _joined(attempt: Attempt, args: Sequence[Any]) -> dict[int, masks.Bound]:
    """By slot; a parameter that comes for the first time gets a mask with everything active."""
    assert attempt.sparse is not None and attempt.options.sparsity is not None
    settings = attempt.options.sparsity
    bound: dict[int, masks.Bound] = {}
    for slot, tiled in attempt.sparse.tiled.items():
        parameter = args[slot]
        optimizer = LEDGER.holder(parameter)
        if optimizer is None:
            raise _not_fused(attempt.names.get(slot, f"input {slot}"), parameter)
        mask = population.join(parameter, optimizer, settings)
        if settings.is_forward_sparse and not tiled.has_sparse_forward:
            mask.keep_forward_dense()
        bound[slot] = masks.Bound(parameter, mask)
    _watch_other_optimizers()
    population.note_data_parallel([each.mask for each in bound.values()])
    return bound


def _not_fused(name: str, parameter: torch.Tensor) -> UnsupportedError:
    holders = [
        type(optimizer).__name__
        for optimizer in OPTIMIZERS.alive()
        if any(p is parameter for group in optimizer.param_groups for p in group["params"])
    ]
    held = f"is held by {' and '.join(holders)}" if holders else "is held by no optimizer"
    return UnsupportedError(
        f"The option 'sparsity' needs satcompile.fuse_optimizer(optimizer) before the first training "
        f"step: an optimizer of torch's would let frozen tiles drift, by momentum and weight decay. "
        f"The parameter {name!r} of shape {tuple(parameter.shape)} {held}. One that is not to be "
        "trained at all: requires_grad_(False)."
    )


@cache
def _watch_other_optimizers() -> None:
    """From now on, no optimizer that is not fused may step what is partly frozen: a fused one may
    still be alive, so that looking for its like in the forward is not enough."""
    register_optimizer_step_pre_hook(_refuse_to_move_frozen)


def _refuse_to_move_frozen(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if isinstance(optimizer, FusedOptimizer):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if masks.tiles_of(parameter) is not None:
                raise UnsupportedError(
                    f"{type(optimizer).__name__}.step() would move frozen tiles of a parameter of shape "
                    f"{tuple(parameter.shape)}, by momentum and weight decay. Call "
                    "satcompile.fuse_optimizer(optimizer) on it. Nothing was changed."
                )


def _warn_of_dense_uses(attempt: Attempt, args: Sequence[Any]) -> None:
    """Without a backward, a graph may use a weight as no training graph does."""
    if attempt.told_of_dense_uses:
        return
    for slot in attempt.trained - attempt.masked:
        mask = masks.mask_of(args[slot])
        if mask is not None and mask.forward is not None:
            attempt.told_of_dense_uses = True
            log.warning(
                "sparsity: a graph without gradients uses all of a parameter of shape %s, whose "
                "training uses %.0f%% of it: what it computes is not what is trained.",
                tuple(args[slot].shape),
                100 * mask.forward.share,
            )
            return
