"""Operators, as FX nodes and generated code have them."""

from __future__ import annotations

from typing import Any

import torch

# The operators that nodes call. 2.11, 2.13.
from torch._ops import HigherOrderOperator, OpOverload  # noqa: F401


def schema_of(operator: Any) -> Any:
    """An operator's arguments and results, and which of them it writes into. 2.11, 2.13."""
    return operator._schema


def add_to_each(tensors: list[torch.Tensor], number: float) -> None:
    """Add a number to each tensor, in place, in one kernel. ``_foreach_add_``: 2.11, 2.13."""
    torch._foreach_add_(tensors, number)
