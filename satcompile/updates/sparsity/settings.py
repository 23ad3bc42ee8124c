"""The options of sparse training, validated."""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from satcompile.errors import OptionError
from satcompile.updates.sparsity.scores import Score

DensitySchedule = float | Mapping[int, float] | Callable[[int], float]

_EXAMPLE = "{'sparsity': {'density': 0.3}}"


@dataclass(frozen=True)
class Sparsity:
    """Train only the tiles of each weight that matter, and choose them again as training goes on.

    Attributes:
        density: share of the tiled parameters that is active, in (0, 1]. Or a schedule over steps:
            a mapping of steps to densities, linear between them and constant outside; or a function
            of the step. A schedule is evaluated whenever tiles are chosen.
        forward_density: share that the forward and the input's gradient use, in (0, density]; 1 for
            a dense forward (Top-KAST, Jayakumar et al. 2020, has the forward set lie within the
            trained one).
        block: rows and columns of a tile of a matrix. A convolution's weight is cut into blocks of
            whole output channels, of about as many weights, but at most ``block`` channels.
        interval: steps between two choices. The step before a choice computes all gradients, to
            score all tiles; frozen tiles stay frozen in it.
        warmup_steps: dense steps at the beginning. The first step is dense in any case.
        score: what a tile is worth: "movement" (sum of |w g|), "fisher" (g^2), "magnitude" (|w|),
            or "random", a control. Tiles of different sizes are compared by their mean.
        score_memory: share of the old score that stays in the running mean, in [0, 1).

    Raises:
        OptionError: an impossible value.
    """

    density: DensitySchedule
    forward_density: float = 1.0
    block: int = 128
    interval: int = 500
    warmup_steps: int = 0
    score: Score = "movement"
    score_memory: float = 0.5

    def __post_init__(self) -> None:
        self._check_density()
        self._check_forward_density()
        for name, least in (("block", 1), ("interval", 1), ("warmup_steps", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise OptionError(
                    f"sparsity: {name} is {value!r}; it takes a whole number from {least} on."
                )
        if self.score not in get_args(Score):
            known = ", ".join(repr(name) for name in get_args(Score))
            raise OptionError(f"sparsity: score is {self.score!r}; it takes one of {known}.")
        if not _is_number(self.score_memory) or not 0 <= self.score_memory < 1:
            raise OptionError(
                f"sparsity: score_memory is {self.score_memory!r}; it takes a number from 0 on, "
                "below 1."
            )

    def __hash__(self) -> int:
        return hash(repr(self))  # a mapping has no hash of its own

    def density_at(self, step: int) -> float:
        """The density asked for at a step, counted from 0."""
        if isinstance(self.density, Mapping):
            return _interpolated(sorted(self.density.items()), step)
        if callable(self.density):
            found = self.density(step)
            _check_share("density", found, f"density({step})")
            return float(found)
        return float(self.density)

    @property
    def is_forward_sparse(self) -> bool:
        return self.forward_density < 1

    @property
    def first_choice(self) -> int:
        """The last dense step at the beginning, after which tiles are chosen for the first time."""
        return max(self.warmup_steps, 1) - 1

    def chooses_after(self, step: int) -> bool:
        """Whether tiles are chosen again at the end of a step."""
        return step >= self.first_choice and (step - self.first_choice) % self.interval == 0

    def next_choice(self, step: int) -> int:
        """The first step from ``step`` on after which tiles are chosen."""
        if step <= self.first_choice:
            return self.first_choice
        return step + (self.first_choice - step) % self.interval

    @property
    def key(self) -> tuple[Any, ...]:
        """Settings that compiled code depends on; it looks up tiles and densities when it runs."""
        return (self.block, self.is_forward_sparse)

    def _check_density(self) -> None:
        if callable(self.density):
            return  # checked when it is called
        if not isinstance(self.density, Mapping):
            _check_share("density", self.density, "density")
            return
        if not self.density:
            raise OptionError(
                "sparsity: density is an empty mapping; it takes steps and densities, such as "
                "{0: 1.0, 1000: 0.25}."
            )
        for step, value in self.density.items():
            if not isinstance(step, int) or isinstance(step, bool) or step < 0:
                raise OptionError(
                    f"sparsity: density has {step!r} as a step; steps are whole numbers from 0 on."
                )
            _check_share("density", value, f"density at step {step}")

    def _check_forward_density(self) -> None:
        _check_share("forward_density", self.forward_density, "forward_density")
        if not self.is_forward_sparse or callable(self.density):
            return
        values = self.density.values() if isinstance(self.density, Mapping) else [self.density]
        if self.forward_density > min(values):
            raise OptionError(
                f"sparsity: forward_density is {self.forward_density}, above the density of "
                f"{min(values)}. What the forward uses must be trained: lower forward_density, "
                "raise density, or leave forward_density at 1 for a dense forward."
            )


def read_sparsity(value: Any) -> Sparsity | None:
    """The option ``sparsity``: None, a ``Sparsity``, or a dict of its fields.

    Raises:
        OptionError: anything else, with the nearest valid choice.
    """
    if value is None or isinstance(value, Sparsity):
        return value
    if not isinstance(value, Mapping):
        raise OptionError(
            f"The option 'sparsity' is {value!r}; it takes a dict or a satcompile.Sparsity, such as "
            f"{_EXAMPLE}."
        )
    known = [field.name for field in fields(Sparsity)]
    for key in value:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            meant = f"Did you mean {close[0]!r}? " if close else ""
            raise OptionError(f"sparsity has no {key!r}. {meant}It has: {', '.join(known)}.")
    if "density" not in value:
        raise OptionError(f"sparsity needs a density, such as {_EXAMPLE}.")
    return Sparsity(**value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_share(name: str, value: Any, described: str) -> None:
    if not _is_number(value) or not 0 < value <= 1:
        schedules = ", or a schedule over steps such as {0: 1.0, 1000: 0.25}"
        raise OptionError(
            f"sparsity: {described} is {value!r}; it takes a number above 0 and up to 1"
            f"{schedules if name == 'density' else ''}."
        )


def _interpolated(points: list[tuple[int, float]], step: int) -> float:
    position = bisect_right(points, step, key=lambda point: point[0])
    if position == 0:
        return float(points[0][1])
    if position == len(points):
        return float(points[-1][1])
    (start, before), (end, after) = points[position - 1], points[position]
    return before + (after - before) * (step - start) / (end - start)
