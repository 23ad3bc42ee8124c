"""A report as data. ``to_dict`` is stable: keys are added, never renamed.

All sizes are bytes, all times microseconds; formatting happens where things are printed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from satcompile.planner.curve import CurvePoint
from satcompile.report.entries import PassRow, ValueRow
from satcompile.report.files import ending_of, write_whole
from satcompile.report.sparsity import SavedSparsity, SparsityReport
from satcompile.report.timeline import Timeline
from satcompile.report.trace import save_trace

if TYPE_CHECKING:
    from satcompile.report.comparison import Comparison
    from satcompile.report.updates import SavedUpdates, UpdateReport


@dataclass
class GraphReport:
    """One compiled training graph.

    Attributes:
        name: Dynamo's compile id and the function it compiled.
        budget_bytes: the budget, reserve included; None without a budget.
        reserve_bytes: part of the budget kept free for memory that the backend cannot see.
        resident_bytes: alive before the step; ``resident`` has it by kind.
        predicted_peak_bytes: resident plus what the step allocates, by ``prediction``.
        prediction: "generated code" (its own allocations, added up) or "simulation".
        default_peak_bytes: the same for torch.compile's own plan, by ``default_prediction``.
            If that plan is not in use, its code is generated at the first access, which takes
            about a quarter of a compilation.
        floor_bytes: the smallest peak for which a valid plan is known: a budget of that is met. The
            first access generates the code of a few plans, which takes about a compilation.
        least_peak_bytes: no plan of the class that ``bound_kind`` names has a lower simulated peak;
            None if unknown.
        measured_peak_bytes: resident plus the latest ``measure_peak`` in which the graph ran.
        measured_allocated_bytes, measured_reserved_bytes: peaks of the whole process in that
            measurement, by the counters of a GPU's allocator; None on the CPU.
        saved_bytes: alive between forward and backward.
        forward_time_us: time of the forward, by the cost model.
        recompute_time_us: time of what the backward computes again.
        optimality_gap: share of ``forward_time_us`` by which the plan may exceed the optimum of
            the class that ``bound_kind`` names.
        saved, recomputed: values, largest first.
        passes: passes, in the order in which they ran.
        beside_bytes: held by the step's other graphs at the peak; 0 if the graph is alone.
        rounds: compilations it took until the generated code was within the budget.
        notes: further facts that a reader must know.
        sparsity: which parameters are trained in tiles and which are not, at the time of access;
            None without the option.
        updates: what ``fuse_optimizer`` does for the graph's parameters, at the time of access;
            None if no fused optimizer has any of them.
        timeline: memory over the step, simulated; made at the first access. Where ``prediction``
            is "generated code", its peak is the plan's, not ``predicted_peak_bytes``.
        default_timeline: the same for torch.compile's own plan.
        curve: plans at other limits, resident bytes included; made at the first access, which
            takes as long as planning the graph about eight times. Empty if none is known.
    """

    name: str
    budget_bytes: int | None
    reserve_bytes: int
    resident: dict[str, int]
    predicted_peak_bytes: int
    prediction: str
    saved_bytes: int
    forward_time_us: float
    recompute_time_us: float
    optimality_gap: float
    bound_kind: str
    saved: Sequence[ValueRow]
    recomputed: Sequence[ValueRow]
    passes: Sequence[PassRow]
    beside_bytes: int = 0
    rounds: int = 1
    measured_peak_bytes: int | None = None
    measured_allocated_bytes: int | None = None
    measured_reserved_bytes: int | None = None
    notes: list[str] = field(default_factory=list)
    sparsity: SparsityReport | SavedSparsity | None = None
    _updates: UpdateReport | SavedUpdates | None = field(default=None, repr=False)
    _floor: Any = field(default=None, repr=False)
    _least: Any = field(default=None, repr=False)
    _default: Any = field(default=None, repr=False)
    _simulated_default_bytes: int | None = field(default=None, repr=False)
    _curve: Any = field(default=None, repr=False)
    _timeline: Any = field(default=None, repr=False)
    _default_timeline: Any = field(default=None, repr=False)

    @property
    def resident_bytes(self) -> int:
        return sum(self.resident.values())

    @property
    def floor_bytes(self) -> int:
        if callable(self._floor):
            self._floor = self._floor()
        return self.resident_bytes + self.beside_bytes + int(self._floor)

    @property
    def least_peak_bytes(self) -> int | None:
        if callable(self._least):
            self._least = self._least()
        return (
            None if self._least is None else self.resident_bytes + self.beside_bytes + self._least
        )

    @property
    def default_peak_bytes(self) -> int:
        return self.resident_bytes + int(self._known_default()[0])

    @property
    def default_prediction(self) -> str:
        return str(self._known_default()[1])

    def _known_default(self) -> tuple[int, str]:
        if callable(self._default):
            self._default = self._default()
        return self._default

    def default_peak(self, ask: bool = True) -> tuple[int, str] | None:
        """``default_peak_bytes`` and ``default_prediction``. Without ``ask`` no code is generated:
        if there is none yet, the peak is simulated, or the result is None."""
        if ask or not callable(self._default):
            return self.default_peak_bytes, self.default_prediction
        if self._simulated_default_bytes is None:
            return None
        return self.resident_bytes + self._simulated_default_bytes, "simulation"

    @property
    def updates(self) -> UpdateReport | SavedUpdates | None:
        return self._updates if self._updates is not None and self._updates.is_fused else None

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        if callable(self._curve):
            if callable(self._floor):
                self.floor_bytes  # noqa: B018 - the search knows more later: the same either way
            self._curve = tuple(self._curve())
        base_bytes = self.resident_bytes + self.beside_bytes
        return tuple(point.above(base_bytes) for point in self._curve or ())

    @property
    def timeline(self) -> Timeline | None:
        if callable(self._timeline):
            self._timeline = self._timeline()
        return self._above_resident(self._timeline)

    @property
    def default_timeline(self) -> Timeline | None:
        if callable(self._default_timeline):
            self._default_timeline = self._default_timeline()
        return self._above_resident(self._default_timeline)

    def _above_resident(self, found: Timeline | None) -> Timeline | None:
        return None if found is None else found.above(self.resident_bytes + self.beside_bytes)

    def save_trace(self, path: str | Path) -> None:
        """See ``Report.save_trace``; the trace has this graph alone."""
        save_trace([self], path)

    def to_dict(self, ask: bool = True) -> dict[str, Any]:
        """Plain data. Without ``ask`` nothing is planned, simulated or generated for figures that
        do not exist yet: the default is that of ``default_peak``, and the floor and the timelines
        are None."""
        default_peak_bytes, default_prediction = self.default_peak(ask) or (None, None)

        def is_there(found: Any) -> bool:
            return ask or not callable(found)

        return {
            "name": self.name,
            "budget_bytes": self.budget_bytes,
            "reserve_bytes": self.reserve_bytes,
            "resident_bytes": self.resident_bytes,
            "resident": dict(self.resident),
            "predicted_peak_bytes": self.predicted_peak_bytes,
            "prediction": self.prediction,
            "measured_peak_bytes": self.measured_peak_bytes,
            "measured_allocated_bytes": self.measured_allocated_bytes,
            "measured_reserved_bytes": self.measured_reserved_bytes,
            "default_peak_bytes": default_peak_bytes,
            "default_prediction": default_prediction,
            "floor_bytes": self.floor_bytes if is_there(self._floor) else None,
            "least_peak_bytes": self.least_peak_bytes if is_there(self._least) else None,
            "saved_bytes": self.saved_bytes,
            "forward_time_us": self.forward_time_us,
            "recompute_time_us": self.recompute_time_us,
            "optimality_gap": self.optimality_gap,
            "bound_kind": self.bound_kind,
            "saved": [row.to_dict() for row in self.saved],
            "recomputed": [row.to_dict() for row in self.recomputed],
            "passes": [row.to_dict() for row in self.passes],
            "beside_bytes": self.beside_bytes,
            "rounds": self.rounds,
            "notes": list(self.notes),
            "sparsity": None if self.sparsity is None else self.sparsity.to_dict(),
            "updates": None if self.updates is None else self.updates.to_dict(),
            # Costly, so only if it was made already.
            "curve": None if callable(self._curve) else [point.to_dict() for point in self.curve],
            "timeline": _data(self.timeline) if is_there(self._timeline) else None,
            "default_timeline": (
                _data(self.default_timeline) if is_there(self._default_timeline) else None
            ),
        }


def _data(timeline: Timeline | None) -> dict[str, Any] | None:
    return None if timeline is None else timeline.to_dict()


@dataclass(frozen=True)
class Report:
    """All decisions for the graphs that were asked about; see ``satcompile.report``."""

    graphs: Sequence[GraphReport]

    def __str__(self) -> str:
        from satcompile.report.terminal import render

        return render(self)

    def print(self, file: IO[str] | None = None) -> None:
        """Print as text, to ``file`` or to stdout. On a terminal, print in colours (unless
        ``NO_COLOR`` is set), as wide as the terminal or ``COLUMNS``; elsewhere, print plain."""
        from rich.console import Console

        Console(file=file).print(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Lets ``rich.print(report)`` do the same."""
        from satcompile.report.terminal import Sections

        yield Sections(self)

    def to_dict(self, ask: bool = True) -> dict[str, Any]:
        """Plain data: ``{"format": 1, "graphs": [...]}``; see ``GraphReport`` for the keys.
        Without ``ask`` nothing is computed for it."""
        return {"format": 1, "graphs": [graph.to_dict(ask) for graph in self.graphs]}

    def compare(self, other: Report, names: tuple[str, str] = ("before", "after")) -> Comparison:
        """Compare with ``other``: another budget, or another version of the model.

        Args:
            other: the later report.
            names: names of the two reports.
        """
        from satcompile.report.comparison import compare

        return compare(self, other, names)

    def save(self, path: str | Path) -> None:
        """Write the report: a page to read (``.html``) or data (``.json``).

        The page also shows plans at other budgets. Making them takes as long as planning the
        graph about eight times.

        Raises:
            OptionError: the path has another ending.
            FileError: the file cannot be written; nothing is left half-written.
        """
        path = Path(path)
        if ending_of(path, "a report") == ".html":
            from satcompile.report.page import render_page

            write_whole(path, render_page(self))
        else:
            write_whole(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def save_trace(self, path: str | Path) -> None:
        """Write the planned step, and torch.compile's own plan of it, for Perfetto or
        chrome://tracing: operations with their times by the cost model, memory by kind, and the
        budget. Each graph begins at time 0.

        Args:
            path: ends in ``.json``.

        Raises:
            OptionError: the path has another ending.
            NotCompiledError: the report was read from data without timelines.
            FileError: the file cannot be written; nothing is left half-written.
        """
        save_trace(self.graphs, path)
