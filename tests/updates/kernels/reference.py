"""torch's own optimizers beside our updates: the same weights, gradients and steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer

from satcompile.updates.optimizers.rules import Numbers, Rule, Tiles, Update

LR, DECAY = 3e-2, 0.1
_ADAM = Numbers(LR, DECAY, beta1=0.8, beta2=0.95, eps=1e-6)
_BETAS = {"betas": (0.8, 0.95), "eps": 1e-6, "foreach": False}
_STATE = {"adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), "sgd": ("momentum_buffer",)}

# Relative and absolute. Half precision: half a unit in the last place, and a little of float32's.
_TOLERANCES = {torch.float64: (1e-13, 1e-14), torch.float32: (5e-6, 1e-6)}


@dataclass(frozen=True)
class Case:
    """A rule, and the optimizer of torch that follows it."""

    name: str
    rule: Rule
    numbers: Numbers
    optimizer: Callable[[list[Parameter]], Optimizer]

    def __str__(self) -> str:
        return self.name


ADAMW = Case(
    "adamw",
    Rule("adam", 2, decoupled=True),
    _ADAM,
    lambda weights: AdamW(weights, LR, weight_decay=DECAY, **_BETAS),
)
AMSGRAD = Case(
    "amsgrad",
    Rule("adam", 3, maximize=True),
    _ADAM,
    lambda weights: Adam(weights, LR, weight_decay=DECAY, amsgrad=True, maximize=True, **_BETAS),
)
MOMENTUM = Case(
    "momentum",
    Rule("sgd", 1, maximize=True),
    Numbers(LR, DECAY, beta1=0.9, beta2=0.3),
    lambda weights: SGD(weights, LR, 0.9, 0.3, DECAY, maximize=True, foreach=False),
)
CASES = (
    ADAMW,
    AMSGRAD,
    MOMENTUM,
    Case(
        "adam",
        Rule("adam", 2),
        replace(_ADAM, weight_decay=0.0),
        lambda weights: Adam(weights, LR, **_BETAS),
    ),
    Case(
        "sgd",
        Rule("sgd", 0),
        Numbers(LR, DECAY),
        lambda weights: SGD(weights, LR, weight_decay=DECAY, foreach=False),
    ),
    Case(
        "nesterov",
        Rule("sgd", 1, nesterov=True),
        Numbers(LR, beta1=0.9),
        lambda weights: SGD(weights, LR, 0.9, nesterov=True, foreach=False),
    ),
)


@dataclass
class Pair:
    """Weights that we update, and copies in exact arithmetic that torch updates.

    Half-precision weights are compared one step at a time: torch starts each from ours, in
    float32, and its result may differ by the one rounding when we store.
    """

    case: Case
    weights: list[torch.Tensor]
    moment_dtype: torch.dtype | None = None
    moments: list[tuple[torch.Tensor, ...]] = field(init=False)
    steps: list[torch.Tensor | None] = field(init=False)
    num_steps: int = 0

    def __post_init__(self) -> None:
        is_sgd = self.case.rule.formula == "sgd"
        # A momentum that is not there yet may hold anything.
        begin = float("nan") if is_sgd else 0.0
        self.moments = [
            tuple(
                torch.full_like(weight, begin, dtype=self.moment_dtype or weight.dtype)
                for _ in range(self.case.rule.num_moments)
            )
            for weight in self.weights
        ]
        self.steps = [None if is_sgd else torch.zeros(()) for _ in self.weights]
        self.theirs = [Parameter(_exact(weight)) for weight in self.weights]
        self.optimizer = self.case.optimizer(self.theirs)

    def updates(
        self, gradients: Sequence[torch.Tensor], tiles: Sequence[Tiles | None] | None = None
    ) -> list[Update]:
        is_first = self.num_steps == 0
        every = tiles or [None] * len(self.weights)
        rows = zip(self.weights, gradients, self.moments, self.steps, every, strict=True)
        rule, numbers = self.case.rule, self.case.numbers
        return [Update(rule, numbers, *row[:4], is_first, row[4]) for row in rows]

    def step_theirs(self, gradients: Sequence[torch.Tensor]) -> None:
        for parameter, gradient in zip(self.theirs, gradients, strict=True):
            parameter.grad = gradient.to(parameter.dtype).clone()
        self.optimizer.step()
        self.num_steps += 1

    def check(self, active: Sequence[torch.Tensor] | None = None) -> None:
        """Ours equal theirs, where ``active`` (everywhere by default)."""
        for index, weight in enumerate(self.weights):
            where = torch.ones_like(weight, dtype=torch.bool) if active is None else active[index]
            for ours, theirs in self._tensors(index):
                _assert_close(ours[where], theirs.detach().to(ours.device)[where])
                if ours.dtype in (torch.bfloat16, torch.float16):
                    theirs.data.copy_(ours)
            step = self.steps[index]
            assert step is None or step.item() == self.num_steps

    def _tensors(self, index: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield self.weights[index], self.theirs[index]
        state = self.optimizer.state[self.theirs[index]]
        names = _STATE[self.case.rule.formula][: self.case.rule.num_moments]
        for ours, name in zip(self.moments[index], names, strict=True):
            yield ours, state[name]


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to(dtype, copy=True)


def _assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    dtype = ours.dtype
    relative, smallest = _TOLERANCES.get(dtype, (torch.finfo(dtype).eps * 0.51, 1e-6))
    if dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1":
        relative *= 2  # the interpreter cuts off where a GPU rounds
    torch.testing.assert_close(
        ours.to(theirs.dtype), theirs, rtol=relative, atol=smallest, equal_nan=True
    )


def active_elements(shape: Sequence[int], tiles: Tiles) -> torch.Tensor:
    """Which elements of a weight lie in tiles of the list."""
    mask = torch.zeros(shape, dtype=torch.bool)
    matrix = mask.view(shape[0], -1)
    in_row = -(-matrix.shape[1] // tiles.width)
    for number in tiles.numbers.tolist():
        if number >= 0:
            top, left = number // in_row * tiles.height, number % in_row * tiles.width
            matrix[top : top + tiles.height, left : left + tiles.width] = True
    return mask


def tiles_of(height: int, width: int, *numbers: int, device: str = "cpu") -> Tiles:
    return Tiles(height, width, torch.tensor(numbers, dtype=torch.int32, device=device))


def blocks_of(
    blocks: Sequence[Sequence[int]], device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of rows by block of columns, as two rows of numbers: where each begins, and all."""
    starts = [0, *accumulate(map(len, blocks))]
    flat = [number for each in blocks for number in each]
    return tuple(torch.tensor(row, dtype=torch.int32, device=device) for row in (starts, flat))


def listed_elements(
    shape: Sequence[int], blocks: Sequence[Sequence[int]], depth: int, width: int
) -> torch.Tensor:
    """Which elements of a matrix lie in the listed tiles of ``depth`` x ``width``."""
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    for column, rows in enumerate(blocks):
        for row in rows:
            mask[row * depth : (row + 1) * depth, column * width : (column + 1) * width] = True
    return mask


def eighths(*shape: int, device: str = "cpu") -> torch.Tensor:
    """Numbers whose products and sums are exact in every dtype, in any order."""
    return torch.randint(-6, 7, shape, device=device) / 8.0
