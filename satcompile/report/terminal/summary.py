"""The figures of a graph, in words."""

from __future__ import annotations

from collections.abc import Iterator

from satcompile.report.data import GraphReport
from satcompile.report.terminal.layout import Rows
from satcompile.sizes import format_bytes, format_time


def summary(graph: GraphReport, ask: bool) -> Rows:
    """One line per figure."""
    return Rows("", ("figure", "value"), [*_lines(graph, ask)], has_prose=True, has_header=False)


def budget_text(graph: GraphReport) -> str:
    """The budget in words."""
    if graph.budget_bytes is None:
        return "none: no more memory and no more time than torch.compile's default"
    reserve = f", {format_bytes(graph.reserve_bytes)} of it reserved" if graph.reserve_bytes else ""
    return f"{format_bytes(graph.budget_bytes)}{reserve}"


def device_memory(graph: GraphReport) -> str:
    """Memory that the GPU's allocator had while the peak was measured; "" without a GPU."""
    allocated_bytes, reserved_bytes = graph.measured_allocated_bytes, graph.measured_reserved_bytes
    if allocated_bytes is None or reserved_bytes is None:
        return ""
    return f"{format_bytes(allocated_bytes)} allocated, {format_bytes(reserved_bytes)} reserved"


def _lines(graph: GraphReport, ask: bool) -> Iterator[tuple[str, str]]:
    peak_bytes, measured_bytes = graph.predicted_peak_bytes, graph.measured_peak_bytes
    yield "budget", budget_text(graph)
    yield "predicted peak", f"{format_bytes(peak_bytes)}  (by {graph.prediction})"
    if measured_bytes is not None:
        off = peak_bytes / measured_bytes - 1
        yield "measured peak", f"{format_bytes(measured_bytes)}  (prediction {off:+.2%})"
    given = device_memory(graph)
    if given:
        yield "the process on the GPU", given
    default = graph.default_peak(ask)
    if default is not None:
        default_bytes, how = default
        share = peak_bytes / max(1, default_bytes)
        own = f"{format_bytes(default_bytes)}  (by {how}; ours is {share:.1%})"
        yield "torch.compile's own peak", own
    kinds = ", ".join(f"{k} {format_bytes(v)}" for k, v in graph.resident.items() if v)
    yield "resident before the step", f"{format_bytes(graph.resident_bytes)}  ({kinds})"
    yield "saved for backward", format_bytes(graph.saved_bytes)
    added_us, forward_us = graph.recompute_time_us, graph.forward_time_us
    share = added_us / forward_us if forward_us else 0.0
    forward = f"{share:.1%} of the forward's {format_time(forward_us)} (cost model)"
    yield "time added", f"{format_time(added_us)}, {forward}"
    yield "proven gap", f"{graph.optimality_gap:.3%} of the forward  ({graph.bound_kind})"
