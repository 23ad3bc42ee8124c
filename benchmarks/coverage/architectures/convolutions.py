"""timm's families, as small as their factories make them."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import nn

from benchmarks.coverage.architecture import (
    CLASSES,
    IMAGE,
    Architecture,
    Inputs,
    Scored,
    images,
)


class _Named(type):
    """A class that has every attribute: its name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Empty(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (), {})


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """timm asks torchvision for transforms of pictures alone, and no model of it uses one: where
    torchvision is not installed for this torch, empty modules answer while timm is imported."""
    finder = _StandIn()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


def _built(name: str, settings: dict[str, Any]) -> nn.Module:
    with nullcontext() if find_spec("torchvision") else _without_torchvision():
        import timm
    return Scored(timm.create_model(name, num_classes=CLASSES, **settings))


def _picture(side: int = IMAGE) -> Inputs:
    return {"x": images(side)["pixel_values"]}


_TINY_STAGES = {"depths": (1, 1, 1, 1)}
_TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "timm-resnet": ("resnet10t", {"channels": (8, 16, 16, 32), "stem_width": 8}),
    "timm-convnext": ("convnext_atto", {**_TINY_STAGES, "dims": (8, 16, 16, 32)}),
    "timm-efficientnet": ("mnasnet_050", {}),
    "timm-mobilenetv3": ("mobilenetv3_small_050", {"drop_rate": 0.0}),
    "timm-densenet": ("densenet121", {"block_config": (2, 2), "growth_rate": 8}),
    "timm-vit": ("vit_tiny_patch16_224", {
        "img_size": IMAGE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2,
    }),
    "timm-swin": ("swin_tiny_patch4_window7_224", {
        "img_size": IMAGE, "window_size": 4, "embed_dim": 16, "depths": (2, 2),
        "num_heads": (1, 2),
    }),
    "timm-xcit": ("xcit_nano_12_p16_224", {
        "img_size": IMAGE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2,
    }),
    "timm-edgenext": ("edgenext_xx_small", {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 2)}),
}  # fmt: skip

ROWS = [
    Architecture(name, "convolutions", partial(_built, kind, settings), _picture, ("timm",))
    for name, (kind, settings) in _TABLE.items()
]
