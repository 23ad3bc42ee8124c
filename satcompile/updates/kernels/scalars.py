"""The numbers of one update, as every kernel reads them: computed once, in double precision."""

from __future__ import annotations

import math
from typing import NamedTuple

from satcompile.updates.optimizers.rules import Update


class Scalars(NamedTuple):
    """The numbers of an update that are the same for all of its elements.

    Attributes:
        rate: the learning rate; Adam's is divided by its first bias correction.
        decay: factor of the weight that is added to the gradient; if decoupled, factor of the
            weight itself.
        keep: SGD: the momentum's share of itself. Adam: how far the mean goes to the gradient.
        take: share of the gradient in the momentum, or of its square in the second moment.
        beta2: Adam: the second moment's share of itself.
        root: Adam: root of the second bias correction.
        eps: Adam.
        holds: SGD: 1.0, or 0.0 where the momentum's memory holds nothing yet.
    """

    rate: float
    decay: float
    keep: float = 0.0
    take: float = 0.0
    beta2: float = 0.0
    root: float = 1.0
    eps: float = 0.0
    holds: float = 1.0


NUM_SCALARS = len(Scalars._fields)


def scalars_of(update: Update) -> Scalars:
    """The numbers of an update whose ``step``, if any, already counts it."""
    numbers = update.numbers
    if update.rule.formula == "sgd":
        is_first = update.is_first
        return Scalars(
            rate=numbers.lr,
            decay=numbers.weight_decay,
            keep=numbers.beta1,
            take=1.0 if is_first else 1.0 - numbers.beta2,
            holds=0.0 if is_first else 1.0,
        )
    assert update.step is not None
    step = update.step.item()
    decays_weight = update.rule.decoupled
    return Scalars(
        rate=numbers.lr / (1.0 - numbers.beta1**step),
        decay=1.0 - numbers.lr * numbers.weight_decay if decays_weight else numbers.weight_decay,
        keep=1.0 - numbers.beta1,
        take=1.0 - numbers.beta2,
        beta2=numbers.beta2,
        root=math.sqrt(1.0 - numbers.beta2**step),
        eps=numbers.eps,
    )
