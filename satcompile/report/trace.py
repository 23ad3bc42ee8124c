"""The planned step in the Chrome trace event format, which Perfetto and chrome://tracing open.

Each graph is a process. Its forward and its backward are threads with one slice per operation, as
long as the cost model says, and counters show its memory. Torch's own plan is another process.
Nothing here is measured; ``torch.profiler`` records what really ran, in the same format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satcompile.errors import NotCompiledError, OptionError
from satcompile.report.files import write_whole
from satcompile.report.timeline import BOUNDARY, Timeline

RECOMPUTED = "recomputed"  # the category of what the backward computes again
RESIDENT = "resident"
_THREADS = {"forward": 1, "backward": 2}
_SHORTEST_NS = 1  # views take no time, and viewers show one slice or counter per moment

Event = dict[str, Any]

if TYPE_CHECKING:
    from satcompile.report.data import GraphReport


@dataclass(frozen=True)
class Process:
    """A step with one plan, as a process of the trace.

    Attributes:
        name: name of the process.
        timeline: timeline of the step, resident bytes included.
        budget_bytes: None without a budget.
    """

    name: str
    timeline: Timeline
    budget_bytes: int | None

    def events(self, number: int) -> Iterator[Event]:
        """All events of the process; events with a time are in order of time.

        Args:
            number: tells processes of one trace apart.
        """
        for event in (*self._names(number), *self._steps()):
            yield {"pid": number, **event}

    def _names(self, number: int) -> Iterator[Event]:
        yield {"ph": "M", "name": "process_name", "args": {"name": self.name}}
        yield {"ph": "M", "name": "process_sort_index", "args": {"sort_index": number}}
        for name, thread in _THREADS.items():
            yield {"ph": "M", "name": "thread_name", "tid": thread, "args": {"name": name}}
            yield {
                "ph": "M", "name": "thread_sort_index", "tid": thread,
                "args": {"sort_index": thread},
            }  # fmt: skip

    def _steps(self) -> Iterator[Event]:
        for position, (start_ns, duration_ns) in enumerate(self._times_ns):
            yield self._slice(position, start_ns, duration_ns)
            yield from self._counters(position, start_ns)
        if self._times_ns:  # counters end where the step ends
            start_ns, duration_ns = self._times_ns[-1]
            yield from self._counters(len(self._times_ns) - 1, start_ns + duration_ns)

    @cached_property
    def _times_ns(self) -> list[tuple[int, int]]:
        """Start and duration of each position; whole nanoseconds add up without rounding."""
        found, now_ns = [], 0
        for time_us in self.timeline.times_us:
            duration_ns = max(_SHORTEST_NS, round(time_us * 1e3))
            found.append((now_ns, duration_ns))
            now_ns += duration_ns
        return found

    @cached_property
    def _made(self) -> list[int]:
        """Bytes allocated at each position."""
        made = [0] * len(self.timeline.labels)
        for each in self.timeline.allocations:
            made[each.first] += each.num_bytes
        return made

    @cached_property
    def _places(self) -> dict[str, tuple[str, str]]:
        """Module and source of operations by name, where their allocations have them."""
        return {a.name: (a.module, a.source) for a in self.timeline.allocations if a.source}

    @cached_property
    def _of_forward(self) -> frozenset[str]:
        pairs = zip(self.timeline.labels, self.timeline.phases, strict=True)
        return frozenset(label for label, phase in pairs if phase == "forward")

    def _slice(self, position: int, start_ns: int, duration_ns: int) -> Event:
        label, phase = self.timeline.labels[position], self.timeline.phases[position]
        is_again = phase == "backward" and label != BOUNDARY and label in self._of_forward
        module, source = self._places.get(label, ("", ""))
        return {
            "ph": "X", "name": label, "cat": RECOMPUTED if is_again else phase,
            "ts": start_ns / 1e3, "dur": duration_ns / 1e3, "tid": _THREADS[phase],
            "args": {"bytes": self._made[position], "module": module, "source": source},
        }  # fmt: skip

    @cached_property
    def _by_kind(self) -> dict[str, list[int]]:
        """Bytes alive at each position, by kind."""
        length = len(self.timeline.labels)
        changes: dict[str, list[int]] = {}
        for each in self.timeline.allocations:
            of_kind = changes.setdefault(each.kind, [0] * (length + 1))
            of_kind[each.first] += each.num_bytes
            of_kind[each.last + 1] -= each.num_bytes
        found = {RESIDENT: [self.timeline.base_bytes] * length}
        for kind, of_kind in sorted(changes.items()):
            alive = 0
            found[kind] = [alive := alive + change for change in of_kind[:length]]
        return found

    def _counters(self, position: int, time_ns: int) -> Iterator[Event]:
        by_kind = {kind: alive[position] for kind, alive in self._by_kind.items()}
        counters = {
            "memory by kind": by_kind,
            "memory": {"alive": self.timeline.alive_bytes[position]},
        }
        if self.budget_bytes is not None:
            counters["budget"] = {"budget": self.budget_bytes}
        for name, args in counters.items():
            yield {"ph": "C", "name": name, "ts": time_ns / 1e3, "args": args}


def save_trace(graphs: Sequence[GraphReport], path: str | Path) -> None:
    """Write the trace of these graphs' steps; see ``Report.save_trace``."""
    path = Path(path)
    if path.suffix != ".json":
        raise OptionError(
            f"{path.name!r}: a trace is saved as .json, which Perfetto and chrome://tracing open. "
            f"Use {path.with_suffix('.json').name!r}, for example."
        )
    for graph in graphs:
        if graph.timeline is None:
            raise NotCompiledError(
                f"The report of {graph.name} has no timeline of the step: it was read from data "
                "without one. Save the trace in the process that compiled the graph, or save that "
                "report anew with this version."
            )
    write_whole(path, json.dumps(step_trace(graphs)) + "\n")


def step_trace(graphs: Sequence[GraphReport], with_default: bool = True) -> dict[str, Any]:
    """The trace of these graphs' steps, each from time 0 on, as plain data.

    Args:
        graphs: reports with a timeline.
        with_default: whether the trace has torch's own plan, too.
    """
    processes = []
    for graph in graphs:
        assert graph.timeline is not None
        processes.append(Process(graph.name, graph.timeline, graph.budget_bytes))
        default = graph.default_timeline if with_default else None
        if default is not None:
            name = f"{graph.name}, torch.compile's own plan"
            processes.append(Process(name, default, graph.budget_bytes))
    events = [event for n, process in enumerate(processes, 1) for event in process.events(n)]
    # Python's sort is stable: events at one time keep their order within a process.
    events.sort(key=lambda event: (event["ph"] != "M", event.get("ts", 0)))
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"graphs": [_figures(graph) for graph in graphs]},
    }


def _figures(graph: GraphReport) -> dict[str, Any]:
    """Figures to compare the counters with."""
    assert graph.timeline is not None
    return {
        "name": graph.name,
        "budget_bytes": graph.budget_bytes,
        "predicted_peak_bytes": graph.predicted_peak_bytes,
        "prediction": graph.prediction,
        "simulated_peak_bytes": graph.timeline.peak_bytes,
    }
