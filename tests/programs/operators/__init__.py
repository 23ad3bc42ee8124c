"""What instructions there are, by family; the simplest first, which genes shrink to."""

from __future__ import annotations

from tests.programs.builder import Operator
from tests.programs.operators import buffers, layers, pointwise, regions, results, views, writes

# A family stands here as often as it is to be drawn.
FAMILIES: list[list[tuple[str, Operator]]] = [
    pointwise.OPERATORS,
    layers.OPERATORS,
    results.OPERATORS,
    views.OPERATORS,
    regions.OPERATORS,
    buffers.OPERATORS,
    writes.OPERATORS,
    pointwise.OPERATORS,
    layers.OPERATORS,
    layers.OPERATORS,
    results.OPERATORS,
    regions.OPERATORS,
    buffers.OPERATORS,
]
