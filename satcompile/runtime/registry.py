"""Which modules and functions compiled graphs belong to, by the tensors passed at run time.

Dynamo gives one compiled graph to several instances of a class. So a graph belongs to every
module whose parameters it was called with, and to the function whose code it compiles.
"""

from __future__ import annotations

import threading
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from satcompile.errors import NotCompiledError
from satcompile.report.data import GraphReport, Report
from satcompile.report.updates import LatestCall
from satcompile.torch_compat.dynamo import original_callable
from satcompile.updates.sparsity.state import SparsityState


class Decision(Protocol):
    """The decision for a graph's latest call."""

    @property
    def report(self) -> GraphReport | None: ...


class GraphRecord:
    """One compiled graph: what it runs now, and the parameters that it served.

    Attributes:
        decided: the decision for the latest call.
        parameters: positions of parameters among the graph's inputs.
        withheld: by position, why the latest call kept a gradient from its optimizer.
        granted: the largest budget in bytes that each share of the default's peak came to.
    """

    def __init__(self, name: str, code: types.CodeType | None, parameters: Sequence[int]) -> None:
        self.name, self.code = name, code
        self.decided: Decision | None = None
        self.parameters = tuple(parameters)
        self.withheld: Mapping[int, str] = {}
        self.granted: dict[float, int] = {}
        self._ends = (parameters[0], parameters[-1]) if parameters else None
        self._served: dict[tuple[int, ...], list[weakref.ref[torch.Tensor]]] = {}
        self._latest: tuple[int, ...] = ()

    @property
    def report(self) -> GraphReport | None:
        return None if self.decided is None else self.decided.report

    def know(self, args: Sequence[Any]) -> None:
        """Note a call's parameters. The first and the last one tell instances apart."""
        self._latest = (id(args[self._ends[0]]), id(args[self._ends[1]])) if self._ends else ()
        if self._latest not in self._served:
            served = [weakref.ref(args[position]) for position in self.parameters]
            self._served[self._latest] = served

    def observe(self, args: Sequence[Any]) -> None:
        """Note a call."""
        ends = self._ends
        if ends is None or self._latest != (id(args[ends[0]]), id(args[ends[1]])):
            self.know(args)
        if _watchers:
            for watcher in _watchers:
                watcher.saw(self)

    def served(self, parameters: set[int]) -> bool:
        return any(id(tensor) in parameters for tensor in self.parameters_served())

    def parameters_served(self) -> list[torch.Tensor]:
        """Served parameters that are alive, in the order in which they came."""
        alive = (reference() for served in self._served.values() for reference in served)
        return [tensor for tensor in alive if tensor is not None]

    def latest_call(self) -> LatestCall:
        """The latest call's parameters, and why gradients were not offered to their optimizer."""
        served = zip(self.parameters, self._served.get(self._latest, ()), strict=False)
        found = ((position, reference()) for position, reference in served)
        alive = {position: tensor for position, tensor in found if tensor is not None}
        return LatestCall(alive, self.withheld)

    def is_of(self, code: types.CodeType) -> bool:
        """Whether the graph is of this code, or of a piece into which Dynamo broke it."""
        if self.code is None:
            return False
        same_place = (self.code.co_filename, self.code.co_firstlineno) == (
            code.co_filename,
            code.co_firstlineno,
        )
        resumed = self.code.co_name.startswith("torch_dynamo_resume_in_")
        return self.code is code or (same_place and (self.code.co_name == code.co_name or resumed))


_records: list[GraphRecord] = []
_watchers: list[StepWatcher] = []
_lock = threading.Lock()


def add(record: GraphRecord) -> None:
    with _lock:
        _records.append(record)


def most_granted_bytes(record: GraphRecord, share: float) -> int:
    """The largest budget that a share came to for this graph's code and parameters, at any sizes;
    0 if none. Dynamo may have made separate graphs for other sizes."""
    parameters = {id(tensor) for tensor in record.parameters_served()}
    with _lock:
        others = [other for other in _records if record.code and other.is_of(record.code)]
    found = [other for other in others if other.served(parameters)]
    return max(each.granted.get(share, 0) for each in (record, *found))


def forget_all() -> None:
    """Drop every record, as ``torch.compiler.reset()`` drops every graph."""
    with _lock:
        _records.clear()


@dataclass(frozen=True)
class Measured:
    """Peaks of memory while something ran.

    Attributes:
        peak_bytes: peak beyond what was alive before.
        allocated_bytes, reserved_bytes: peaks of the whole process on the GPU; None on the CPU.
    """

    peak_bytes: int
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None


class StepWatcher:
    """Collects the graphs that run while a step is measured."""

    def __init__(self) -> None:
        self._ran: dict[int, GraphRecord] = {}

    def saw(self, record: GraphRecord) -> None:
        self._ran[id(record)] = record

    def record(self, measured: Measured) -> None:
        """Put the step's measured peaks into the reports of the graphs that ran in it."""
        for record in self._ran.values():
            report = record.report
            assert report is not None
            report.measured_peak_bytes = report.resident_bytes + measured.peak_bytes
            report.measured_allocated_bytes = measured.allocated_bytes
            report.measured_reserved_bytes = measured.reserved_bytes


@contextmanager
def observing_steps() -> Iterator[StepWatcher]:
    watcher = StepWatcher()
    _watchers.append(watcher)
    try:
        yield watcher
    finally:
        _watchers.remove(watcher)


def report(compiled: Any = None) -> Report:
    """Report what the backend decided for ``compiled``.

    Args:
        compiled: what ``torch.compile`` returned, a module with ``.compile()``, or the function
            that was compiled; None for every training graph of the process.

    Raises:
        NotCompiledError: no training graph of it was compiled by this backend.
    """
    with _lock:
        records = [record for record in _records if record.report is not None]
    if compiled is not None:
        records = [record for record in records if _belongs(record, compiled)]
    if not records:
        raise NotCompiledError(_nothing_compiled(compiled))
    return Report([record.report for record in records if record.report is not None])


def sparsity_state(compiled: Any) -> SparsityState:
    """Masks, scores and step of ``compiled``, to inspect, to save, and to resume from.

    Args:
        compiled: what ``torch.compile`` returned for a module, the module itself, or a function
            that was compiled. A function's parameters are called "0", "1", ... in the graph's
            order.

    Raises:
        NotCompiledError: no graph of the function was compiled.
    """
    if isinstance(compiled, torch.nn.Module):
        original = getattr(compiled, "_orig_mod", compiled)
        return SparsityState(dict(original.named_parameters()))
    found = parameters_of(compiled)
    if not found:
        raise NotCompiledError(
            "sparsity_state needs a module, or a function that backend='sat' has compiled: run a "
            "forward with gradients first."
        )
    return SparsityState({str(number): parameter for number, parameter in enumerate(found)})


def parameters_of(compiled: Any) -> list[torch.Tensor]:
    """Parameters with which the graphs of ``compiled`` were called, each once."""
    with _lock:
        records = [record for record in _records if _belongs(record, compiled)]
    found = {id(p): p for record in records for p in record.parameters_served()}
    return list(found.values())


def _belongs(record: GraphRecord, compiled: Any) -> bool:
    if isinstance(compiled, torch.nn.Module):
        original = getattr(compiled, "_orig_mod", compiled)
        parameters = {id(p) for p in original.parameters()}
        if parameters:
            return record.served(parameters)
        compiled = original.forward
    original = original_callable(compiled)
    code = getattr(getattr(original, "__func__", original), "__code__", None)
    return code is not None and record.is_of(code)


def _nothing_compiled(compiled: Any) -> str:
    if compiled is None:
        return (
            "No training graph was compiled with backend='sat' in this process yet. Run a forward "
            "with gradients first; under no_grad there is no backward to plan."
        )
    name = getattr(compiled, "__name__", type(compiled).__name__)
    return (
        f"No training graph of {name} was compiled with backend='sat'. Compile it with "
        "torch.compile(..., backend='sat') and run a forward with gradients first; "
        "satcompile.report() without an argument shows every graph of the process."
    )
