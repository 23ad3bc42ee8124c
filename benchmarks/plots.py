"""Plots of results, as SVG whose text stays text and whose bytes follow from the rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

if TYPE_CHECKING:
    from benchmarks.peak import Row

_COLUMNS = 3
# Colours that stay apart for the colour-blind, and markers that do without colour.
_CURVES = {
    "torch budget": ("torch's activation budget", "#d55e00", "s"),
    "sat": ('backend="sat"', "#0072b2", "o"),
}


def plot_peaks(rows: Sequence[Row], path: Path) -> None:
    """Time over peak, one panel a model: left is less memory, down is less time."""
    names = list(dict.fromkeys(row.model for row in rows))
    columns = min(_COLUMNS, len(names))
    lines = -(-len(names) // columns)
    settings = {"svg.fonttype": "none", "svg.hashsalt": "peak"}
    with matplotlib.rc_context(settings):
        figure, panels = plt.subplots(
            lines, columns, figsize=(4 * columns, 3 * lines), squeeze=False, layout="constrained"
        )
        for name, panel in zip(names, panels.flat, strict=False):
            _draw([row for row in rows if row.model == name], panel)
            panel.set_title(name)
        for panel in panels.flat[len(names) :]:
            panel.set_visible(False)
        panels.flat[0].legend(fontsize="small")
        figure.supxlabel("measured peak, share of torch.compile's", fontsize="medium")
        figure.supylabel("time, ratio to torch.compile's", fontsize="medium")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _draw(rows: Sequence[Row], panel: Axes) -> None:
    panel.plot(1.0, 1.0, "k*", label="torch.compile")
    for kind, (label, colour, marker) in _CURVES.items():
        timed = [row for row in rows if row.kind == kind and row.time_ratio is not None]
        # In the order of the budgets, so that a curve that turns back shows it.
        points = [(row.peak_share, row.time_ratio) for row in timed]
        if points:
            panel.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=4, label=label)
    panel.grid(alpha=0.3)
