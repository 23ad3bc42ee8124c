"""The charts of a page: plotly figures, which the page colours for light and dark."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go
import plotly.io

from satcompile.planner.curve import CurvePoint, best
from satcompile.report.data import GraphReport
from satcompile.report.sparsity import TiledRow
from satcompile.report.timeline import Allocation, Timeline
from satcompile.sizes import format_bytes, format_time

# Visible on white and on black; without colour, dashes and shapes tell them apart.
OURS, DEFAULT, LIMIT, OTHER = "#3b82f6", "#8a8f98", "#e5484d", "#d97706"
_NAMED = 8  # how many of the largest allocations at a position are named
_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
}


@dataclass(frozen=True)
class Chart:
    """A chart on a page.

    Attributes:
        div_id: the figure's id on the page.
        title: the figure's title, for readers who cannot see it.
        markup: the figure; plotly's script comes from elsewhere on the page.
        data: for the page's script: texts that several points share, written once.
    """

    div_id: str
    title: str
    markup: str
    data: dict[str, Any] | None = field(default=None, repr=False)


def memory_chart(
    div_id: str, timelines: Mapping[str, Timeline], limits: Mapping[str, int]
) -> Chart:
    """Chart of bytes alive over the step, one line per timeline.

    Args:
        timelines: timelines by name; at most two.
        limits: bytes that a line may not cross, by the limit's name.
    """
    highest = max([*(each.peak_bytes for each in timelines.values()), *limits.values()])
    unit_bytes, unit = _unit(highest)
    figure = _figure(f"alive, {unit}", "time by the cost model, ms")
    texts = _Texts()
    for number, (name, each) in enumerate(timelines.items()):
        starts_us = accumulate(each.times_us, initial=0.0)
        figure.add_scatter(
            x=[round(us / 1e3, 6) for us, _ in zip(starts_us, each.labels, strict=False)],
            y=[round(n / unit_bytes, 4) for n in each.alive_bytes],
            customdata=_labels(each),
            name=name,
            mode="lines",
            zorder=-number,  # the first on top
            line={"color": (OURS, DEFAULT)[number % 2], "shape": "hv", "width": 2},
            hovertemplate=f"<b>%{{customdata}}</b><br>%{{y:.4~g}} {unit} alive, {_escaped(name)}"
            f"<br>%{{text}}<br>resident: {format_bytes(each.base_bytes)}<extra></extra>",
        )
        texts.add(each)
    for name, num_bytes in limits.items():
        _limit_line(figure, num_bytes / unit_bytes, name)
    return _chart(div_id, "Memory over the step", figure, texts.to_dict())


def curve_chart(
    div_id: str, points: Sequence[CurvePoint], forward_us: float, default_bytes: int
) -> Chart:
    """Chart of added time against peak; the plan in use is marked."""
    unit_bytes, unit = _unit(max([default_bytes, *(point.peak_bytes for point in points)]))
    figure = _figure("time added, % of the forward", f"simulated peak, {unit}")
    scale = 100 / forward_us if forward_us else 0.0

    def add(some: Sequence[CurvePoint], **style: Any) -> None:
        figure.add_scatter(
            x=[point.peak_bytes / unit_bytes for point in some],
            y=[point.time_added_us * scale for point in some],
            customdata=[_of_point(point) for point in some],
            hovertemplate="%{customdata}<extra></extra>",
            **style,
        )

    # Torch's own plan may be above the line if it is in use.
    unbeaten = set(best(replace(point, is_chosen=False) for point in points))
    line = [point for point in points if replace(point, is_chosen=False) in unbeaten]
    add(line, name="plans", mode="lines+markers", line={"color": OURS, "width": 2})
    chosen = [point for point in points if point.is_chosen]
    star = {"symbol": "star", "size": 16, "color": OTHER}
    add(chosen, name="in use", mode="markers", marker=star)
    figure.add_vline(default_bytes / unit_bytes, line={"color": DEFAULT, "dash": "dot"},
                     annotation_text="torch.compile", annotation_position="top left")  # fmt: skip
    return _chart(div_id, "Memory against time", figure)


def peaks_chart(div_id: str, graph: GraphReport) -> Chart:
    """Chart of the predicted peaks beside the measured one."""
    peaks = {
        "torch.compile": graph.default_peak_bytes,
        "predicted": graph.predicted_peak_bytes,
        "measured": graph.measured_peak_bytes,
        "floor": graph.floor_bytes,
    }
    known = {name: num_bytes for name, num_bytes in peaks.items() if num_bytes is not None}
    unit_bytes, unit = _unit(max([*known.values(), graph.budget_bytes or 0]))
    figure = _figure(f"peak, {unit}", "")
    colours = {"torch.compile": DEFAULT, "measured": OTHER}
    figure.add_bar(
        x=list(known),
        y=[num_bytes / unit_bytes for num_bytes in known.values()],
        marker={"color": [colours.get(name, OURS) for name in known]},
        text=[format_bytes(num_bytes) for num_bytes in known.values()],
        textposition="outside",
        textangle=0,
        cliponaxis=False,
        hovertemplate="%{x}: %{text}<extra></extra>",
        showlegend=False,
    )
    if graph.budget_bytes is not None:
        _limit_line(figure, graph.budget_bytes / unit_bytes, "budget")
    return _chart(div_id, "Predicted against measured", figure)


def sparsity_chart(div_id: str, rows: Sequence[TiledRow]) -> Chart:
    """Chart of the shares of each parameter that are trained and that the forward uses."""
    figure = _figure("share of its elements, %", "parameters, in the graph's order")
    names = [_escaped(row.name) for row in rows]
    for name, colour, shares in (
        ("trained", OURS, [row.trained_share for row in rows]),
        ("used by the forward", DEFAULT, [row.forward_share for row in rows]),
    ):
        figure.add_bar(
            y=[100 * share for share in shares],
            customdata=names,
            name=name,
            marker={"color": colour},
            hovertemplate=f"%{{customdata}}: %{{y:.1f}}% {name}<extra></extra>",
        )
    figure.update_yaxes(range=[0, 105])
    figure.update_xaxes(showticklabels=False)
    return _chart(div_id, "Sparsity per parameter", figure)


class _Texts:
    """The largest allocations at each position, as numbers of lines that are written once."""

    def __init__(self) -> None:
        self._numbers: dict[Allocation, int] = {}
        self._traces: list[list[list[int]]] = []

    def add(self, timeline: Timeline) -> None:
        self._traces.append(
            [
                [
                    self._numbers.setdefault(each, len(self._numbers))
                    for each in timeline.alive_at(position, _NAMED)
                ]
                for position in range(len(timeline.labels))
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        return {"lines": [_of_allocation(each) for each in self._numbers], "traces": self._traces}


def _of_allocation(each: Allocation) -> str:
    where = f" in {_escaped(each.module)}" if each.module else ""
    return f"{format_bytes(each.num_bytes)} {each.kind}: {_escaped(each.name)}{where}"


def _of_point(point: CurvePoint) -> str:
    used = "in use: " if point.is_chosen else ""
    return (
        f"{used}peak {format_bytes(point.peak_bytes)}, {format_time(point.time_added_us)} added"
        f"<br>found within {format_bytes(point.limit_bytes)}"
    )


def _labels(timeline: Timeline) -> list[str]:
    phases = zip(timeline.labels, timeline.phases, strict=True)
    return [f"{_escaped(label)} ({phase})" for label, phase in phases]


def _escaped(name: str) -> str:
    """Escape a name: plotly reads texts as a small HTML of its own."""
    return html.escape(name)


def _unit(num_bytes: int) -> tuple[int, str]:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes >= 2**power:
            return 2**power, unit
    return 1, "bytes"


def _limit_line(figure: go.Figure, y: float, name: str) -> None:
    figure.add_hline(
        y,
        line={"color": LIMIT, "dash": "dash"},
        annotation_text=_escaped(name),
        annotation_position="top left",
    )


def _figure(y_title: str, x_title: str) -> go.Figure:
    figure = go.Figure(layout=go.Layout(template=go.layout.Template()))
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 8, "r": 8, "t": 64, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hovermode="closest",
        hoverdistance=200,
        hoverlabel={"align": "left", "font": {"family": "system-ui, sans-serif"}},
        modebar={"bgcolor": "rgba(0,0,0,0)"},
        dragmode=False,
    )
    figure.update_yaxes(
        title={"text": y_title, "standoff": 12}, rangemode="tozero", automargin=True
    )
    figure.update_xaxes(title=x_title, automargin=True)
    return figure


def _chart(div_id: str, title: str, figure: go.Figure, data: dict[str, Any] | None = None) -> Chart:
    markup = plotly.io.to_html(
        figure, config=_CONFIG, include_plotlyjs=False, full_html=False, div_id=div_id
    )
    return Chart(div_id, title, markup, data)
