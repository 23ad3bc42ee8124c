"""Facts that passes find out about a graph, for later passes and for the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from satcompile.updates.sparsity.grid import Grid


@dataclass(frozen=True)
class TiledParameter:
    """A parameter whose gradient is computed in tiles.

    Attributes:
        slot: its position among the graph's inputs.
        grid: how it is cut.
        gradient_flops: of its whole gradient.
        forward_flops: of the products in forward and backward that read it, if these are sparse,
            too; 0 if they are dense.
        forward_dense: why they are dense, if a sparse forward was asked for.
    """

    slot: int
    grid: Grid
    gradient_flops: float
    forward_flops: float = 0.0
    forward_dense: str = ""

    @property
    def has_sparse_forward(self) -> bool:
        return self.forward_flops > 0


@dataclass(frozen=True)
class DenseParameter:
    """A parameter that is trained densely, and why."""

    slot: int
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class SparseParameters:
    """A graph's tiled parameters by slot, its dense ones, and the FLOPs of all its products."""

    tiled: Mapping[int, TiledParameter]
    dense: Sequence[DenseParameter]
    total_flops: float

    def with_forward(self, changed: Iterable[TiledParameter]) -> SparseParameters:
        return replace(self, tiled={**self.tiled, **{each.slot: each for each in changed}})


@dataclass(frozen=True)
class Facts:
    """Facts that the passes of a stage have found out so far.

    Attributes:
        sparse: which parameters are trained in tiles; None while no pass has cut any.
    """

    sparse: SparseParameters | None = None
