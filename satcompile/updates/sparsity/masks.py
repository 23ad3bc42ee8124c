"""The mask of each weight: which of its tiles are trained, and which the forward uses.

A mask belongs to a parameter, not to a graph: Dynamo gives one graph to several instances of a
model, and several graphs use one parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import local
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from satcompile.updates.optimizers.rules import Tiles
from satcompile.updates.sparsity.grid import Grid
from satcompile.updates.sparsity.pattern import Pattern
from satcompile.updates.sparsity.scores import FROM_GRADIENTS, tile_scores
from satcompile.updates.sparsity.settings import Sparsity


class Mask:
    """The mask of one parameter.

    Attributes:
        grid: how it is cut.
        settings: of its training; None if it was loaded and no graph has asked for it yet.
        everything: all tiles.
        trained: tiles that have a gradient and are updated.
        forward: tiles that the forward and the input's gradient use; None for all.
        score: a map of float64, the running mean over scoring steps; None before the first.
        is_scoring: whether this step computes whole gradients, to score all tiles.
    """

    def __init__(self, grid: Grid, settings: Sparsity | None = None) -> None:
        self.grid, self.settings = grid, settings
        self.everything = Pattern(grid, torch.ones(grid.down, grid.across, dtype=torch.bool))
        self.trained = self.everything
        self.forward: Pattern | None = None
        self.score: torch.Tensor | None = None
        self.is_scoring = True
        self._is_forward_dense = False
        self._incoming: torch.Tensor | None = None  # kept: what a step leaves would not be counted
        self._has_incoming = False

    def set(self, trained: torch.Tensor, forward: torch.Tensor | None) -> None:
        """Set both masks from maps of bool; ``forward`` lies within ``trained``."""
        self._has_incoming = False
        self.trained = Pattern(self.grid, trained.clone())
        if forward is not None and not self._is_forward_dense:
            self.forward = Pattern(self.grid, forward.clone())
        else:
            self.forward = None

    def keep_forward_dense(self) -> None:
        """Make all graphs use the whole weight, because the forward of one cannot skip tiles."""
        self._is_forward_dense, self.forward = True, None

    def collect(self, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        """Score all tiles by a gradient, and add the scores to those of the step's others."""
        assert self.settings is not None
        if self.settings.score not in FROM_GRADIENTS:
            return
        found = tile_scores(self.settings.score, self.grid, weight.detach(), gradient)
        if self._incoming is None or self._incoming.device != found.device:
            self._incoming = found
        elif self._has_incoming:
            self._incoming += found
        else:
            self._incoming.copy_(found)
        self._has_incoming = True

    def take_incoming(self, weight: torch.Tensor) -> torch.Tensor | None:
        """The step's scores, on the weight's device; None where no gradient came."""
        if self.settings is not None and self.settings.score == "magnitude":
            return tile_scores("magnitude", self.grid, weight.detach(), None)
        found = self._incoming if self._has_incoming else None
        self._has_incoming = False
        return found


_masks: WeakIdKeyDictionary = WeakIdKeyDictionary()


def mask_of(parameter: torch.Tensor) -> Mask | None:
    """The parameter's mask; None where it is not trained sparsely."""
    found: Mask | None = _masks.get(parameter)
    return found


def give_mask(parameter: torch.Tensor, mask: Mask) -> None:
    _masks[parameter] = mask


def tiles_of(parameter: torch.Tensor) -> Tiles | None:
    """The tiles that an optimizer may touch; None for all of them."""
    mask = _masks.get(parameter) if len(_masks) else None
    if mask is None or mask.trained.is_full:
        return None
    found: Tiles = mask.trained.tiles(parameter.device)
    return found


# -- what operators find when they run ---------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """The parameter and the mask of a graph's slot, in the running call."""

    parameter: torch.Tensor
    mask: Mask


class _Running(local):
    """Graphs that run in this thread, innermost last."""

    def __init__(self) -> None:
        self.stack: list[Mapping[int, Bound]] = []


_running = _Running()


@contextmanager
def running(slots: Mapping[int, Bound]) -> Iterator[None]:
    """Bind slots to masks for the sparse operators of a compiled graph that runs inside."""
    _running.stack.append(slots)
    try:
        yield
    finally:
        _running.stack.pop()


def is_running() -> bool:
    return bool(_running.stack)


def bound(slot: int) -> Bound | None:
    """The parameter and mask in a slot of the running graph; None without a mask."""
    return _running.stack[-1].get(slot)


def bindings(parameters: Mapping[int, Any]) -> dict[int, Bound]:
    """Masks by slot, for a graph that is about to run with these parameters."""
    found = {}
    for slot, parameter in parameters.items():
        mask = None if parameter is None else mask_of(parameter)
        if mask is not None:
            found[slot] = Bound(parameter, mask)
    return found
