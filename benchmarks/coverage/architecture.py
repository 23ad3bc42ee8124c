"""What is known of an architecture before it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

Inputs = dict[str, Any]
BATCH, TOKENS, VOCABULARY, HIDDEN, IMAGE, CLASSES = 4, 12, 48, 32, 32, 5


@dataclass(frozen=True)
class Architecture:
    """A tiny model of some kind, and one batch for it.

    Attributes:
        family: as tables group it.
        build: makes the model, from weights drawn with torch's generator.
        inputs: makes the keyword arguments of its forward.
        requires: packages that it is made of.
        dtype: the most precise type in which it runs.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    requires: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float64

    @property
    def missing(self) -> list[str]:
        return [package for package in self.requires if find_spec(package) is None]


class Scored(nn.Module):
    """A model whose forward makes no loss, with one: the mean square of all that it returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> dict[str, Any]:
        output = self.model(**inputs)
        values = [v for v in pytree.tree_leaves(_plain(output)) if _is_result(v)]
        return {"loss": sum(value.square().mean() for value in values), "output": values}


def _plain(output: Any) -> Any:
    """transformers' and diffusers' outputs are dicts of their own classes."""
    return tuple(output.values()) if isinstance(output, Mapping) else output


def _is_result(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.requires_grad


def loss_of(output: Any) -> torch.Tensor:
    return output["loss"] if isinstance(output, dict) else output.loss


def text() -> Inputs:
    tokens = torch.randint(3, VOCABULARY, (BATCH, TOKENS))
    return {"input_ids": tokens, "labels": tokens}


def tokens_alone() -> Inputs:
    return {"input_ids": torch.randint(3, VOCABULARY, (BATCH, TOKENS))}


def images(side: int = IMAGE) -> Inputs:
    return {
        "pixel_values": torch.randn(BATCH, 3, side, side),
        "labels": torch.randint(0, CLASSES, (BATCH,)),
    }
