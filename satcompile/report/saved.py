"""Reads reports that were saved as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satcompile.errors import FileError
from satcompile.planner.curve import CurvePoint
from satcompile.report.data import GraphReport, PassRow, Report, ValueRow
from satcompile.report.files import read_text
from satcompile.report.sparsity import SavedSparsity
from satcompile.report.timeline import Timeline
from satcompile.report.updates import SavedUpdates

if TYPE_CHECKING:
    from satcompile.report.comparison import Comparison

# Keys that are fields of a graph report, unchanged.
_PLAIN = (
    "name", "budget_bytes", "reserve_bytes", "predicted_peak_bytes", "prediction", "saved_bytes",
    "forward_time_us", "recompute_time_us", "optimality_gap", "bound_kind", "beside_bytes",
    "rounds", "measured_peak_bytes",
)  # fmt: skip


def load_report(path: str | Path) -> Report:
    """Load a report that ``Report.save("....json")`` wrote; its passes have no texts of graphs.

    Raises:
        FileError: the file cannot be read, or holds no report.
    """
    path = Path(path)
    try:
        data = json.loads(read_text(path))
        if data["format"] != 1:
            raise FileError(
                f"{str(path)!r} has format {data['format']!r}, and this version reads format 1. "
                "Read it with the version of satcompile that wrote it."
            )
        return Report([_graph(each) for each in data["graphs"]])
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"{str(path)!r} holds no report ({type(error).__name__}: {error}). Give the name of a "
            "file that satcompile.report(model).save(...) wrote with the ending .json."
        ) from None


def compare_files(before: str | Path, after: str | Path) -> Comparison:
    """Compare two saved reports; each is called by its file's name.

    Raises:
        FileError: one of the files cannot be read, or holds no report.
    """
    names = Path(before).stem, Path(after).stem
    if names[0] == names[1]:
        names = str(before), str(after)
    return load_report(before).compare(load_report(after), names)


def _graph(data: Mapping[str, Any]) -> GraphReport:
    resident_bytes, beside_bytes = data["resident_bytes"], data["beside_bytes"]
    base_bytes = resident_bytes + beside_bytes
    sparsity, updates, curve = data["sparsity"], data.get("updates"), data.get("curve")
    least_bytes = data.get("least_peak_bytes")
    return GraphReport(
        **{key: data[key] for key in _PLAIN},
        measured_allocated_bytes=data.get("measured_allocated_bytes"),  # not in older reports
        measured_reserved_bytes=data.get("measured_reserved_bytes"),
        resident=dict(data["resident"]),
        saved=[ValueRow.from_dict(row) for row in data["saved"]],
        recomputed=[ValueRow.from_dict(row) for row in data["recomputed"]],
        passes=[PassRow(**row) for row in data["passes"]],
        notes=list(data["notes"]),
        sparsity=None if sparsity is None else SavedSparsity.from_dict(sparsity),
        _updates=None if updates is None else SavedUpdates.from_dict(updates),
        _floor=data["floor_bytes"] - base_bytes,
        _least=None if least_bytes is None else least_bytes - base_bytes,
        _default=(data["default_peak_bytes"] - resident_bytes, data["default_prediction"]),
        _curve=None if curve is None else tuple(CurvePoint(**p).above(-base_bytes) for p in curve),
        _timeline=_timeline(data.get("timeline")),
        _default_timeline=_timeline(data.get("default_timeline")),
    )


def _timeline(data: Mapping[str, Any] | None) -> Timeline | None:
    return None if data is None else Timeline.from_dict(data)
