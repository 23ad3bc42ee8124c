"""Calls of sparsely trained graphs: binds parameters to their masks and their optimizer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from satcompile.compile.planning import PlannedGraphs
from satcompile.errors import UnsupportedError
from satcompile.runtime.known_optimizers import OPTIMIZERS
from satcompile.updates.optimizers.fused import FusedOptimizer
from satcompile.updates.optimizers.in_backward import BACKWARD_UPDATES
from satcompile.updates.sparsity import masks, population

log = logging.getLogger("satcompile")


def joined(graphs: PlannedGraphs, args: Sequence[Any]) -> dict[int, masks.Bound]:
    """The masks of a call's parameters, by slot. A new parameter gets one with everything active.

    Raises:
        UnsupportedError: a parameter is to be trained in tiles, and no fused optimizer holds it.
    """
    request = graphs.request
    settings = request.options.sparsity
    assert graphs.sparse is not None and settings is not None
    bound: dict[int, masks.Bound] = {}
    for slot, tiled in graphs.sparse.tiled.items():
        parameter = args[slot]
        optimizer = BACKWARD_UPDATES.holder(parameter)
        if optimizer is None:
            raise _not_fused(request.subject.names.get(slot, f"input {slot}"), parameter)
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
    """From now on, no optimizer that is not fused may step a partly frozen parameter. A fused one
    may still be alive, so looking for one in the forward is not enough."""
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


def warn_of_dense_uses(slots: Iterable[int], args: Sequence[Any]) -> bool:
    """Warn if a graph without a backward uses a weight as no training graph does; returns whether
    it did.

    Args:
        slots: positions of trained parameters that the graph uses whole.
    """
    for slot in slots:
        mask = masks.mask_of(args[slot])
        if mask is not None and mask.forward is not None:
            log.warning(
                "sparsity: a graph without gradients uses all of a parameter of shape %s, whose "
                "training uses %.0f%% of it: what it computes is not what is trained.",
                tuple(args[slot].shape),
                100 * mask.forward.share,
            )
            return True
    return False
