"""Tables of values and of passes."""

from __future__ import annotations

from collections.abc import Sequence

from satcompile.report.entries import PassRow, ValueRow
from satcompile.report.folding import fold
from satcompile.report.terminal.layout import MOST_ROWS, Rows
from satcompile.sizes import format_bytes, format_time

_COLUMNS = ("value", "bytes", "count", "dtype", "shape", "module", "source")


def values_table(title: str, rows: Sequence[ValueRow]) -> Rows:
    """Table of the largest values, identical layers on one row, and the sum of the rest."""
    folds = fold(rows)
    cells = [
        (
            each.row.name, format_bytes(each.total_bytes), f"{len(each.members)}", each.row.dtype,
            "x".join(map(str, each.row.shape)), each.row.module, each.row.source,
        )
        for each in folds[:MOST_ROWS]
    ]  # fmt: skip
    if rest := folds[MOST_ROWS:]:
        total = format_bytes(sum(each.total_bytes for each in rest))
        cells.append(("others", total, f"{sum(len(f.members) for f in rest)}", "", "", "", ""))
    return Rows(title, _COLUMNS, cells, leading=3)


def passes_table(passes: Sequence[PassRow]) -> Rows:
    """Table of passes, in the order in which they ran."""
    cells = [(row.name, format_time(row.time_us), row.changed) for row in passes]
    return Rows("passes", ("pass", "time", "effect"), cells, has_prose=True)
