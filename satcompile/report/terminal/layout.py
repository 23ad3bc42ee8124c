"""Shared by the sections: characters and colours that the console can show, text and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

MOST_ROWS = 12
_TITLE = "bold"
_NARROWEST_PROSE = 24  # columns; below, a paragraph reads better than a table's last column
_MARGIN = 1  # columns on both sides of a table's cells
_INDENT = 4


@dataclass(frozen=True)
class Look:
    """What the console can show.

    Attributes:
        width: in columns.
        is_rich: whether the console can show colours and block characters.
    """

    width: int
    is_rich: bool

    @classmethod
    def of(cls, console: Console, options: ConsoleOptions) -> Look:
        has_colors = console.color_system is not None and not console.no_color
        is_rich = options.is_terminal and has_colors and _can_encode("█░│─", options.encoding)
        return cls(options.max_width, is_rich)


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):  # an unknown encoding cannot write it either
        return False
    return True


def paragraph(text: str, style: str = "") -> Text:
    """Text that wraps; a word that is wider than a line continues on the next one."""
    return Text(text, style=style, overflow="fold")


def heading(text: str, look: Look) -> Text:
    """A graph's first line, with a rule to the right edge where there is room."""
    room = look.width - cell_len(text) - 1
    rule = ("─" if look.is_rich else "-") * room
    return paragraph(f"{text} {rule}" if room > 0 else text, _TITLE)


@dataclass(frozen=True)
class Rows:
    """A table where it fits; else a narrower one, whose last column joins all but the leading ones;
    else a paragraph for each row.

    Attributes:
        title: title above the table; "" for none.
        names: names of the columns; cells of the first column head the paragraphs.
        rows: rows of cells; "" for an empty cell.
        has_prose: whether the last column is text that wraps.
        has_header: whether the table shows the columns' names.
        leading: columns that stay in the narrower table; 0 if there is none.
    """

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    has_prose: bool = False
    has_header: bool = True
    leading: int = 0

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        if self.title:
            yield paragraph(self.title, _TITLE)
        for candidate in (self, self._joined()):
            if candidate._narrowest() <= options.max_width:
                yield candidate._table()
                return
        for row in self.rows:
            yield from self._paragraphs(row)

    def _joined(self) -> Rows:
        """The narrower table."""
        if not self.leading:
            return self
        names = (*self.names[: self.leading], ", ".join(self.names[self.leading :]))
        rows = [
            (*row[: self.leading], ", ".join(filter(None, row[self.leading :])))
            for row in self.rows
        ]
        return replace(self, names=names, rows=rows, has_prose=True)

    def _narrowest(self) -> int:
        """The least width of the table, in columns of the console."""
        header = [self.names] if self.has_header else []
        widths = [max(map(cell_len, cells)) for cells in zip(*header, *self.rows, strict=True)]
        if self.has_prose and widths:
            widths[-1] = min(widths[-1], _NARROWEST_PROSE)
        return sum(width + 2 * _MARGIN for width in widths)

    def _table(self) -> Table:
        table = Table(
            box=None, show_header=self.has_header, header_style="dim", padding=(0, _MARGIN)
        )
        for position, name in enumerate(self.names):
            wraps = self.has_prose and position == len(self.names) - 1
            table.add_column(Text(name), no_wrap=not wraps, overflow="fold")
        for row in self.rows:
            table.add_row(*(paragraph(cell) for cell in row))
        return table

    def _paragraphs(self, row: Sequence[str]) -> Iterator[RenderableType]:
        yield Padding(paragraph(row[0] or "-"), (0, 0, 0, _MARGIN))
        cells = zip(self.names[1:], row[1:], strict=True)
        said = (f"{name} {cell}" if self.has_header else cell for name, cell in cells if cell)
        text = ", ".join(said)
        if text:
            yield Padding(paragraph(text), (0, 0, 0, _INDENT))
