"""The weights that share a threshold: those of one optimizer under one setting.

A step is one ``optimizer.step()``. At its end, if the settings say so, the step's scores enter the
running means and the tiles are chosen again. Masks never change between two backwards of a step.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from satcompile.errors import UnsupportedError
from satcompile.torch_compat.distributed import active_process_group, sum_over
from satcompile.updates.sparsity.grid import Grid
from satcompile.updates.sparsity.masks import Mask, give_mask, mask_of
from satcompile.updates.sparsity.scores import FROM_GRADIENTS, random_scores
from satcompile.updates.sparsity.selection import choose
from satcompile.updates.sparsity.settings import Sparsity

log = logging.getLogger("satcompile")


class Population:
    """Weights of one optimizer, their masks, and the step.

    Attributes:
        settings: what the user asked for.
        step: steps taken since training began (or the number that was loaded).
    """

    def __init__(self, optimizer: Any, settings: Sparsity) -> None:
        self.settings, self.step = settings, 0
        self.optimizer = weakref.ref(optimizer)
        self._members: dict[int, weakref.ref[torch.Tensor]] = {}  # in the order of their addition
        self._is_late = False  # a choice was due and could not be made
        self._group: Any = None  # of processes that train replicas

    # -- members ---------------------------------------------------------------------------

    def add(self, parameter: torch.Tensor, mask: Mask) -> None:
        key = id(parameter)
        self._members[key] = weakref.ref(parameter, lambda _: self._members.pop(key, None))
        mask.is_scoring = self.is_scoring

    def remove(self, parameter: torch.Tensor) -> None:
        self._members.pop(id(parameter), None)

    def members(self) -> Iterator[tuple[torch.Tensor, Mask]]:
        for reference in list(self._members.values()):
            parameter = reference()
            mask = None if parameter is None else mask_of(parameter)
            if parameter is not None and mask is not None:
                yield parameter, mask

    def seen_in_data_parallel(self, group: Any) -> None:
        """Sum scores over ``group`` from now on, since replicas must have the same masks."""
        self._group = group

    # -- steps -----------------------------------------------------------------------------

    @property
    def is_scoring(self) -> bool:
        """Whether this step computes whole gradients, to score all tiles."""
        if self.settings.score not in FROM_GRADIENTS:
            return False
        is_dense = self.step <= self.settings.first_choice
        return is_dense or self._is_late or self.settings.chooses_after(self.step)

    @property
    def next_choice(self) -> int:
        """The step after which tiles are chosen next."""
        return self.step if self._is_late else self.settings.next_choice(self.step)

    def begin_at(self, step: int) -> None:
        """Go on from a saved step."""
        self.step, self._is_late = step, False
        self._tell_members()

    def step_taken(self) -> None:
        """After the optimizer has taken a step, score and choose tiles if they are due."""
        if self.is_scoring or self.settings.chooses_after(self.step):
            self._score()
        if self.settings.chooses_after(self.step) or self._is_late:
            self._choose()
        self.step += 1
        self._tell_members()

    def _tell_members(self) -> None:
        is_scoring = self.is_scoring
        for _, mask in self.members():
            mask.is_scoring = is_scoring

    def _score(self) -> None:
        """Let the step's scores enter the running means, each as a share of the step's sum, so that
        a scale of all the step's gradients (from its loss, from a GradScaler) has no effect."""
        if self.settings.score == "random":
            for number, (_, mask) in enumerate(self.members()):
                mask.score = random_scores(mask.grid, hash((self.step, number)) & 0x7FFFFFFF)
            return
        found = [(mask, self._incoming(parameter, mask)) for parameter, mask in self.members()]
        scored = [(mask, scores) for mask, scores in found if scores is not None]
        if not scored:
            return
        maps = self._summed([scores for _, scores in scored])
        total = sum(float(scores.sum()) for scores in maps)
        if not total > 0 or total == float("inf"):
            return  # overflow, or no gradient at all: the step says nothing about any tile
        keep = self.settings.score_memory
        for (mask, _), scores in zip(scored, maps, strict=True):
            share = scores / total
            mask.score = share if mask.score is None else keep * mask.score + (1 - keep) * share

    def _incoming(self, parameter: torch.Tensor, mask: Mask) -> torch.Tensor | None:
        """A weight's scores. With replicas every weight has some: all processes must sum over the
        same weights, even a process that did not use one of them."""
        scores = mask.take_incoming(parameter)
        if scores is None and self._group is not None:
            return torch.zeros(mask.grid.down, mask.grid.across, device=parameter.device)
        return scores

    def _summed(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The maps in float64 on the CPU, summed over all processes that train replicas."""
        together = torch.cat([scores.flatten().double() for scores in maps])
        if self._group is not None:
            sum_over(self._group, together)
        together = together.cpu()
        pieces = together.split([scores.numel() for scores in maps])
        return [piece.view(scores.shape) for piece, scores in zip(pieces, maps, strict=True)]

    def _choose(self) -> None:
        scored = [(mask, mask.score) for _, mask in self.members() if mask.score is not None]
        self._is_late = not scored
        if not scored:
            log.warning(
                "sparsity: no finite gradient came in step %d, after which tiles were to be chosen; "
                "the next step will score them.",
                self.step,
            )
            return
        grids, scores = [mask.grid for mask, _ in scored], [score for _, score in scored]
        density = self.settings.density_at(self.step + 1)
        trained = choose(grids, scores, density)
        forward: Sequence[torch.Tensor | None] = [None] * len(scored)
        if self.settings.is_forward_sparse:
            share = min(density, self.settings.forward_density)
            forward = [
                f & t for f, t in zip(choose(grids, scores, share), trained, strict=True)
            ]  # fmt: skip
        for (mask, _), active, used in zip(scored, trained, forward, strict=True):
            mask.set(active, used)


_populations: weakref.WeakKeyDictionary[Any, dict[Sparsity, Population]] = (
    weakref.WeakKeyDictionary()
)
_population_of: weakref.WeakKeyDictionary[Mask, Population] = weakref.WeakKeyDictionary()
_loaded_steps: weakref.WeakKeyDictionary[Mask, int] = weakref.WeakKeyDictionary()


def population_of(mask: Mask) -> Population | None:
    return _population_of.get(mask)


def join(parameter: torch.Tensor, optimizer: Any, settings: Sparsity) -> Mask:
    """The mask of a parameter that ``optimizer`` updates and a graph trains sparsely. If there is
    none, the function makes one with all tiles active.

    Raises:
        UnsupportedError: another graph trains the parameter with other settings.
    """
    mask = mask_of(parameter)
    if mask is None:
        mask = Mask(Grid.of(parameter.shape, settings.block), settings)
        give_mask(parameter, mask)
    before = _population_of.get(mask)
    if before is not None and before.optimizer() is optimizer and before.settings == settings:
        return mask
    if mask.grid != Grid.of(parameter.shape, settings.block):
        raise UnsupportedError(
            f"The parameter of shape {tuple(parameter.shape)} is trained in tiles of "
            f"{mask.grid.height} x {mask.grid.width} already (by another compiled graph, or by what "
            f"was loaded), which block={settings.block} does not give. Use the same block."
        )
    mask.settings = settings
    step = _loaded_steps.pop(mask, 0) if before is None else before.step
    if before is not None:  # its optimizer was replaced
        before.remove(parameter)
    populations = _populations.setdefault(optimizer, {})
    if settings not in populations:
        populations[settings] = Population(optimizer, settings)
        populations[settings].begin_at(step)
    _population_of[mask] = populations[settings]
    populations[settings].add(parameter, mask)
    return mask


def begin_at(mask: Mask, step: int) -> None:
    """Let a loaded mask go on from its step."""
    population = _population_of.get(mask)
    if population is not None:
        population.begin_at(step)
    else:
        _loaded_steps[mask] = step


def step_of(mask: Mask) -> int:
    """Steps taken in the training of a mask's parameter."""
    population = _population_of.get(mask)
    return _loaded_steps.get(mask, 0) if population is None else population.step


def step_taken(optimizer: Any) -> None:
    """Tell the populations of ``optimizer`` that its ``step()`` is at its end."""
    for population in list(_populations.get(optimizer, {}).values()):
        population.step_taken()


def note_data_parallel(masks: Sequence[Mask]) -> None:
    """Note whether the running forward of these masks is inside DistributedDataParallel."""
    group = active_process_group()
    if group is None:
        return
    for population in {_population_of[mask] for mask in masks if mask in _population_of}:
        population.seen_in_data_parallel(group)
