"""What an update must move through memory: a benchmark holds its time against the bandwidth."""

from __future__ import annotations

from collections.abc import Iterable

from satcompile.optimizers.rules import Update


def sweep_bytes(updates: Iterable[Update]) -> int:
    """Bytes that a sweep reads and writes at least: gradients once, weights and moments twice.

    Reads the numbers of tiles, so it waits for a GPU.
    """
    return sum(num_active(update) * _element_bytes(update) for update in updates)


def num_active(update: Update) -> int:
    """Elements that the update changes: those of its tiles, or all."""
    if update.tiles is None:
        return update.parameter.numel()
    height = update.parameter.shape[0]
    width = update.parameter.numel() // max(height, 1)
    block = update.tiles.block
    in_row = -(-width // block)
    total = 0
    for number in update.tiles.numbers.tolist():
        if number >= 0:
            top, left = number // in_row * block, number % in_row * block
            total += min(block, height - top) * min(block, width - left)
    return total


def _element_bytes(update: Update) -> int:
    changed = (update.parameter, *update.moments)
    return update.gradient.element_size() + 2 * sum(tensor.element_size() for tensor in changed)
