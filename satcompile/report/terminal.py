"""The report as text for a terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from satcompile.report.data import GraphReport, Report, ValueRow
from satcompile.report.sparsity import SparsityReport
from satcompile.sizes import format_bytes

_ROWS = 12


def format_time(time_us: float) -> str:
    if time_us < 1e3:
        return f"{time_us:.0f} us"
    return f"{time_us / 1e3:.1f} ms" if time_us < 1e6 else f"{time_us / 1e6:.2f} s"


def render(report: Report, width: int = 110, ask: bool = True) -> str:
    """Plain text, at most ``width`` columns; without ``ask`` nothing is computed for it."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False)
    for graph in report.graphs:
        _render_graph(graph, console, ask)
    return out.getvalue().rstrip() + "\n"


def _render_graph(graph: GraphReport, console: Console, ask: bool) -> None:
    console.rule(escape(f"graph {graph.name}"), align="left", characters="-")
    console.print(_summary(graph, ask))
    for title, rows in (("saved for backward", graph.saved), ("recomputed", graph.recomputed)):
        if rows:
            console.print(_values(title, rows))
    passes = Table("pass", "time", "effect", title="passes", title_justify="left", box=None)
    for row in graph.passes:
        passes.add_row(row.name, format_time(row.time_us), escape(row.changed))
    console.print(passes)
    if graph.sparsity is not None:
        _render_sparsity(graph.sparsity, console)
    for note in graph.notes:
        console.print(f"note: {escape(note)}")
    console.print()


def _render_sparsity(sparsity: SparsityReport, console: Console) -> None:
    step = "before the first step"
    if sparsity.step is not None:
        step = f"after {sparsity.step} steps; step {sparsity.next_choice} (from 0) scores all tiles"
    console.print(
        f"sparse training, {step}: {sparsity.density:.1%} of what is in tiles is trained, "
        f"{sparsity.skipped_share:.1%} of the step's FLOPs are skipped"
    )
    table = Table(
        "parameter", "shape", "tile", "trained", "forward", "FLOPs skipped",
        title="in tiles", title_justify="left", box=None,
    )  # fmt: skip
    rows = sparsity.parameters
    for row in rows[:_ROWS]:
        table.add_row(
            escape(row.name), "x".join(map(str, row.shape)), "x".join(map(str, row.tile)),
            f"{row.trained_share:.1%}", row.forward_dense or f"{row.forward_share:.1%}",
            f"{row.skipped_flops:.3g}",
        )  # fmt: skip
    if rows[_ROWS:]:
        rest = sum(row.skipped_flops for row in rows[_ROWS:])
        table.add_row(f"{len(rows) - _ROWS} others", "", "", "", "", f"{rest:.3g}")
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for dense in sparsity.dense:
        reasons.setdefault(dense.reason, []).append(dense.name)
    for reason, names in reasons.items():
        others = f" and {len(names) - 2} others" if len(names) > 2 else ""
        console.print(escape(f"dense: {', '.join(names[:2])}{others}: {reason}"))


def _summary(graph: GraphReport, ask: bool) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style=None, no_wrap=True)
    table.add_column()
    table.add_row("budget", _budget(graph))
    table.add_row(
        "predicted peak", f"{format_bytes(graph.predicted_peak_bytes)}  (by {graph.prediction})"
    )
    measured = graph.measured_peak_bytes
    if measured is not None:
        off = graph.predicted_peak_bytes / measured - 1
        table.add_row("measured peak", f"{format_bytes(measured)}  (prediction {off:+.2%})")
    default = graph.default_peak(ask)
    if default is not None:
        default_bytes, how = default
        share = graph.predicted_peak_bytes / max(1, default_bytes)
        table.add_row(
            "torch.compile's own peak",
            f"{format_bytes(default_bytes)}  (by {how}; ours is {share:.1%})",
        )
    kinds = ", ".join(f"{k} {format_bytes(v)}" for k, v in graph.resident.items() if v)
    table.add_row("resident before the step", f"{format_bytes(graph.resident_bytes)}  ({kinds})")
    table.add_row("saved for backward", format_bytes(graph.saved_bytes))
    added = graph.recompute_time_us / graph.forward_time_us if graph.forward_time_us else 0.0
    table.add_row(
        "time added",
        f"{format_time(graph.recompute_time_us)}, {added:.1%} of the forward's {format_time(graph.forward_time_us)} (cost model)",
    )
    table.add_row(
        "proven gap", f"{graph.optimality_gap:.3%} of the forward  ({escape(graph.bound_kind)})"
    )
    return table


def _budget(graph: GraphReport) -> str:
    if graph.budget_bytes is None:
        return "none: no more memory and no more time than torch.compile's default"
    reserve = f", {format_bytes(graph.reserve_bytes)} of it reserved" if graph.reserve_bytes else ""
    return f"{format_bytes(graph.budget_bytes)}{reserve}"


def _values(title: str, rows: Sequence[ValueRow]) -> Table:
    table = Table(
        "value", "bytes", "dtype", "shape", "module", "source", "count",
        title=title, title_justify="left", box=None,
    )  # fmt: skip
    folded = fold_layers(rows)
    for row, count in folded[:_ROWS]:
        table.add_row(
            escape(row.name), format_bytes(row.num_bytes * count), row.dtype,
            "x".join(map(str, row.shape)), escape(row.module), escape(row.source), f"{count}",
        )  # fmt: skip
    rest = folded[_ROWS:]
    if rest:
        total = sum(row.num_bytes * count for row, count in rest)
        count = sum(count for _, count in rest)
        table.add_row("others", format_bytes(total), "", "", "", "", f"{count}")
    return table


def fold_layers(rows: Sequence[ValueRow]) -> list[tuple[ValueRow, int]]:
    """Values of identical layers as one row with a count, largest sum first.

    Identical: same shape, dtype and source line, in modules that differ in numbers only
    (``h.0.mlp`` and ``h.7.mlp`` become ``h.*.mlp``).
    """
    groups: dict[tuple, list[ValueRow]] = {}
    for row in rows:
        module = re.sub(r"\b\d+\b", "*", row.module)
        key = (module, row.source, row.dtype, row.shape, re.sub(r"_\d+$", "", row.name))
        groups.setdefault(key, []).append(row)
    folded = []
    for (module, *_), members in groups.items():
        first = members[0]
        name = first.name if len(members) == 1 else re.sub(r"_\d+$", "", first.name) + "_*"
        shown = first.module if len(members) == 1 else module
        row = ValueRow(
            name, first.num_bytes, first.dtype, first.shape, shown, first.source, first.copies
        )
        folded.append((row, len(members)))
    return sorted(folded, key=lambda item: -item[0].num_bytes * item[1])
