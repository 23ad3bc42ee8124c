"""A linear layer's update against torch; run by ``test_interpreted.py`` in the interpreter."""

from __future__ import annotations

import pytest
import torch

from satcompile.updates.kernels.linear_update import Blocks, linear_update
from satcompile.updates.optimizers.rules import Numbers, Rule, Tiles, Update
from tests.updates.kernels.interpreted.products import make_bfloat16_exact
from tests.updates.kernels.reference import (
    ADAMW,
    AMSGRAD,
    CASES,
    MOMENTUM,
    Case,
    Pair,
    active_elements,
    eighths,
    tiles_of,
)

TINY = Blocks(rows=16, columns=32, depth=16, num_warps=1, num_stages=1, slices=2)
NOTHING = torch.empty(0)


@pytest.fixture(autouse=True)
def exact_products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    make_bfloat16_exact(monkeypatch)


def _step(
    pair: Pair,
    rows: torch.Tensor,
    columns: torch.Tensor,
    tiles: Tiles | None = None,
    scale: torch.Tensor | None = None,
    blocks: Blocks = TINY,
    tf32: bool = False,
) -> None:
    (update,) = pair.updates([NOTHING], [tiles])
    linear_update(rows, columns, update, scale, tf32=tf32, blocks=blocks)
    gradient = (rows.double().t() @ columns.double()).float()
    pair.step_theirs([gradient if scale is None else gradient * scale])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_torch(case: Case) -> None:
    pair = Pair(case, [torch.randn(37, 71)])
    for _ in range(2):
        _step(pair, eighths(29, 37), eighths(29, 71))
        pair.check()


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inputs", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(inputs: torch.dtype, weight: torch.dtype) -> None:
    pair = Pair(ADAMW, [torch.randn(20, 40).to(weight)], moment_dtype=weight)
    for _ in range(2):
        _step(pair, eighths(30, 20).to(inputs), eighths(30, 40).to(inputs))
        pair.check()


@pytest.mark.parametrize(
    ("height", "width", "blocks"),
    [
        (32, 32, TINY),
        (48, 48, TINY),
        (16, 16, Blocks(128, 128, 32, 8, 3, 4)),
        (48, 16, TINY),
        (16, 64, TINY),
        (16, 96, TINY),
    ],
    ids=["cut in two", "power of two within", "blocks cut down", "high", "wide", "whole rows"],
)
def test_frozen_tiles_keep_their_bits(height: int, width: int, blocks: Blocks) -> None:
    tiles = tiles_of(height, width, 0, -1, *((2, 3) if width > 83 else (4, 5)), -1)
    pair = Pair(AMSGRAD, [torch.randn(70, 83)])
    active = active_elements((70, 83), tiles)
    for moment in pair.moments[0]:
        moment[~active] = float("nan")
    before = pair.weights[0].clone()
    for _ in range(2):
        _step(pair, eighths(19, 70), eighths(19, 83), tiles, blocks=blocks)
        pair.check([active])
    assert torch.equal(pair.weights[0][~active], before[~active])
    assert all(moment[~active].isnan().all() for moment in pair.moments[0])


@pytest.mark.parametrize("tiles", [(32, 32, 0, 8), (48, 16, 3, 11), (16, 64, 5, 9)], ids=str)
@pytest.mark.parametrize(
    ("weight", "inputs", "tf32"),
    [
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.float32, torch.bfloat16, False),
        (torch.float16, torch.float16, False),
    ],
    ids=str,
)
def test_tiles_at_ragged_edges_in_every_dtype(
    tiles: tuple[int, ...], weight: torch.dtype, inputs: torch.dtype, tf32: bool
) -> None:
    """Among the two tiles that are active, one lies across the weight's right or lower edge."""
    listed = tiles_of(*tiles, -1)
    pair = Pair(ADAMW, [torch.randn(70, 83).to(weight)])
    active = active_elements((70, 83), listed)
    before = pair.weights[0].clone()
    rows, columns = eighths(19, 70).to(inputs), eighths(19, 83).to(inputs)
    _step(pair, rows, columns, listed, tf32=tf32)
    pair.check([active])
    assert torch.equal(pair.weights[0][~active], before[~active])
    assert not any(moment[~active].any() for moment in pair.moments[0])


def test_no_tile_is_no_work() -> None:
    pair = Pair(ADAMW, [torch.randn(20, 40)])
    before = pair.weights[0].clone()
    for tiles in (tiles_of(16, 16, -1, -1), tiles_of(16, 16)):
        _step(pair, eighths(9, 20), eighths(9, 40), tiles)
    assert torch.equal(pair.weights[0], before)


def test_strides_of_the_inputs_do_not_matter() -> None:
    pair = Pair(MOMENTUM, [torch.randn(20, 40)])
    _step(pair, eighths(20, 30).t(), eighths(30, 80)[:, ::2])
    pair.check()
    # What the backward of a sum gives: one number, expanded.
    _step(pair, torch.tensor(2.0).expand(30, 20), eighths(40, 30).t())
    pair.check()


def test_scale_multiplies_the_gradient() -> None:
    pair = Pair(ADAMW, [torch.randn(20, 40)])
    _step(pair, eighths(9, 20), eighths(9, 40), scale=torch.tensor(0.25))
    pair.check()


def test_no_tokens_are_a_gradient_of_zero() -> None:
    pair = Pair(ADAMW, [torch.randn(20, 40)])
    _step(pair, eighths(0, 20), eighths(0, 40))
    pair.check()


def test_parts_are_numbered_through_in_any_shape() -> None:
    """More rows of parts than are computed together, and not a multiple of them."""
    pair = Pair(ADAMW, [torch.randn(9 * 16 + 1, 70)])
    _step(pair, eighths(5, 9 * 16 + 1), eighths(5, 70))
    pair.check()


def test_autograd_notices_a_weight_that_changed() -> None:
    weight = torch.nn.Parameter(torch.ones(16, 16))
    loss = (weight**2).sum()
    update = Update(Rule("sgd", 0), Numbers(0.5), weight, NOTHING)
    linear_update(torch.ones(2, 16), torch.ones(2, 16), update, blocks=TINY)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
