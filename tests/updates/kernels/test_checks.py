"""What does not fit is refused by name before anything is changed; triton is not needed for it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from satcompile.updates.kernels.sweep_triton import sweep
from satcompile.updates.kernels.tile_mm_triton import masked_mm, tile_mm
from satcompile.updates.optimizers.rules import Numbers, Rule, Tiles, Update

ADAM = Rule("adam", 2)
INDICES = torch.tensor([0], dtype=torch.int32)


def _update(shape: tuple[int, ...] = (32, 48), **changed: Any) -> Update:
    weight, gradient, mean, square = (torch.ones(shape) for _ in range(4))
    update = Update(ADAM, Numbers(0.1), weight, gradient, (mean, square), torch.zeros(()))
    return replace(update, **changed)


MISTAKES = {
    "a rule with 2 moments was given 1": lambda: _update(moments=(torch.ones(32, 48),)),
    "Adam's bias corrections need `step`": lambda: _update(step=None),
    "moments of one dtype are needed, not torch.float32, torch.float64": lambda: _update(
        moments=(torch.ones(32, 48), torch.ones(32, 48).double())
    ),
    "no kernel updates torch.int64": lambda: _update(gradient=torch.ones(32, 48).long()),
    "gradient or moment torch.float32 of shape (48, 32) on cpu": lambda: _update(
        gradient=torch.ones(48, 32)
    ),
    "must be of the same strides and without gaps; their strides are [(48, 1), (1, 32)": lambda: (
        _update(gradient=torch.ones(48, 32).t())
    ),
    "must be of the same strides and without gaps; their strides are [(96, 2)": lambda: replace(
        _update(moments=(), rule=Rule("sgd", 0)), parameter=torch.ones(32, 96)[:, ::2]
    ),
    "must be contiguous; their strides are [(1, 32), (1, 32)": lambda: _turned(
        _update((48, 32), tiles=Tiles(16, 16, INDICES))
    ),
    "tiles of 16 x 0 cannot cut torch.float32 of shape (32, 48)": lambda: _update(
        tiles=Tiles(16, 0, INDICES)
    ),
    "must be int32, contiguous and on cpu, not torch.int64": lambda: _update(
        tiles=Tiles(16, 16, INDICES.long())
    ),
}


def _turned(update: Update) -> Update:
    moments = tuple(moment.t() for moment in update.moments)
    parameter, gradient = update.parameter.t(), update.gradient.t()
    return replace(update, parameter=parameter, gradient=gradient, moments=moments)


@pytest.mark.parametrize("message", MISTAKES)
def test_sweep_names_what_does_not_fit(message: str) -> None:
    make: Callable[[], Update] = MISTAKES[message]
    good, bad = _update(), make()
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep([good, bad])
    assert good.step is not None and good.step.item() == 0  # nothing was begun


def _product(**changed: Any) -> dict[str, Any]:
    """Arguments of ``tile_mm``, and with ``starts`` of ``masked_mm``."""
    return {"a": torch.ones(32, 5), "b": torch.ones(5, 48), "out": torch.ones(32, 48), **changed}


def _tiled(tiles: Tiles | None = None, transposed: bool = False, **changed: Any) -> dict[str, Any]:
    tiles = tiles or Tiles(16, 16, INDICES)
    return _product(tiles=tiles, transposed=transposed, **changed)


def _blocked(**changed: Any) -> dict[str, Any]:
    starts = torch.zeros(4, dtype=torch.int32)
    lists = {"starts": starts, "blocks": INDICES, "depth": 16, "width": 16}
    return _product(**{**lists, **changed})


FAR = torch.empty(1, device="meta")
PRODUCT_MISTAKES = {
    "is needed, not (32, 5) @ (4, 48) = (32, 48)": {"b": torch.ones(4, 48)},
    "is needed, not (32, 5) @ (5, 48) = (48, 32)": {"out": torch.ones(48, 32)},
    "is needed, not (5, 32, 1) @ (5, 48) = (32, 48)": {"a": torch.ones(5, 32, 1)},
    "not torch.float32, torch.bfloat16 and torch.float32": {"b": torch.ones(5, 48).bfloat16()},
    "not torch.float32, torch.float32 and torch.float64": {"out": torch.ones(32, 48).double()},
    "must be on one device, not on cpu, meta and cpu": {"b": torch.ones(5, 48, device="meta")},
    "strides of at most 8388608 are supported, not 10000000": {
        "a": FAR.as_strided((32, 5), (1, 10_000_000))
    }
    | {name: FAR.expand(shape) for name, shape in (("b", (5, 48)), ("out", (32, 48)))},
}
TILE_MM_MISTAKES = {
    **{message: _tiled(**changed) for message, changed in PRODUCT_MISTAKES.items()},
    "contiguous rows or columns is needed; its strides are (96, 2)": _tiled(
        out=torch.ones(32, 96)[:, ::2]
    ),
    "contiguous rows or columns is needed; its strides are (0, 1)": _tiled(
        out=torch.ones(48).expand(32, 48)
    ),
    "tiles of 0 x 16 cannot cut torch.float32 of shape (32, 48)": _tiled(Tiles(0, 16, INDICES)),
    "tiles of 0 x 16 cannot cut torch.float32 of shape (48, 32)": _tiled(
        Tiles(0, 16, INDICES), transposed=True
    ),
    "numbers of tiles must be int32": _tiled(Tiles(16, 16, INDICES.long())),
}
MASKED_MM_MISTAKES = {
    **{message: _blocked(**changed) for message, changed in PRODUCT_MISTAKES.items()},
    "a contiguous result is needed; its strides are (1, 32)": _blocked(out=torch.ones(48, 32).t()),
    "tiles of 24 x 16 cannot be multiplied: multiples of 16 are needed": _blocked(depth=24),
    "tiles of 16 x 0 cannot be multiplied": _blocked(width=0),
    "starts must be int32, contiguous and on cpu, not torch.int64": _blocked(
        starts=torch.zeros(4).long()
    ),
    "blocks must be int32, contiguous and on cpu, not torch.int32 of shape (1,) on meta": _blocked(
        blocks=INDICES.to("meta")
    ),
    "48 columns in blocks of 32 need one row of 3 starts and one of blocks, not (4,) and (1,)": (
        _blocked(width=32)
    ),
}


@pytest.mark.parametrize("message", TILE_MM_MISTAKES)
def test_tile_mm_names_what_does_not_fit(message: str) -> None:
    _check_refused(tile_mm, TILE_MM_MISTAKES[message], message)


@pytest.mark.parametrize("message", MASKED_MM_MISTAKES)
def test_masked_mm_names_what_does_not_fit(message: str) -> None:
    _check_refused(masked_mm, MASKED_MM_MISTAKES[message], message)


def _check_refused(product: Callable[..., None], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        product(**arguments)
    out = arguments["out"]
    assert out.is_meta or (out == 1).all()


def test_importing_them_needs_no_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None; "
        "import satcompile.updates.kernels.sweep_triton, "
        "satcompile.updates.kernels.tile_mm_triton"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
