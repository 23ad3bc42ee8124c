"""The formula of an update: plain data between the optimizers and the kernels.

The formulas are those of torch's own optimizers (``torch.optim.AdamW``, ``Adam``, ``SGD``), with
arithmetic in float32 for half-precision parameters and in the parameter's dtype otherwise:

* SGD: ``g += decay * p``; with momentum ``m = beta1 * m + (1 - beta2) * g`` (``beta2`` is the
  dampening; the first gradient is taken whole: ``m = g``), then ``g = m``, or ``g + beta1 * m``
  with Nesterov; ``p -= lr * g``.
* Adam (Kingma and Ba 2015): ``g += decay * p``; ``m += (g - m) * (1 - beta1)``;
  ``v = beta2 * v + (1 - beta2) * g * g``;
  ``p -= lr / (1 - beta1**t) * m / (sqrt(v) / sqrt(1 - beta2**t) + eps)``.
* AdamW (Loshchilov and Hutter 2019): the decay is ``p *= 1 - lr * decay`` instead.
* AMSGrad (Reddi et al. 2018): ``v_max = max(v_max, v)`` in the place of ``v`` under the root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Rule:
    """A formula; all its fields are known when a kernel is built.

    Attributes:
        formula: "sgd" or "adam".
        num_moments: tensors of state beside the parameter: 0 or 1 (SGD), 2, or 3 (AMSGrad).
        decoupled: the decay scales the weight and does not enter the moments (AdamW).
        nesterov: SGD looks one step ahead.
        maximize: the update follows the gradient upwards.
    """

    formula: Literal["sgd", "adam"]
    num_moments: int
    decoupled: bool = False
    nesterov: bool = False
    maximize: bool = False


@dataclass(frozen=True)
class Numbers:
    """Numbers that a parameter group may change between any two steps."""

    lr: float
    weight_decay: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0


@dataclass(frozen=True)
class Tiles:
    """Which part of a weight is updated; the rest keeps its weights and moments, bit for bit.

    A weight of shape (n, ...) is a matrix of n rows, cut into ``height`` x ``width`` tiles; those
    at the right and lower edges may be smaller. Tiles are numbered row by row.

    Attributes:
        height: rows of a tile, from 1.
        width: columns of a tile, from 1; the matrix's width, or more, where tiles are whole rows
            (blocks of a convolution's output channels).
        numbers: int32, of any length, on the weight's device; -1 means none.
    """

    height: int
    width: int
    numbers: torch.Tensor


@dataclass
class Update:
    """One parameter's update.

    Attributes:
        numbers: read when the update is applied.
        parameter, gradient, moments: of one shape, strides, dtype and device; memory
            without gaps.
        step: float32, no dimensions, on the CPU: the number of updates. The sweep increments it.
        is_first: SGD has no momentum yet (its tensor holds nothing of use).
        tiles: None for the whole parameter.
    """

    rule: Rule
    numbers: Numbers
    parameter: torch.Tensor
    gradient: torch.Tensor
    moments: tuple[torch.Tensor, ...] = ()
    step: torch.Tensor | None = None
    is_first: bool = False
    tiles: Tiles | None = None
