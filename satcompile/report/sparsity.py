"""Sparse training in a report, read off the masks at each access."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from satcompile.passes.facts import SparseParameters, TiledParameter
from satcompile.updates.sparsity.masks import Mask
from satcompile.updates.sparsity.population import population_of


@dataclass(frozen=True)
class TiledRow:
    """A parameter that is trained in tiles, in the present step.

    Attributes:
        name: its path in the module.
        shape: shape of the parameter; ``tile``: rows and columns of a tile.
        tiles: number of tiles.
        trained_share: share of its elements in tiles that are trained.
        forward_share: share of its elements in tiles that the forward uses.
        gradient_flops: FLOPs of its whole gradient.
        skipped_flops: FLOPs that this step skips in gradient, forward and input's gradient.
        forward_dense: why its forward is dense although a sparse one was asked for.
    """

    name: str
    shape: tuple[int, ...]
    tile: tuple[int, int]
    tiles: int
    trained_share: float
    forward_share: float
    gradient_flops: float
    skipped_flops: float
    forward_dense: str


@dataclass(frozen=True)
class DenseRow:
    """A parameter that is trained densely, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


class SparsityReport:
    """Sparse training of one graph, in the present step of its latest caller.

    Attributes:
        total_flops: FLOPs of all matrix products and convolutions of a dense step.
    """

    def __init__(
        self,
        found: SparseParameters,
        names: Mapping[int, str],
        latest: Callable[[], Mapping[int, Mask]],
    ) -> None:
        self._found, self._names, self._latest = found, names, latest
        self.total_flops = found.total_flops

    @property
    def parameters(self) -> Sequence[TiledRow]:
        """Parameters in tiles, in the graph's order."""
        masks = self._latest()
        return [self._row(each, masks.get(slot)) for slot, each in self._found.tiled.items()]

    @property
    def dense(self) -> Sequence[DenseRow]:
        """Parameters that are trained densely."""
        return [
            DenseRow(self._name(each.slot), each.shape, each.reason) for each in self._found.dense
        ]

    @property
    def density(self) -> float:
        """Trained share of the elements of all parameters in tiles."""
        rows, grids = self.parameters, [each.grid for each in self._found.tiled.values()]
        elements = sum(grid.num_elements for grid in grids)
        active = sum(
            row.trained_share * grid.num_elements for row, grid in zip(rows, grids, strict=True)
        )
        return active / elements if elements else 1.0

    @property
    def skipped_share(self) -> float:
        """Share of ``total_flops`` that the present step skips; scoring steps compute gradients
        whole."""
        skipped = sum(row.skipped_flops for row in self.parameters)
        return skipped / self.total_flops if self.total_flops else 0.0

    @property
    def step(self) -> int | None:
        """Steps taken so far; None before the first call."""
        population = self._population()
        return None if population is None else population.step

    @property
    def next_choice(self) -> int | None:
        """The next step, counted from 0, that scores all tiles; they are chosen anew after it."""
        population = self._population()
        return None if population is None else population.next_choice

    @property
    def is_scoring(self) -> bool:
        """Whether the present step scores all tiles."""
        return any(mask.is_scoring for mask in self._latest().values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "next_choice": self.next_choice,
            "density": self.density,
            "total_flops": self.total_flops,
            "skipped_share": self.skipped_share,
            "parameters": [asdict(row) for row in self.parameters],
            "dense": [asdict(row) for row in self.dense],
        }

    def _population(self) -> Any:
        mask = next(iter(self._latest().values()), None)
        return None if mask is None else population_of(mask)

    def _name(self, slot: int) -> str:
        return self._names.get(slot, f"input {slot}")

    def _row(self, parameter: TiledParameter, mask: Mask | None) -> TiledRow:
        grid = parameter.grid
        trained = forward = 1.0
        skipped = 0.0
        if mask is not None:
            trained = mask.trained.share
            if not mask.is_scoring:
                skipped += (1 - trained) * parameter.gradient_flops
            if mask.forward is not None and parameter.has_sparse_forward:
                forward = mask.forward.share
                skipped += (1 - forward) * parameter.forward_flops
        return TiledRow(
            self._name(parameter.slot),
            grid.shape,
            (grid.height, grid.width),
            grid.down * grid.across,
            trained,
            forward,
            parameter.gradient_flops,
            skipped,
            parameter.forward_dense,
        )


@dataclass(frozen=True)
class SavedSparsity:
    """The content of a ``SparsityReport`` when it was saved."""

    step: int | None
    next_choice: int | None
    density: float
    total_flops: float
    skipped_share: float
    parameters: Sequence[TiledRow]
    dense: Sequence[DenseRow]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SavedSparsity:
        """Read back the result of ``to_dict``."""
        tiled = [
            {**r, "shape": tuple(r["shape"]), "tile": tuple(r["tile"])} for r in data["parameters"]
        ]
        dense = [{**r, "shape": tuple(r["shape"])} for r in data["dense"]]
        rows = {
            "parameters": [TiledRow(**row) for row in tiled],
            "dense": [DenseRow(**row) for row in dense],
        }
        return cls(**{**data, **rows})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
