"""The sweep against torch's optimizers; run by ``test_interpreted.py`` in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from satcompile.updates.kernels import device_code
from satcompile.updates.kernels.sweep_triton import CHUNK, sweep
from satcompile.updates.optimizers.rules import Numbers, Rule, Tiles, Update
from tests.updates.kernels.reference import (
    ADAMW,
    AMSGRAD,
    CASES,
    MOMENTUM,
    Case,
    Pair,
    active_elements,
    tiles_of,
)

# Nothing, one number, less than a line, lines that end within a vector, several chunks.
SHAPES = [(0,), (), (3,), (37, 41), (CHUNK + 1160,)]


def _weights(dtype: torch.dtype, shapes: list[tuple[int, ...]] = SHAPES) -> list[torch.Tensor]:
    return [torch.randn(shape).to(dtype) for shape in shapes]


def _gradients(weights: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn_like(weight, dtype=dtype) for weight in weights]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_torch(case: Case, dtype: torch.dtype) -> None:
    pair = Pair(case, _weights(dtype))
    for _ in range(3):
        gradients = _gradients(pair.weights, dtype)
        sweep(pair.updates(gradients))
        pair.step_theirs(gradients)
        pair.check()


@pytest.mark.parametrize(
    ("weight", "gradient", "moment"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("case", [ADAMW, MOMENTUM], ids=str)
def test_half_precision_is_rounded_once(
    case: Case, weight: torch.dtype, gradient: torch.dtype, moment: torch.dtype
) -> None:
    pair = Pair(case, _weights(weight, [(37, 41), (1100,)]), moment_dtype=moment)
    for _ in range(2):
        gradients = _gradients(pair.weights, gradient)
        sweep(pair.updates(gradients))
        pair.step_theirs(gradients)
        pair.check()


def test_frozen_tiles_keep_their_bits() -> None:
    tiles = [
        tiles_of(32, 32, 0, 5, -1, 11, -1),
        tiles_of(32, 32, 4, 1),
        tiles_of(24, 24, -1, 2, 3),
        tiles_of(16, 16, -1),
    ]
    _check_frozen([(100, 70), (64, 96), (40, 3, 3, 3), (33, 16)], tiles)


def test_tiles_of_any_height_and_width() -> None:
    shapes = [(40, 3, 3, 3), (33, 16), (20, 520), (64, 96), (50, 24), (9, 7), (6, 300)]
    tiles = [
        tiles_of(8, 27, 4, -1, 1),  # whole rows, not in vectors
        tiles_of(10, 99, 3, -1, 0),  # wider than the weight; the last one is not whole
        tiles_of(4, 520, 2, -1),  # whole rows in vectors, of more than are updated at once
        tiles_of(16, 40, 2, 9, -1),
        tiles_of(7, 8, 0, 5, 23, -1),
        tiles_of(2, 1, 3, 34, -1),
        tiles_of(1, 200, 1, 10, -1),
    ]
    _check_frozen(shapes, tiles)


def _check_frozen(shapes: list[tuple[int, ...]], tiles: list[Tiles]) -> None:
    """Tiles of the lists equal torch's, the others keep their bits."""
    pair = Pair(AMSGRAD, _weights(torch.float32, shapes))
    frozen = [~active_elements(*pairs) for pairs in zip(shapes, tiles, strict=True)]
    for moments in pair.moments:
        for moment in moments:
            moment.fill_(float("nan"))
    before = [weight.clone() for weight in pair.weights]
    for number in range(2):
        gradients = _gradients(pair.weights, torch.float32)
        if number == 0:
            _clear_active(pair, frozen)
        sweep(pair.updates(gradients, tiles))
        pair.step_theirs(gradients)
        pair.check([~mask for mask in frozen])
    for mask, weight, was, moments in zip(frozen, pair.weights, before, pair.moments, strict=True):
        assert torch.equal(weight[mask], was[mask])
        assert all(moment[mask].isnan().all() for moment in moments)


def _clear_active(pair: Pair, frozen: list[torch.Tensor]) -> None:
    for mask, moments in zip(frozen, pair.moments, strict=True):
        for moment in moments:
            moment[~mask] = 0.0


def test_wide_tiles_and_whole_weights_share_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(300, 260), (300,), (20, 520)]
    tiles = [tiles_of(256, 256, 1, 2), None, tiles_of(128, 128, 4)]
    launches = _counted(monkeypatch)
    pair = Pair(ADAMW, _weights(torch.float32, shapes))
    gradients = _gradients(pair.weights, torch.float32)
    sweep(pair.updates(gradients, tiles))
    pair.step_theirs(gradients)
    whole = torch.ones(300, dtype=torch.bool)
    pair.check(
        [
            whole if tile is None else active_elements(shape, tile)
            for shape, tile in zip(shapes, tiles, strict=True)
        ]
    )
    assert len(launches) == 1


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The grids with which the sweep is launched from now on."""
    kernel, grids = device_code.sweep_kernel, []

    class Counter:
        def __getitem__(self, grid: Any) -> Any:
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(device_code, "sweep_kernel", Counter())
    return grids


def test_one_launch_for_each_rule_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = _counted(monkeypatch)
    single, double = (Pair(ADAMW, _weights(d)) for d in (torch.float32, torch.float64))
    momentum = Pair(MOMENTUM, _weights(torch.float32))
    pairs = (single, momentum, double)
    gradients = [_gradients(pair.weights, pair.weights[0].dtype) for pair in pairs]
    updates = [pair.updates(g) for pair, g in zip(pairs, gradients, strict=True)]
    # Interleaved, as parameter groups may be.
    sweep([update for same in zip(*updates, strict=True) for update in same])
    assert len(launches) == 3
    for pair, of_pair in zip(pairs, gradients, strict=True):
        pair.step_theirs(of_pair)
        pair.check()


def test_order_of_memory_and_alignment_do_not_matter() -> None:
    images = torch.randn(4, 6, 5, 7).to(memory_format=torch.channels_last)
    turned = torch.randn(40, 50).t()
    shifted = torch.randn(1301)[1:]
    pair = Pair(ADAMW, [images, turned, shifted])
    for _ in range(2):
        gradients = _gradients(pair.weights, torch.float32)
        assert gradients[0].stride() == images.stride()
        sweep(pair.updates(gradients))
        pair.step_theirs(gradients)
        pair.check()
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scale_multiplies_every_gradient(dtype: torch.dtype) -> None:
    pair = Pair(AMSGRAD, _weights(torch.float32))
    gradients = _gradients(pair.weights, torch.float32)
    sweep(pair.updates(gradients), scale=torch.tensor(0.25, dtype=dtype))
    pair.step_theirs([gradient * 0.25 for gradient in gradients])
    pair.check()


def test_a_gradient_that_is_not_finite_spreads_as_in_torch() -> None:
    for case in (ADAMW, AMSGRAD, MOMENTUM):
        pair = Pair(case, _weights(torch.float32, [(1200,), (6,)]))
        for bad in (float("nan"), float("inf"), 1.0):
            gradients = _gradients(pair.weights, torch.float32)
            gradients[0][3], gradients[1][2] = bad, -bad
            sweep(pair.updates(gradients))
            pair.step_theirs(gradients)
            pair.check()
        assert not pair.weights[0][3].isfinite()
        assert pair.weights[0].isfinite().sum() == 1199


def test_numbers_are_read_at_each_step() -> None:
    weight = torch.ones(5)
    for lr in (0.5, 0.25):
        sweep([Update(Rule("sgd", 0), Numbers(lr), weight, torch.ones(5))])
    assert torch.equal(weight, torch.full((5,), 0.25))


def test_autograd_notices_a_weight_that_changed() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    loss = (weight**2).sum()
    sweep([Update(Rule("sgd", 0), Numbers(0.5), weight, torch.ones(3))])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
