"""The report as text: in colours on a terminal, plain elsewhere.

Each section has a file; ``layout`` has what they share. No line is wider than the console, and
nothing is cut: rows that do not fit into a table are written as paragraphs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType

from satcompile.report.data import GraphReport, Report
from satcompile.report.terminal.bar import budget_bar
from satcompile.report.terminal.comparison import ComparisonSections
from satcompile.report.terminal.layout import Look, heading, paragraph
from satcompile.report.terminal.sparsity import sparsity_section
from satcompile.report.terminal.summary import budget_text, summary
from satcompile.report.terminal.updates import updates_section
from satcompile.report.terminal.values import passes_table, values_table

if TYPE_CHECKING:
    from satcompile.report.comparison import Comparison

__all__ = ["ComparisonSections", "Sections", "budget_text", "render", "render_comparison"]


def render(report: Report, width: int = 110, ask: bool = True) -> str:
    """Plain text, at most ``width`` columns; without ``ask`` nothing is computed for it."""
    return _plain(Sections(report, ask), width)


def render_comparison(comparison: Comparison, width: int = 110) -> str:
    """Plain text, at most ``width`` columns."""
    return _plain(ComparisonSections(comparison), width)


def _plain(sections: ConsoleRenderable, width: int) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, color_system=None, force_terminal=False, force_jupyter=False,
        legacy_windows=False,
    )  # fmt: skip
    console.print(sections)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip() + "\n"


@dataclass(frozen=True)
class Sections:
    """A report as rich prints it.

    Attributes:
        ask: whether code may be generated for figures that are not known yet.
    """

    report: Report
    ask: bool = True

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        look = Look.of(console, options)
        for graph in self.report.graphs:
            yield from _graph(graph, look, self.ask)
            yield ""


def _graph(graph: GraphReport, look: Look, ask: bool) -> Iterator[RenderableType]:
    yield heading(f"graph {graph.name}", look)
    yield from budget_bar(graph, look, ask)
    yield summary(graph, ask)
    for title, rows in (("saved for backward", graph.saved), ("recomputed", graph.recomputed)):
        if rows:
            yield values_table(title, rows)
    yield passes_table(graph.passes)
    if graph.sparsity is not None:
        yield from sparsity_section(graph.sparsity)
    if graph.updates is not None:
        yield from updates_section(graph.updates)
    for note in graph.notes:
        yield paragraph(f"note: {note}")
