"""The section on parameters that are trained in tiles."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType

from satcompile.report.sparsity import SavedSparsity, SparsityReport
from satcompile.report.terminal.layout import MOST_ROWS, Rows, paragraph

_COLUMNS = ("parameter", "shape", "tile", "trained", "forward", "FLOPs skipped")


def sparsity_section(sparsity: SparsityReport | SavedSparsity) -> Iterator[RenderableType]:
    """A sentence on the present step, the table of tiles, and dense parameters by reason."""
    step = "before the first step"
    if sparsity.step is not None:
        step = f"after {sparsity.step} steps; step {sparsity.next_choice} (from 0) scores all tiles"
    yield paragraph(
        f"sparse training, {step}: {sparsity.density:.1%} of what is in tiles is trained, "
        f"{sparsity.skipped_share:.1%} of the step's FLOPs are skipped"
    )
    yield _tiles(sparsity)
    reasons: dict[str, list[str]] = {}
    for dense in sparsity.dense:
        reasons.setdefault(dense.reason, []).append(dense.name)
    for reason, names in reasons.items():
        others = f" and {len(names) - 2} others" if len(names) > 2 else ""
        yield paragraph(f"dense: {', '.join(names[:2])}{others}: {reason}")


def _tiles(sparsity: SparsityReport | SavedSparsity) -> Rows:
    rows = sparsity.parameters
    cells = [
        (
            row.name, "x".join(map(str, row.shape)), "x".join(map(str, row.tile)),
            f"{row.trained_share:.1%}", row.forward_dense or f"{row.forward_share:.1%}",
            f"{row.skipped_flops:.3g}",
        )
        for row in rows[:MOST_ROWS]
    ]  # fmt: skip
    if rows[MOST_ROWS:]:
        rest = sum(row.skipped_flops for row in rows[MOST_ROWS:])
        cells.append((f"{len(rows) - MOST_ROWS} others", "", "", "", "", f"{rest:.3g}"))
    return Rows("in tiles", _COLUMNS, cells)
