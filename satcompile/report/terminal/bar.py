"""The budget as a bar: the parts of the predicted peak, and the bytes that are left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import RenderableType
from rich.text import Text

from satcompile.report.data import GraphReport
from satcompile.report.terminal.layout import Look
from satcompile.sizes import format_bytes

_WIDEST = 100  # columns of a bar; a longer one says no more
_FREE = ("free", ".", "dim")
_DEFAULT = ("torch.compile's own peak", "|", "bold red")


@dataclass(frozen=True)
class Segment:
    """A part of the bar: ``letter`` stands for it where there are no colours."""

    name: str
    num_bytes: int
    letter: str
    color: str


def segments(graph: GraphReport) -> list[Segment]:
    """Parts of the predicted peak, from left to right. Saved values are counted as they are between
    forward and backward; the remaining bytes of the peak are the rest."""
    resident = graph.resident
    rest_bytes = (
        graph.predicted_peak_bytes - graph.resident_bytes - graph.beside_bytes - graph.saved_bytes
    )
    found = [
        Segment("parameters", resident.get("parameters", 0), "P", "blue"),
        Segment("gradients", resident.get("gradients", 0), "G", "magenta"),
        Segment("optimizer state", resident.get("optimizer_state", 0), "O", "bright_blue"),
        Segment("workspaces", resident.get("workspaces", 0), "W", "bright_black"),
        Segment("inputs", resident.get("inputs", 0), "I", "cyan"),
        Segment("other graphs", graph.beside_bytes, "X", "white"),
        Segment("saved for backward", graph.saved_bytes, "S", "green"),
        Segment("rest of the peak", max(0, rest_bytes), "+", "yellow"),
    ]
    return [each for each in found if each.num_bytes]


def budget_bar(graph: GraphReport, look: Look, ask: bool) -> Iterator[RenderableType]:
    """The bar, and below it the legend of its parts."""
    default = graph.default_peak(ask)
    default_bytes = None if default is None else default[0]
    total_bytes = max(graph.predicted_peak_bytes, graph.budget_bytes or 0, default_bytes or 0)
    if not total_bytes:
        return
    yield _bar(graph, default_bytes, total_bytes, look)
    yield _legend(graph, default_bytes, look)


def _bar(
    graph: GraphReport, default_bytes: int | None, total_bytes: int, look: Look
) -> RenderableType:
    columns = max(1, min(look.width - 3, _WIDEST))  # without the margin and the two ends
    end_bytes = graph.budget_bytes or graph.predicted_peak_bytes
    parts = segments(graph)
    cells = [_cell(parts, (c + 0.5) * total_bytes / columns, end_bytes) for c in range(columns)]
    cells.append((" ", ""))  # for a mark at the very end

    def column(num_bytes: int) -> int:
        return min(columns, round(num_bytes * columns / total_bytes))

    cells[column(end_bytes)] = ("]", "bold")
    if default_bytes is not None and column(default_bytes) != column(end_bytes):
        cells[column(default_bytes)] = _DEFAULT[1:]
    bar = Text.assemble(" ", ("[", "bold"), no_wrap=True)
    for (letter, color), run in groupby(cells):
        bar.append(_character(letter, look) * len(list(run)), style=color or None)
    bar.rstrip()
    return bar


def _cell(parts: Sequence[Segment], position_bytes: float, end_bytes: int) -> tuple[str, str]:
    """Letter and colour of the part at a position."""
    below = 0
    for each in parts:
        below += each.num_bytes
        if position_bytes < below:
            return each.letter, each.color
    return _FREE[1:] if position_bytes < end_bytes else (" ", "")


def _character(letter: str, look: Look) -> str:
    if not look.is_rich or letter in (" ", "]"):
        return letter
    return {_FREE[1]: "░", _DEFAULT[1]: "│"}.get(letter, "█")


def _legend(graph: GraphReport, default_bytes: int | None, look: Look) -> RenderableType:
    parts = [(each.name, each.num_bytes, each.letter, each.color) for each in segments(graph)]
    if graph.budget_bytes is not None and graph.budget_bytes > graph.predicted_peak_bytes:
        free_bytes = graph.budget_bytes - graph.predicted_peak_bytes
        parts.append((_FREE[0], free_bytes, *_FREE[1:]))
    if default_bytes is not None:
        parts.append((_DEFAULT[0], default_bytes, *_DEFAULT[1:]))
    legend = Text(overflow="fold")
    column = look.width  # of the current line: a part that has no room begins another line
    for name, num_bytes, letter, color in parts:
        part = f" {name} {format_bytes(num_bytes)}"
        if column + len(part) + 2 > look.width:
            legend.append("\n" if legend else "")
            column = 0
        legend.append(" " if column == 0 else "  ")
        legend.append(_character(letter, look), style=color)
        legend.append(part)
        column += len(part) + 3
    return legend
