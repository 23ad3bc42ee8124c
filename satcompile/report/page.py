"""A report as one self-contained page of HTML that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
import plotly.offline

from satcompile.report import charts
from satcompile.report.comparison import Comparison, GraphComparison
from satcompile.report.data import GraphReport, PassRow, Report
from satcompile.report.folding import Fold, fold
from satcompile.report.terminal import budget_text
from satcompile.report.timeline import Timeline
from satcompile.sizes import format_bytes, format_change, format_time

_MOST_LINES = 3_000  # lines of a diff on a page; the data has all of them
_MOST_BARS = 400


def render_page(report: Report) -> str:
    """Render the page. Plans for the Pareto curve are made if they do not exist yet, which takes as
    long as planning the graph about eight times."""
    graphs = [_Section(number, graph) for number, graph in enumerate(report.graphs)]
    return render("report.html.jinja", title=_title(report), graphs=graphs)


def render_comparison_page(comparison: Comparison) -> str:
    """Render a comparison as a page."""
    names = comparison.names
    graphs = [
        _ComparedSection(number, names, each) for number, each in enumerate(comparison.graphs)
    ]
    return render(
        "comparison.html.jinja",
        title=f"from {names[0]} to {names[1]}",
        names=names,
        graphs=graphs,
        only=[
            (name, only)
            for name, only in zip(
                names, (comparison.only_before, comparison.only_after), strict=True
            )
            if only
        ],
    )


def render(template: str, **values: Any) -> str:
    """Render one of our templates with plotly's script."""
    return (
        _templates()
        .get_template(template)
        .render(plotly_script=plotly.offline.get_plotlyjs(), **values)
    )


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("satcompile.report"),
        autoescape=True,  # names come from models
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=format_bytes,
        change=format_change,
        time=format_time,
        percent=_percent,
        shape=_shape,
        diff_lines=diff_lines,
    )
    return environment


def _percent(share: float, digits: int = 1) -> str:
    return f"{share:.{digits}%}"


def _shape(extents: Sequence[int]) -> str:
    return "x".join(map(str, extents)) or "scalar"


def _title(report: Report) -> str:
    names = [graph.name for graph in report.graphs]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}" if names else "no graphs"


@dataclass(frozen=True)
class _Section:
    """One graph, and the values that the template reads."""

    number: int
    graph: GraphReport

    @property
    def anchor(self) -> str:
        return f"graph-{self.number}"

    @property
    def budget(self) -> str:
        return budget_text(self.graph)

    @property
    def added_share(self) -> float:
        graph = self.graph
        return graph.recompute_time_us / graph.forward_time_us if graph.forward_time_us else 0.0

    @property
    def memory(self) -> charts.Chart | None:
        graph = self.graph
        lines = {"planned": graph.timeline, "torch.compile": graph.default_timeline}
        known = {name: line for name, line in lines.items() if line is not None}
        if not known:
            return None
        limits = {} if graph.budget_bytes is None else {"budget": graph.budget_bytes}
        return charts.memory_chart(f"{self.anchor}-memory", known, limits)

    @property
    def simulation_off_bytes(self) -> int:
        """Bytes by which the chart's peak is below that of the code that runs."""
        timeline = self.graph.timeline
        return 0 if timeline is None else self.graph.predicted_peak_bytes - timeline.peak_bytes

    @property
    def is_changed(self) -> bool:
        """Whether the graph computes something other than torch.compile alone would."""
        names = {row.name for row in self.graph.passes}
        return self.graph.sparsity is not None or "fused_update" in names

    @property
    def curve(self) -> charts.Chart | None:
        graph = self.graph
        if not graph.curve:
            return None
        default = graph.default_timeline
        default_bytes = graph.default_peak_bytes if default is None else default.peak_bytes
        name = f"{self.anchor}-curve"
        return charts.curve_chart(name, graph.curve, graph.forward_time_us, default_bytes)

    @property
    def peaks(self) -> charts.Chart:
        return charts.peaks_chart(f"{self.anchor}-peaks", self.graph)

    @property
    def sparsity(self) -> charts.Chart | None:
        sparsity = self.graph.sparsity
        if sparsity is None or not 0 < len(sparsity.parameters) <= _MOST_BARS:
            return None
        return charts.sparsity_chart(f"{self.anchor}-sparsity", sparsity.parameters)

    @property
    def decisions(self) -> list[tuple[str, list[Fold]]]:
        tables = {"Saved for backward": self.graph.saved, "Recomputed": self.graph.recomputed}
        return [(title, fold(rows)) for title, rows in tables.items() if rows]

    @property
    def passes(self) -> list[tuple[PassRow, str | None]]:
        return [(row, row.diff) for row in self.graph.passes]


@dataclass(frozen=True)
class _ComparedSection:
    """Two reports of one graph, and the values that the template reads."""

    number: int
    names: tuple[str, str]
    graph: GraphComparison

    @property
    def anchor(self) -> str:
        return f"graph-{self.number}"

    @property
    def memory(self) -> charts.Chart | None:
        lines: dict[str, Timeline] = {}
        limits: dict[str, int] = {}
        for name, graph in zip(self.names, (self.graph.before, self.graph.after), strict=True):
            if graph.timeline is not None:
                lines[name] = graph.timeline
            if graph.budget_bytes is not None:
                limits[f"budget of {name}"] = graph.budget_bytes
        if not lines:
            return None
        return charts.memory_chart(f"{self.anchor}-memory", lines, limits)


def diff_lines(diff: str) -> tuple[list[tuple[str, str]], int]:
    """Lines of a diff with their kinds, and how many more lines there are."""
    lines = diff.splitlines()
    kinds = {"+": "added", "-": "removed", "@": "place"}
    return [(kinds.get(line[:1], ""), line) for line in lines[:_MOST_LINES]], max(
        0, len(lines) - _MOST_LINES
    )
