"""Bytes that updates move, counted by hand."""

from __future__ import annotations

import torch

from satcompile.kernels.traffic import num_active, sweep_bytes
from satcompile.optimizers.rules import Numbers, Rule, Tiles, Update
from tests.kernels.reference import active_elements, tiles_of


def _update(shape: tuple[int, ...], tiles: Tiles | None = None) -> Update:
    weight, gradient = (torch.zeros(shape, dtype=torch.bfloat16) for _ in range(2))
    moments = (torch.zeros(shape), torch.zeros(shape))
    return Update(Rule("adam", 2), Numbers(0.1), weight, gradient, moments, tiles=tiles)


def test_weights_and_moments_are_read_and_written_and_gradients_read() -> None:
    whole, tiled = _update((100,)), _update((40, 20), tiles_of(16, 0, -1))
    assert sweep_bytes([whole]) == 100 * (2 + 2 * (2 + 4 + 4))
    assert sweep_bytes([whole, tiled]) == (100 + 16 * 16) * 22


def test_tiles_at_the_edges_are_smaller() -> None:
    for shape in ((40, 20), (33, 3, 3, 3), (16, 16)):
        tiles = tiles_of(16, -1, 0, *range(1, -(-shape[0] // 16)))
        expected = int(active_elements(shape, tiles).sum())
        assert num_active(_update(shape, tiles)) == expected
