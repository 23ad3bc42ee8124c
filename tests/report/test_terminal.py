"""The report as text: in colours on a terminal, plain elsewhere, never wider than asked."""

from __future__ import annotations

import io
import os
import pty
from types import SimpleNamespace
from typing import Any

import pytest
import rich
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from satcompile.report.comparison import Comparison
from satcompile.report.data import GraphReport, PassRow, Report, ValueRow
from satcompile.report.folding import fold
from satcompile.report.terminal import render, render_comparison
from satcompile.report.terminal.bar import segments
from satcompile.report.terminal.layout import MOST_ROWS
from satcompile.report.updates import UpdateRow
from satcompile.sizes import format_bytes
from tests.report.test_report import GIB, MIB, graph, value

WIDTHS = (40, 60, 80, 110, 200)
BLOCKS = "█░│─"


def squeezed(text: str) -> str:
    """Without white space: what wraps is in one piece again."""
    return "".join(text.split())


# -- widths ----------------------------------------------------------------------------------

names = st.text(
    st.sampled_from("abz_.019/[]{}#模型ñ🙂"), min_size=1, max_size=150
) | st.sampled_from(["[red]", "[/]", "[bold]h[/bold].0.mlp", "h.0.mlp", "h.1.mlp", "a b  c"])
sizes = st.integers(0, 80 * GIB)
value_rows = st.builds(
    ValueRow, name=names, num_bytes=sizes, dtype=st.sampled_from(["float32", "bfloat16", ""]),
    shape=st.lists(st.integers(1, 10**6), max_size=6).map(tuple), module=names | st.just(""),
    source=names | st.just(""), copies=st.integers(1, 9),
)  # fmt: skip
update_rows = st.builds(
    UpdateRow, name=names, shape=st.just((3, 4)), num_bytes=sizes,
    optimizer=st.sampled_from(["AdamW", ""]), consumed=st.booleans(), reason=names,
)  # fmt: skip


def updates(rows: list[UpdateRow], observed: bool = True, unplanned_bytes: int = 0) -> Any:
    return SimpleNamespace(
        is_fused=True, observed=observed, unplanned_bytes=unplanned_bytes, parameters=rows,
        consumed_bytes=sum(row.num_bytes for row in rows if row.consumed),
        returned_bytes=sum(row.num_bytes for row in rows if not row.consumed),
    )  # fmt: skip


@st.composite
def graphs(draw: st.DrawFn) -> GraphReport:
    kinds = ("parameters", "inputs", "gradients", "optimizer_state")
    resident = {kind: draw(sizes) for kind in kinds}
    saved_bytes, rest_bytes = draw(sizes), draw(sizes)
    default_bytes = draw(sizes)
    return graph(
        name=draw(names),
        budget_bytes=draw(st.none() | sizes),
        resident=resident,
        saved_bytes=saved_bytes,
        predicted_peak_bytes=sum(resident.values()) + saved_bytes + rest_bytes,
        measured_peak_bytes=draw(st.none() | st.integers(1, 80 * GIB)),
        _default=(default_bytes, "generated code"),
        saved=draw(st.lists(value_rows, max_size=15)),
        recomputed=draw(st.lists(value_rows, max_size=3)),
        passes=[PassRow(draw(names), 1.0, draw(names)) for _ in range(draw(st.integers(0, 3)))],
        bound_kind=draw(names),
        notes=draw(st.lists(names, max_size=2)),
        _updates=draw(st.none() | st.lists(update_rows, max_size=4).map(updates)),
    )


@given(graphs(), st.sampled_from(WIDTHS))
@settings(max_examples=150, deadline=None)
def test_no_line_is_too_wide_and_nothing_is_cut(found: GraphReport, width: int) -> None:
    text = render(Report([found]), width)
    assert max(map(cell_len, text.splitlines())) <= width
    kept = squeezed(text)
    folds = [*fold(found.saved)[:MOST_ROWS], *fold(found.recomputed)[:MOST_ROWS]]
    for row in (each.row for each in folds):
        for cell in (row.name, row.dtype, "x".join(map(str, row.shape)), row.module, row.source):
            assert squeezed(cell) in kept
    for said in (found.name, found.bound_kind, *found.notes, *(p.changed for p in found.passes)):
        assert squeezed(said) in kept
    for num_bytes in (
        found.predicted_peak_bytes, found.default_peak_bytes, found.resident_bytes,
        found.saved_bytes, *(each.total_bytes for each in folds),
        *filter(None, (found.budget_bytes, found.measured_peak_bytes)),
    ):  # fmt: skip
        assert squeezed(format_bytes(num_bytes)) in kept
    for row in found.updates.parameters if found.updates else ():
        assert row.consumed or squeezed(row.reason) in kept


@pytest.mark.parametrize("width", range(1, 30))
def test_even_the_narrowest_console_gets_something(width: int) -> None:
    text = render(Report([graph()]), width)
    assert max(map(cell_len, text.splitlines())) <= width


def test_rows_stand_in_a_table_where_that_fits() -> None:
    found = Report([graph(saved=[value("addmm", "h.0.mlp")])])
    row = "addmm  4.00 MiB  1      float32  1024x1024  h.0.mlp  model.py:12"
    assert row in render(found, 80)
    narrower = "addmm  4.00 MiB  1      float32, 1024x1024, h.0.mlp,"
    assert narrower in render(found, 60)
    assert "bytes 4.00 MiB, count 1, dtype float32" in render(found, 40).replace("\n   ", "")


# -- the budget as a bar ---------------------------------------------------------------------


def bar(found: GraphReport, width: int = 103) -> str:
    return next(x for x in render(Report([found]), width).splitlines() if x.startswith(" ["))


def test_the_bar_shows_what_the_peak_is_made_of() -> None:
    found = graph(
        resident={"parameters": 2 * GIB, "inputs": 0, "gradients": GIB, "optimizer_state": GIB},
        saved_bytes=2 * GIB, predicted_peak_bytes=7 * GIB, budget_bytes=8 * GIB,
        _default=(6 * GIB, "simulation"),
    )  # fmt: skip
    assert found.default_peak_bytes == 10 * GIB
    assert bar(found) == (
        " [" + "P" * 20 + "G" * 10 + "O" * 10 + "S" * 20 + "+" * 10 + "." * 10 + "]" + " " * 19 + "|"
    )  # fmt: skip
    text = render(Report([found]), 200)
    for said in (
        "P parameters 2.00 GiB", "G gradients 1.00 GiB", "O optimizer state 1.00 GiB",
        "S saved for backward 2.00 GiB", "+ rest of the peak 1.00 GiB", ". free 1.00 GiB",
        "| torch.compile's own peak 10.00 GiB",
    ):  # fmt: skip
        assert said in text
    assert "I inputs" not in text


def test_without_a_budget_the_bar_ends_at_the_peak() -> None:
    found = graph(budget_bytes=None, predicted_peak_bytes=8 * GIB)
    assert bar(found).endswith("+]")
    assert "free" not in render(Report([found]))
    assert bar(graph(budget_bytes=None, predicted_peak_bytes=4 * GIB)).endswith("|")


@given(graphs())
@settings(deadline=None)
def test_parts_of_the_bar_are_as_long_as_they_weigh(found: GraphReport) -> None:
    total = max(found.predicted_peak_bytes, found.budget_bytes or 0, found.default_peak_bytes)
    if not total:
        return
    shown = bar(found)
    for each in segments(found):
        cells = shown.count(each.letter)
        assert abs(cells - each.num_bytes * 100 / total) <= 3  # rounding, and two marks


def test_what_other_graphs_hold_is_in_the_bar() -> None:
    found = graph(beside_bytes=GIB // 2)
    assert "X other graphs 512.00 MiB" in render(Report([found]))
    assert sum(s.num_bytes for s in segments(found)) == found.predicted_peak_bytes


def test_the_default_is_left_out_where_nothing_may_be_computed() -> None:
    def asked() -> Any:
        raise AssertionError("code was generated")

    text = render(Report([graph(_default=asked)]), ask=False)
    assert "torch.compile's own peak" not in text
    simulated = graph(_default=asked, _simulated_default_bytes=GIB)
    assert "(by simulation" in render(Report([simulated]), ask=False)


# -- updates ---------------------------------------------------------------------------------


def gradient(name: str, **changed: Any) -> UpdateRow:
    fields = {
        "shape": (4, 4), "num_bytes": MIB, "optimizer": "AdamW", "consumed": True, "reason": "",
    }  # fmt: skip
    return UpdateRow(name=name, **{**fields, **changed})


def test_updates_say_what_is_consumed_and_why_the_rest_is_not() -> None:
    rows = [gradient(f"h.{i}.weight") for i in range(4)]
    rows.append(gradient("head.bias", consumed=False, reason="a hook is to see them"))
    text = render(Report([graph(_updates=updates(rows, unplanned_bytes=MIB))]), 200)
    assert "fused updates, in the latest backward: 4 of 5 gradients (4.00 MiB) are applied" in text
    assert "1.00 MiB are returned" in text
    assert "1.00 MiB of the returned gradients were to be consumed" in text
    lines = text.splitlines()
    (returned,) = (n for n, line in enumerate(lines) if "head.bias" in line)
    (consumed,) = (n for n, line in enumerate(lines) if "h.*.weight" in line)
    assert lines[returned].split()[-1] == "them"
    assert lines[consumed].split() == [
        "h.*.weight", "4.00", "MiB", "4", "AdamW", "in", "the", "backward",
    ]  # fmt: skip
    assert returned < consumed


def test_updates_before_the_first_backward_are_a_plan() -> None:
    planned = updates([gradient("weight")], observed=False)
    text = render(Report([graph(_updates=planned)]), 200)
    assert "as planned, before the first backward: 1 of 1 gradients" in text
    assert "were to be consumed" not in text


def test_updates_beyond_the_first_rows_are_added_up() -> None:
    rows = [gradient(f"module{i}x", shape=(i, 1), consumed=i % 2 == 0) for i in range(20)]
    text = render(Report([graph(_updates=updates(rows))]), 200)
    (others,) = (line for line in text.splitlines() if line.startswith(" others"))
    assert others.split() == [
        "others",
        "8.00",
        "MiB",
        "8",
        "8",
        "in",
        "the",
        "backward,",
        "0",
        "by",
        "step()",
    ]


def test_without_fused_updates_nothing_is_said_of_them() -> None:
    assert "fused updates" not in render(Report([graph()]))


# -- where it is printed ---------------------------------------------------------------------


def printed(report: Report | Comparison, **console: Any) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=console.pop("encoding", "utf-8"))
    settings = {"file": out, "width": 80, "force_terminal": True, "color_system": "standard"}
    Console(**{**settings, **console}).print(report)
    out.seek(0)
    return out.read()


def is_plain(text: str) -> bool:
    return "\x1b" not in text and text.isascii()


def test_a_terminal_gets_colours_and_blocks() -> None:
    text = printed(Report([graph()]))
    assert "\x1b[34m█" in text
    assert "\x1b[1mgraph forward" in text


def test_the_string_is_plain() -> None:
    assert is_plain(str(Report([graph()])))


@pytest.mark.parametrize(
    "console",
    [
        {"force_terminal": False, "color_system": None},
        {"force_terminal": True, "color_system": None},
    ],
)
def test_what_has_no_colours_gets_letters(console: dict[str, Any]) -> None:
    text = printed(Report([graph()]), **console)
    assert is_plain(text)
    assert "[PPP" in text


def test_no_color_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(Report([graph()]))
    assert "PPP" in text
    assert not any(f"\x1b[{color}m" in text for color in range(30, 38))


def test_an_encoding_without_blocks_gets_letters() -> None:
    report = Report([graph()])
    assert printed(report, encoding="ascii").isascii()
    assert "PPP" in printed(report, encoding="ascii")
    assert "█" in printed(report, encoding="cp437")  # it has these, though it is not Unicode


def test_print_and_rich_print_are_plain_and_alike_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(rich, "_console", None)  # made anew, with these columns
    report = Report([graph()])
    report.print()
    ours = capsys.readouterr().out
    rich.print(report)
    assert capsys.readouterr().out == ours
    assert is_plain(ours)
    assert max(map(cell_len, ours.splitlines())) == 60
    file = io.StringIO()
    report.print(file)
    assert file.getvalue() == ours


def test_a_real_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        Report([graph(saved=[], recomputed=[], passes=[])]).print(terminal)
        terminal.flush()
        text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "█" in text
    assert "\x1b[" in text


@given(graphs(), graphs(), st.sampled_from(WIDTHS))
@settings(max_examples=50, deadline=None)
def test_a_comparison_is_no_wider_and_nothing_is_cut(
    before: GraphReport, after: GraphReport, width: int
) -> None:
    found = Report([before]).compare(Report([after]))
    text = render_comparison(found, width)
    assert max(map(cell_len, text.splitlines())) <= width
    kept = squeezed(text)
    (pair,) = found.graphs
    for each in pair.values[:MOST_ROWS]:
        for cell in (each.name, each.module, each.source, str(each.before), str(each.after)):
            assert squeezed(cell) in kept
    for row in pair.rows():
        assert all(squeezed(cell) in kept for cell in row)


def test_a_comparison_has_colours_on_a_terminal() -> None:
    found = Report([graph()]).compare(Report([graph(budget_bytes=5 * GIB)]))
    assert "\x1b[1m" in printed(found)
    assert is_plain(str(found))


def test_markup_in_names_is_text() -> None:
    found = graph(name="[red]f[/red]", saved=[value("mm", "[bold]x")], notes=["[link=a]b[/link]"])
    text = printed(Report([found]))
    for name in ("[red]f[/red]", "[bold]x", "[link=a]b[/link]"):
        assert name in text


def test_blocks_are_what_the_check_of_the_encoding_knows() -> None:
    shown = {c for c in printed(Report([graph()])) if not c.isascii()}
    assert shown == set(BLOCKS)
