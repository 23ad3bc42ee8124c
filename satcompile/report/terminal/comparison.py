"""Changes between two reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType

from satcompile.report.terminal.layout import MOST_ROWS, Look, Rows, heading, paragraph
from satcompile.sizes import format_change

if TYPE_CHECKING:
    from satcompile.report.comparison import Comparison, GraphComparison


@dataclass(frozen=True)
class ComparisonSections:
    """A comparison as rich prints it."""

    comparison: Comparison

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        comparison, look = self.comparison, Look.of(console, options)
        for graph in comparison.graphs:
            yield heading(f"graph {graph.name}", look)
            yield Rows("", ("", *comparison.names, "change"), graph.rows())
            yield _values(graph, comparison.names)
            if graph.passes:
                yield _passes(graph, comparison.names)
            yield ""
        pairs = (comparison.only_before, comparison.only_after)
        for name, graphs in zip(comparison.names, pairs, strict=True):
            if graphs:
                yield paragraph(f"only in {name}: {', '.join(graphs)}")


def _values(graph: GraphComparison, names: tuple[str, str]) -> RenderableType:
    if not graph.values:
        return paragraph("every value is treated as before")
    cells = [
        (
            each.name, each.module, each.source, str(each.before), str(each.after),
            format_change(each.more_saved_bytes),
        )
        for each in graph.values[:MOST_ROWS]
    ]  # fmt: skip
    if rest := graph.values[MOST_ROWS:]:
        more = format_change(sum(each.more_saved_bytes for each in rest))
        cells.append((f"{len(rest)} others", "", "", "", "", more))
    columns = ("value", "module", "source", *names, "saved bytes")
    return Rows("values treated in another way", columns, cells)


def _passes(graph: GraphComparison, names: tuple[str, str]) -> Rows:
    def said(text: str | None) -> str:
        return "did not run" if text is None else text

    cells = [(each.name, said(each.before), said(each.after)) for each in graph.passes]
    return Rows("passes", ("pass", *names), cells, has_prose=True)
