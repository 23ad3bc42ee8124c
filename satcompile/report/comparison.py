"""Changes between two reports: two budgets, or two versions of a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from satcompile.report.data import GraphReport, Report, ValueRow
from satcompile.report.files import ending_of, write_whole
from satcompile.report.folding import Fold, any_layer, base_name, fold
from satcompile.sizes import format_bytes, format_time

SAVED, RECOMPUTED = "saved", "recomputed"
# Each figure in words, and how it is printed.
_WORDS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "budget_bytes": ("budget", format_bytes),
    "predicted_peak_bytes": ("predicted peak", format_bytes),
    "measured_peak_bytes": ("measured peak", format_bytes),
    "default_peak_bytes": ("torch.compile's own peak", format_bytes),
    "floor_bytes": ("floor", format_bytes),
    "resident_bytes": ("resident before the step", format_bytes),
    "saved_bytes": ("saved for backward", format_bytes),
    "forward_time_us": ("time of the forward", format_time),
    "recompute_time_us": ("time added", format_time),
    "optimality_gap": ("proven gap, of the forward", "{:.3%}".format),
}


@dataclass(frozen=True)
class Decision:
    """The decision for a value and its counterparts in other layers.

    Attributes:
        saved, recomputed: how many of them are. If both are 0, they are dropped or do not exist.
        saved_bytes: bytes of those that are saved.
    """

    saved: int = 0
    recomputed: int = 0
    saved_bytes: int = 0

    def __str__(self) -> str:
        parts = ((self.saved, SAVED), (self.recomputed, RECOMPUTED))
        return ", ".join(f"{count} {what}" for count, what in parts if count) or "neither"


@dataclass(frozen=True)
class ValueChange:
    """A value, folded over layers, whose treatment changed.

    Attributes:
        name, module, source, dtype, shape: of the value; from the later report if it is there.
        before, after: the decisions for it.
    """

    name: str
    module: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    before: Decision
    after: Decision

    @property
    def more_saved_bytes(self) -> int:
        return self.after.saved_bytes - self.before.saved_bytes


@dataclass(frozen=True)
class PassChange:
    """A pass whose effect changed; None where it did not run."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class GraphComparison:
    """Two reports of graphs that are matched as the same graph.

    Attributes:
        name: name of the later graph.
        before, after: the reports.
        figures: (before, after) by the report's key, unchanged figures included.
        values: values whose treatment changed, the largest change of saved bytes first.
        passes: passes whose effect changed.
    """

    name: str
    before: GraphReport
    after: GraphReport
    figures: Mapping[str, tuple[Any, Any]]
    values: Sequence[ValueChange]
    passes: Sequence[PassChange]

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Figures in words: name, before, after, and the change as a share."""
        found = []
        for key, (words, show) in _WORDS.items():
            before, after = self.figures[key]
            shown = tuple("none" if each is None else show(each) for each in (before, after))
            change = f"{after / before - 1:+.1%}" if before and after is not None else ""
            found.append((words, shown[0], shown[1], change if before != after else "same"))
        return found

    def to_dict(self) -> dict[str, Any]:
        figures = {k: {"before": a, "after": b} for k, (a, b) in self.figures.items()}
        return {
            "name": self.name,
            "name_before": self.before.name,
            **figures,
            "values": [asdict(each) for each in self.values],
            "passes": [asdict(each) for each in self.passes],
        }


@dataclass(frozen=True)
class Comparison:
    """See ``Report.compare``.

    Attributes:
        names: names of the two reports.
        graphs: graphs that are in both reports.
        only_before, only_after: names of graphs that are in one report only.
    """

    names: tuple[str, str]
    graphs: Sequence[GraphComparison]
    only_before: Sequence[str]
    only_after: Sequence[str]

    def __str__(self) -> str:
        from satcompile.report.terminal import render_comparison

        return render_comparison(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Lets ``rich.print(comparison)`` print in colours where there are any."""
        from satcompile.report.terminal import ComparisonSections

        yield ComparisonSections(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``{"format": 1, "names", "graphs", "only_before", "only_after"}``."""
        return {
            "format": 1,
            "names": list(self.names),
            "graphs": [each.to_dict() for each in self.graphs],
            "only_before": list(self.only_before),
            "only_after": list(self.only_after),
        }

    def save(self, path: str | Path) -> None:
        """Write it as a page to read (``.html``) or as data (``.json``).

        Raises:
            OptionError: the path has another ending.
            FileError: the file cannot be written; nothing is left half-written.
        """
        path = Path(path)
        if ending_of(path, "a comparison") == ".html":
            from satcompile.report.page import render_comparison_page

            write_whole(path, render_comparison_page(self))
        else:
            write_whole(path, json.dumps(self.to_dict(), indent=2) + "\n")


def compare(before: Report, after: Report, names: tuple[str, str]) -> Comparison:
    """Compare graphs of the same function, in the order in which they were compiled."""
    pairs, only_before, only_after = _matched(
        before.graphs, after.graphs, [lambda g: g.name, lambda g: g.name.partition(" [")[0]]
    )
    if len(only_before) == len(only_after) == 1:  # a function that was renamed
        pairs.append((only_before.pop(), only_after.pop()))
    return Comparison(
        names,
        [_compare_graphs(one, other) for one, other in pairs],
        [graph.name for graph in only_before],
        [graph.name for graph in only_after],
    )


def _compare_graphs(before: GraphReport, after: GraphReport) -> GraphComparison:
    return GraphComparison(
        after.name,
        before,
        after,
        {key: (getattr(before, key), getattr(after, key)) for key in _WORDS},
        _value_changes(before, after),
        _pass_changes(before, after),
    )


# -- values ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Values of one place in the model, over layers, in one report."""

    row: ValueRow
    decision: Decision


def _groups(graph: GraphReport) -> list[_Group]:
    found: dict[Hashable, list[tuple[str, Fold]]] = {}
    for what, rows in ((SAVED, graph.saved), (RECOMPUTED, graph.recomputed)):
        for each in fold(rows):
            found.setdefault((*_place(each.row), each.row.shape, each.row.dtype), []).append(
                (what, each)
            )
    return [_group(members) for members in found.values()]


def _group(members: Sequence[tuple[str, Fold]]) -> _Group:
    counts: Counter[str] = Counter()
    for what, each in members:
        counts[what] += len(each.members)
    saved_bytes = sum(each.total_bytes for what, each in members if what == SAVED)
    # If one place has two folds, the one over more layers has the general name.
    row = max((each for _, each in members), key=lambda each: len(each.members)).row
    return _Group(row, Decision(counts[SAVED], counts[RECOMPUTED], saved_bytes))


def _value_changes(before: GraphReport, after: GraphReport) -> list[ValueChange]:
    keys: list[Callable[[Any], Hashable]] = [
        lambda group: (*_place(group.row), group.row.shape, group.row.dtype),
        lambda group: _place(group.row),  # shapes change with the batch
    ]
    if _lines(before) != _lines(after):  # the code was edited, and lines have moved
        keys.append(lambda group: _place_in_file(group.row))
    pairs, gone, new = _matched(_groups(before), _groups(after), keys)
    changes = [_change(old.row, new.row, old.decision, new.decision) for old, new in pairs]
    changes += [_change(old.row, old.row, old.decision, Decision()) for old in gone]
    changes += [_change(each.row, each.row, Decision(), each.decision) for each in new]
    different = [each for each in changes if each.before != each.after]
    return sorted(different, key=lambda each: (-abs(each.more_saved_bytes), each.module, each.name))


def _change(old: ValueRow, new: ValueRow, before: Decision, after: Decision) -> ValueChange:
    alone = max(before.saved + before.recomputed, after.saved + after.recomputed) == 1
    name = new.name if alone else f"{base_name(new.name)}_*"
    module = new.module if alone else any_layer(new.module)
    return ValueChange(name, module, new.source, new.dtype, new.shape, before, after)


def _place(row: ValueRow) -> tuple[str, str, str]:
    return any_layer(row.module), row.source, base_name(row.name)


def _place_in_file(row: ValueRow) -> tuple[str, str, str]:
    return any_layer(row.module), row.source.partition(":")[0], base_name(row.name)


def _lines(graph: GraphReport) -> frozenset[str]:
    """Source lines of the graph, as far as torch's own plan has them: no budget changes it."""
    timeline = graph.default_timeline
    return frozenset() if timeline is None else frozenset(a.source for a in timeline.allocations)


# -- passes ------------------------------------------------------------------------------------


def _pass_changes(before: GraphReport, after: GraphReport) -> list[PassChange]:
    old = {row.name: row.changed for row in before.passes}
    new = {row.name: row.changed for row in after.passes}
    names = dict.fromkeys([*old, *new])
    changes = [PassChange(name, old.get(name), new.get(name)) for name in names]
    return [each for each in changes if each.before != each.after]


def _matched(
    before: Iterable[Any], after: Iterable[Any], keys: Sequence[Callable[[Any], Hashable]]
) -> tuple[list[tuple[Any, Any]], list[Any], list[Any]]:
    """Pair items with equal keys, by the first key that matches; items with one key, in order."""
    old, new = list(before), list(after)
    pairs: list[tuple[Any, Any]] = []
    for key in keys:
        waiting: dict[Hashable, list[Any]] = {}
        for each in new:
            waiting.setdefault(key(each), []).append(each)
        unpaired = []
        for each in old:
            if candidates := waiting.get(key(each)):
                pairs.append((each, candidates.pop(0)))
            else:
                unpaired.append(each)
        taken = {id(each) for _, each in pairs}
        old, new = unpaired, [each for each in new if id(each) not in taken]
    return pairs, old, new
