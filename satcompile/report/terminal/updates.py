"""The section that says who applies the gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from satcompile.report.folding import any_layer
from satcompile.report.terminal.layout import MOST_ROWS, Rows, paragraph
from satcompile.report.updates import SavedUpdates, UpdateReport, UpdateRow
from satcompile.sizes import format_bytes

_COLUMNS = ("gradient of", "bytes", "count", "optimizer", "applied")


def updates_section(updates: UpdateReport | SavedUpdates) -> Iterator[RenderableType]:
    """A sentence on gradients that need not coexist, and a table that folds identical layers."""
    rows = updates.parameters
    consumed = [row for row in rows if row.consumed]
    when = "in the latest backward" if updates.observed else "as planned, before the first backward"
    yield paragraph(
        f"fused updates, {when}: {len(consumed)} of {len(rows)} gradients "
        f"({format_bytes(updates.consumed_bytes)}) are applied as they appear and need not "
        f"coexist, {format_bytes(updates.returned_bytes)} are returned"
    )
    if updates.unplanned_bytes:
        yield paragraph(
            f"note: {format_bytes(updates.unplanned_bytes)} of the returned gradients were "
            "to be consumed; the predicted peak does not count them"
        )
    yield _table(rows)


def _table(rows: Sequence[UpdateRow]) -> Rows:
    groups: dict[tuple[str, str, str, tuple[int, ...]], list[UpdateRow]] = {}
    for row in rows:
        applied = "in the backward" if row.consumed else f"by step(): {row.reason}"
        key = (applied, row.optimizer, any_layer(row.name), row.shape)
        groups.setdefault(key, []).append(row)
    # Returned gradients come first: the user can do something about them.
    folded = sorted(groups.items(), key=lambda item: (item[1][0].consumed, -_total(item[1])))
    cells = [
        (
            name if len(members) > 1 else members[0].name, format_bytes(_total(members)),
            f"{len(members)}", optimizer, applied,
        )
        for (applied, optimizer, name, _), members in folded[:MOST_ROWS]
    ]  # fmt: skip
    rest = [row for _, members in folded[MOST_ROWS:] for row in members]
    if rest:
        consumed = sum(row.consumed for row in rest)
        applied = f"{consumed} in the backward, {len(rest) - consumed} by step()"
        cells.append(("others", format_bytes(_total(rest)), f"{len(rest)}", "", applied))
    return Rows("updates", _COLUMNS, cells, has_prose=True, leading=3)


def _total(rows: Sequence[UpdateRow]) -> int:
    return sum(row.num_bytes for row in rows)
