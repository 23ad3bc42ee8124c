"""The planned step as a trace: what Perfetto relies on, and the figures in it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

from satcompile.errors import FileError, NotCompiledError, OptionError
from satcompile.report.data import GraphReport, Report
from satcompile.report.memory import default_timeline, plan_timeline
from satcompile.report.timeline import BOUNDARY, Timeline, timeline
from satcompile.report.trace import RECOMPUTED, RESIDENT, step_trace
from satcompile.solver.training.step import (
    Phase,
    Step,
    StepOperation,
    backward_order,
    forward_order,
)
from tests.partitions import planned_tightly
from tests.report.test_report import GIB, MIB, graph
from tests.solver.test_step import steps
from tests.zoo import build


def of_phase(trace: dict[str, Any], phase: str, pid: int = 1) -> list[dict[str, Any]]:
    return [e for e in trace["traceEvents"] if e["ph"] == phase and e["pid"] == pid]


def check_format(trace: dict[str, Any]) -> None:
    """What the trace event format asks for, and what viewers would drop in silence."""
    trace = json.loads(json.dumps(trace, allow_nan=False))
    named: set[tuple[int, int]] = set()
    ends: dict[tuple[int, int], float] = defaultdict(float)
    latest = 0.0
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str) and event["name"]
        assert isinstance(event["pid"], int)
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert latest == 0.0, "names come first"
            named.add((event["pid"], event.get("tid", 0)))
            continue
        assert event["ts"] >= latest, "sorted by time"
        latest = event["ts"]
        if event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(v, int) and v >= 0 for v in event["args"].values())
            assert (event["pid"], 0) in named
            continue
        assert event["ph"] == "X"
        thread = event["pid"], event["tid"]
        assert thread in named
        assert event["dur"] > 0
        assert event["ts"] >= ends[thread] - 1e-9, "slices of a thread do not overlap"
        ends[thread] = event["ts"] + event["dur"]
    assert trace["displayTimeUnit"] in ("ms", "ns")


# -- made by hand ----------------------------------------------------------------------------


@pytest.fixture
def step() -> Timeline:
    """A wide value that is computed again for its gradient."""
    f, b = Phase.FORWARD, Phase.BACKWARD
    operations = [
        StepOperation("wide", (0,), (1,), f),
        StepOperation("narrow", (1,), (2,), f),
        StepOperation("gradient", (1, 3), (4,), b),
    ]
    made = Step(
        operations, [0, 100, 10, 10, 40], frozenset([2]), frozenset(), frozenset([4]),
        frozenset([3]),
    )  # fmt: skip
    return timeline(made, [0, 1], [0, 2], [], [(1.0, 0.5)] * 3, lambda s: (f"s{s}", "m", "f:1"))


def report(step: Timeline, **changed: Any) -> GraphReport:
    resident = {"parameters": 1000, "inputs": 0, "gradients": 0, "optimizer_state": 0}
    fields = {"_timeline": step, "_default_timeline": step, "resident": resident}
    return graph(**{**fields, **changed})


def test_operations_are_slices_on_two_threads(step: Timeline) -> None:
    trace = step_trace([report(step)])
    check_format(trace)
    slices = of_phase(trace, "X")
    assert [(e["name"], e["cat"], e["tid"]) for e in slices] == [
        ("wide", "forward", 1), ("narrow", "forward", 1), (BOUNDARY, "backward", 2),
        ("wide", RECOMPUTED, 2), ("gradient", "backward", 2),
    ]  # fmt: skip
    assert [e["args"]["bytes"] for e in slices] == [100, 10, 10, 100, 40]
    assert [e["ts"] for e in slices] == [0, 1.5, 3.0, 3.001, 4.501]
    assert [e["dur"] for e in slices] == [1.5, 1.5, 0.001, 1.5, 1.5]
    threads = [e["args"]["name"] for e in of_phase(trace, "M") if e["name"] == "thread_name"]
    assert threads == ["forward", "backward"]


def test_memory_is_counted_by_kind_above_what_is_resident(step: Timeline) -> None:
    trace = step_trace([report(step, budget_bytes=2000)])
    counted = of_phase(trace, "C")
    by_kind = [e["args"] for e in counted if e["name"] == "memory by kind"]
    assert by_kind[3] == {
        RESIDENT: 1000, "gradient": 0, "output": 10, RECOMPUTED: 100, "tangent": 10, "temporary": 0,
    }  # fmt: skip
    alive = [e["args"]["alive"] for e in counted if e["name"] == "memory"]
    assert alive == [1100, 1110, 1020, 1120, 1160, 1160]
    assert [sum(kinds.values()) for kinds in by_kind] == alive
    assert {e["args"]["budget"] for e in counted if e["name"] == "budget"} == {2000}
    assert len({e["ts"] for e in counted}) == len(alive)  # none hides another
    without = step_trace([report(step, budget_bytes=None)])
    assert "budget" not in {e["name"] for e in of_phase(without, "C")}


def test_torchs_own_plan_is_a_process_of_its_own(step: Timeline) -> None:
    trace = step_trace([report(step), report(step, name="other [1/0]", _default_timeline=None)])
    check_format(trace)
    names = [
        e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"
    ]  # fmt: skip
    assert names == [
        "forward [0/0]", "forward [0/0], torch.compile's own plan", "other [1/0]",
    ]  # fmt: skip
    assert {e["pid"] for e in step_trace([report(step)], with_default=False)["traceEvents"]} == {1}


@given(steps())
def test_any_step_is_a_valid_trace(made: Any) -> None:
    numbers, saved = made
    found = timeline(
        numbers, forward_order(numbers, saved), backward_order(numbers, saved), saved,
        [(0.0, 1.25)] * len(numbers.operations), lambda s: (f"s{s}", "", ""),
    )  # fmt: skip
    trace = step_trace([report(found)])
    check_format(trace)
    alive = [e["args"]["alive"] for e in of_phase(trace, "C") if e["name"] == "memory"]
    assert alive[:-1] == [1000 + each for each in found.alive_bytes]
    by_kind = [e["args"] for e in of_phase(trace, "C") if e["name"] == "memory by kind"]
    assert [sum(kinds.values()) for kinds in by_kind] == alive


# -- of a real model -------------------------------------------------------------------------


def test_the_highest_count_is_the_simulated_peak(tmp_path: Path) -> None:
    torch.compiler.reset()
    made = planned_tightly(*build("gpt2"), 0.7)
    found = graph(
        predicted_peak_bytes=3 * GIB + MIB + made.plan.profile.peak_bytes, prediction="simulation",
        _timeline=lambda: plan_timeline(made.problem, made.plan),
        _default_timeline=lambda: default_timeline(made.problem, made.plan),
    )  # fmt: skip
    found.save_trace(tmp_path / "step.json")
    trace = json.loads((tmp_path / "step.json").read_text())
    check_format(trace)
    peaks = [
        max(e["args"]["alive"] for e in of_phase(trace, "C", pid) if e["name"] == "memory")
        for pid in (1, 2)
    ]
    assert peaks[0] == found.predicted_peak_bytes
    assert peaks[1] == found.resident_bytes + made.plan.default_profile.peak_bytes
    again = [e for e in of_phase(trace, "X") if e["cat"] == RECOMPUTED]
    assert {e["name"] for e in again} == {n.name for n in made.plan.recomputed}
    assert any(e["args"]["module"].startswith("transformer.h.") for e in again)
    figures = trace["otherData"]["graphs"][0]
    assert figures["simulated_peak_bytes"] == figures["predicted_peak_bytes"] == peaks[0]


# -- files -----------------------------------------------------------------------------------


def test_a_report_saves_all_its_graphs(tmp_path: Path, step: Timeline) -> None:
    Report([report(step), report(step)]).save_trace(tmp_path / "step.json")
    trace = json.loads((tmp_path / "step.json").read_text())
    assert {e["pid"] for e in trace["traceEvents"]} == {1, 2, 3, 4}


@pytest.mark.parametrize("name", ["step.html", "step", "step.pftrace"])
def test_other_endings_are_refused_by_name(tmp_path: Path, step: Timeline, name: str) -> None:
    with pytest.raises(OptionError, match=r"saved as \.json") as raised:
        report(step).save_trace(tmp_path / name)
    assert repr(name) in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_report_without_a_timeline_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotCompiledError, match="has no timeline of the step"):
        graph().save_trace(tmp_path / "step.json")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, step: Timeline) -> None:
    with pytest.raises(FileError, match="could not be written"):
        report(step).save_trace(tmp_path / "no" / "step.json")
