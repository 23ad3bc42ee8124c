"""Values of identical layers as one row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from satcompile.report.entries import ValueRow


@dataclass(frozen=True)
class Fold:
    """Values that differ only in the number of their layer.

    Attributes:
        row: the row for all of them; its bytes are those of one value.
        members: the values themselves, at least one.
    """

    row: ValueRow
    members: tuple[ValueRow, ...]

    @property
    def total_bytes(self) -> int:
        return self.row.num_bytes * len(self.members)


def fold(rows: Sequence[ValueRow]) -> list[Fold]:
    """Fold values of identical layers, largest sum first.

    Identical: same shape, dtype and source line, in modules that differ only in numbers
    (``h.0.mlp`` and ``h.7.mlp`` become ``h.*.mlp``).
    """
    groups: dict[tuple, list[ValueRow]] = {}
    for row in rows:
        groups.setdefault(layer_key(row), []).append(row)
    folds = [Fold(_standing_for(members), tuple(members)) for members in groups.values()]
    return sorted(folds, key=lambda each: -each.total_bytes)


def layer_key(row: ValueRow) -> tuple:
    """A key that is equal for values of identical layers."""
    return any_layer(row.module), row.source, row.dtype, row.shape, base_name(row.name)


def any_layer(module: str) -> str:
    """``h.*.mlp`` for ``h.7.mlp``. Digits inside a word stay: they tell modules apart."""
    return re.sub(r"\b\d+\b", "*", module)


def base_name(name: str) -> str:
    """The name without the number that tells nodes of one operator apart."""
    return re.sub(r"_(\d+|\*)$", "", name)


def _standing_for(members: Sequence[ValueRow]) -> ValueRow:
    first = members[0]
    if len(members) == 1:
        return first
    return replace(first, name=f"{base_name(first.name)}_*", module=any_layer(first.module))
