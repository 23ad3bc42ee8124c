"""Masks, scores and step of a model that is trained sparsely, to inspect and to save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from satcompile.errors import OptionError
from satcompile.updates.sparsity import population
from satcompile.updates.sparsity.grid import Grid
from satcompile.updates.sparsity.masks import Mask, give_mask, mask_of

_FORMAT = 1


class SparsityState:
    """A live view of the sparse training of some parameters, as of the present step.

    ``state_dict()`` is plain data and tensors for ``torch.save``. If it is loaded with the model's
    and the optimizer's own state, before or after the first step, training continues as if it had
    not been interrupted. Save after ``optimizer.step()``.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._parameters = dict(parameters)

    def _masks(self) -> dict[str, Mask]:
        found = {name: mask_of(parameter) for name, parameter in self._parameters.items()}
        return {name: mask for name, mask in found.items() if mask is not None}

    @property
    def step(self) -> int:
        """Steps taken: calls of ``optimizer.step()``."""
        return max((population.step_of(mask) for mask in self._masks().values()), default=0)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Where each parameter is trained: a bool tensor of its shape, by name. A copy."""
        return {
            name: mask.grid.element_mask(mask.trained.active)
            for name, mask in self._masks().items()
        }

    @property
    def forward_masks(self) -> dict[str, torch.Tensor]:
        """Where the forward uses each parameter: a bool tensor of its shape, by name. A copy."""
        return {
            name: mask.grid.element_mask((mask.forward or mask.everything).active)
            for name, mask in self._masks().items()
        }

    @property
    def tiles(self) -> dict[str, torch.Tensor]:
        """Which tiles of each parameter are trained: a bool tensor of (rows of tiles, columns of
        tiles), by name."""
        return {name: mask.trained.active.clone() for name, mask in self._masks().items()}

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """The running mean of each tile's share of all scores, by name: float64 tensors like those
        of ``tiles``. Parameters without a score yet are left out."""
        return {
            name: mask.score.clone()
            for name, mask in self._masks().items()
            if mask.score is not None
        }

    @property
    def density(self) -> float:
        """Share of the elements of these parameters that are trained."""
        found = list(self._masks().values())
        elements = sum(mask.grid.num_elements for mask in found)
        active = sum(mask.trained.share * mask.grid.num_elements for mask in found)
        return active / elements if elements else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything, on the CPU."""
        return {
            "format": _FORMAT,
            "step": self.step,
            "parameters": {
                name: {
                    "shape": tuple(mask.grid.shape),
                    "tile": (mask.grid.height, mask.grid.width),
                    "trained": mask.trained.active.clone(),
                    "forward": None if mask.forward is None else mask.forward.active.clone(),
                    "score": None if mask.score is None else mask.score.clone(),
                }
                for name, mask in self._masks().items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict()`` returned; if it does not fit, nothing is changed.

        Raises:
            OptionError: another format, or parameters that this model does not have in that shape.
        """
        if state.get("format") != _FORMAT:
            raise OptionError(
                f"A sparsity state of format {state.get('format')!r} was given; this version reads "
                f"format {_FORMAT}."
            )
        loaded = {name: self._mask(name, entry) for name, entry in state["parameters"].items()}
        for name, (mask, entry) in loaded.items():
            mask.set(entry["trained"], entry["forward"])
            mask.score = None if entry["score"] is None else entry["score"].clone()
            give_mask(self._parameters[name], mask)
            population.begin_at(mask, int(state["step"]))

    def _mask(self, name: str, entry: Mapping[str, Any]) -> tuple[Mask, Mapping[str, Any]]:
        parameter = self._parameters.get(name)
        if parameter is None or tuple(parameter.shape) != tuple(entry["shape"]):
            here = (
                "does not exist here" if parameter is None else f"is {tuple(parameter.shape)} here"
            )
            raise OptionError(
                f"The sparsity state has a parameter {name!r} of shape {tuple(entry['shape'])}, which "
                f"{here}. Load it into the model that it was saved from."
            )
        grid = Grid(tuple(entry["shape"]), *entry["tile"])
        mask = mask_of(parameter)
        if mask is not None and mask.grid != grid:
            raise OptionError(
                f"The sparsity state has {name!r} in tiles of {grid.height} x {grid.width}; here they "
                f"are {mask.grid.height} x {mask.grid.width}. Use the same block."
            )
        return mask or Mask(grid), entry
