"""``satcompile.plan``: what the backend would decide for a training step, without running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import fx

from satcompile import options as option_reader
from satcompile.commands.forecast.batches import LargestBatch, largest_batch
from satcompile.commands.forecast.states import Optimizer, state_bytes
from satcompile.commands.forecast.trace import trace, trace_batches
from satcompile.compile import pipeline
from satcompile.compile.planning import fused_update, may_chunk, problem_of, recompute_of
from satcompile.compile.rounds import AUTO_MARGIN, first_limits, trained_positions
from satcompile.errors import OptionError, UnsupportedError
from satcompile.graph.capture import Capture
from satcompile.graph.devices import graph_device
from satcompile.graph.training_graph import TrainingGraph, storage_bytes
from satcompile.options import Options
from satcompile.passes.fused_update import FusedUpdate
from satcompile.planner.cost.device import Device, device_named, device_of
from satcompile.planner.curve import CurvePoint, curve
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.request import Request, Subject
from satcompile.planner.retention import RetentionPlan
from satcompile.planner.searches import Searches, default_saved_nodes
from satcompile.report.data import GraphReport, PassRow, Report
from satcompile.report.memory import default_timeline, plan_timeline
from satcompile.report.rows import recomputed_rows, saved_rows
from satcompile.runtime.residency import Residency, measure_residency
from satcompile.solver.training.search import BudgetSearch


def plan(
    fn: Callable[..., Any],
    *inputs: Any,
    memory_budget: int | str | None = None,
    device: str | Device | None = None,
    optimizer: Optimizer = None,
    in_backward: bool = False,
    reserve: int | str = 0,
    solver_effort: int = 1_000,
    disable_passes: Sequence[str] = (),
    **keyword_inputs: Any,
) -> Plan:
    """What ``backend="sat"`` would decide for a step of ``fn(*inputs, **keyword_inputs)``.

    Nothing is executed and no GPU is needed: the step is traced on fake tensors and planned for the
    device by its rates. Peaks are simulated. The backend starts from the same peaks before code is
    generated; ``benchmarks.planned`` compares them with measured ones.

    Args:
        fn: a module or function whose output requires gradients. Its tensors, and the inputs, may
            be real or fake (``satcompile.fake_tensors``); a model on fake tensors takes no memory.
        memory_budget: as for the backend: an int, "24GiB", "60% of default"; "auto" is the memory
            of the device less a margin for context and fragmentation. None plans for no budget.
        device: a name of the table ("H200", "RTX 4090", "cpu"); None for that of the tensors.
        optimizer: whose state will be alive: a class of torch.optim, its name, or an optimizer;
            None counts the state of optimizers that hold the parameters now.
        in_backward: whether its step is to run inside the backward, which consumes gradients.
        reserve: bytes of the budget to keep free.
        solver_effort, disable_passes: as for the backend.

    Raises:
        UnsupportedError: the step cannot be captured as one graph, or not with ``in_backward``.
        OptionError: an argument cannot be honoured.
    """
    asked: dict[str, Any] = {
        "memory_budget": memory_budget,
        "reserve": reserve,
        "solver_effort": solver_effort,
        "disable_passes": list(disable_passes),
    }
    options = option_reader.parse(asked)
    target = device_named(device) if isinstance(device, str) else device
    capture = trace(fn, inputs, keyword_inputs, target or device_of(_first_device(fn, inputs)))
    target = target or device_of(graph_device(capture.graph.module))
    planner = _Planner(fn, inputs, keyword_inputs, capture, target, optimizer, in_backward, options)
    return planner.plan()


def _first_device(fn: Any, inputs: Sequence[Any]) -> torch.device:
    own = list(fn.parameters()) if isinstance(fn, torch.nn.Module) else []
    for value in (*own, *inputs):
        if isinstance(value, torch.Tensor):
            return value.device
    return torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """A planned training step. Sizes in bytes, times in microseconds by the cost model.

    Attributes:
        device: the device that it is planned for.
        budget_bytes: the requested budget as a number, reserve included; None without a budget.
        reserve_bytes: of the budget, to be kept free.
        resident: alive before the step, by kind: parameters (and buffers), inputs, gradients that
            are set, optimizer_state, workspaces of a GPU's matrix products.
        gradients_bytes: of the gradients that the backward returns, together.
        activations_bytes: kept from forward to backward by torch.compile's own plan.
        default_peak_bytes: of torch.compile's own plan.
        predicted_peak_bytes: of the plan; of the lowest plan if none is within the budget.
        saved_bytes: kept from forward to backward by the plan.
        forward_time_us, backward_time_us: of the step without recomputation.
        recompute_time_us: the time that the plan adds.
        optimality_gap: share of the forward's time by which the plan may exceed the optimum of the
            class that ``bound_kind`` names.
        passes: what each pass did.
    """

    device: Device
    budget_bytes: int | None
    reserve_bytes: int
    resident: Mapping[str, int]
    gradients_bytes: int
    activations_bytes: int
    default_peak_bytes: int
    predicted_peak_bytes: int
    saved_bytes: int
    forward_time_us: float
    backward_time_us: float
    recompute_time_us: float
    optimality_gap: float
    bound_kind: str
    passes: Sequence[PassRow]
    _planner: _Planner = field(repr=False, compare=False)
    _decision: pipeline.Decision = field(repr=False, compare=False)

    @property
    def fits(self) -> bool:
        """Whether the predicted peak is within the budget, reserve kept."""
        room = None if self.budget_bytes is None else self.budget_bytes - self.reserve_bytes
        return room is None or self.predicted_peak_bytes <= room

    @property
    def resident_bytes(self) -> int:
        return sum(self.resident.values())

    @cached_property
    def floor_bytes(self) -> int:
        """The smallest peak for which a plan was found."""
        return self.resident_bytes + self._planner.lowest_bytes(self._decision)

    @cached_property
    def least_peak_bytes(self) -> int:
        """Proven: no plan of the class that ``bound_kind`` names has a lower peak for the graph as
        it was planned (a vocabulary in chunks is another graph)."""
        search = self._planner.search(self._decision.problem, self._decision.plan)
        return self.resident_bytes + search.least_peak_bytes

    @cached_property
    def curve(self) -> tuple[CurvePoint, ...]:
        """Peaks against added time, lowest peak first; peaks include resident bytes."""
        decision = self._decision
        points = curve(
            decision.problem,
            self._planner.options.solver_effort,
            decision.plan,
            self._planner.search(decision.problem, decision.plan),
            decision.chunking_us,
        )
        return tuple(point.above(self.resident_bytes) for point in points)

    @cached_property
    def largest_batch(self) -> LargestBatch:
        """The largest batches whose peaks are within the budget, by torch's own plan and by ours;
        within the device's memory, less a margin, where there is no budget."""
        return self._planner.largest_batch(self.budget_bytes, self.reserve_bytes)

    @cached_property
    def report(self) -> Report:
        """The plan as a report, in the form of the backend's reports."""
        return Report([self._planner.report(self, self._decision)])

    def __str__(self) -> str:
        from satcompile.commands.forecast.show import render

        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; ``curve`` and ``largest_batch``, which are slow, only if computed already."""
        names = (
            "budget_bytes", "reserve_bytes", "gradients_bytes", "activations_bytes",
            "default_peak_bytes", "predicted_peak_bytes", "saved_bytes", "forward_time_us",
            "backward_time_us", "recompute_time_us", "optimality_gap", "bound_kind", "fits",
            "resident_bytes", "floor_bytes", "least_peak_bytes",
        )  # fmt: skip
        found: dict[str, Any] = {"format": 1, "device": self.device.name}
        found |= {name: getattr(self, name) for name in names}
        found["resident"] = dict(self.resident)
        found["passes"] = [row.to_dict() for row in self.passes]
        if "curve" in self.__dict__:
            found["curve"] = [point.to_dict() for point in self.curve]
        if "largest_batch" in self.__dict__:
            found["largest_batch"] = self.largest_batch.to_dict()
        return found

    def save(self, path: str | Path) -> None:
        """Write the plan's report: a page (``.html``) or data (``.json``); see ``Report.save``."""
        self.report.save(path)


class _Planner:
    """Makes the plan of a step, and more plans of the same step."""

    def __init__(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        capture: Capture,
        device: Device,
        optimizer: Optimizer,
        in_backward: bool,
        options: Options,
    ) -> None:
        self._call = fn, args, kwargs
        self.capture, self.device, self.options = capture, device, options
        self._in_backward, self._optimizer = in_backward, optimizer
        self.residency = self._residency(capture)
        self._searches = Searches()
        self._lowest_bytes: int | None = None

    def plan(self) -> Plan:
        problem = self.problem(self.capture)
        default = recompute_of(self._request(), self._searches).run(problem)
        resident_bytes = self.residency.total_bytes
        default_bytes = resident_bytes + default.default_profile.peak_bytes
        budget_bytes = self._budget_bytes(default_bytes)
        decision = self._decide(problem, budget_bytes)
        chosen, whole = decision.plan, decision.whole
        forward_us = whole.forward_time_us
        return Plan(
            device=self.device,
            budget_bytes=budget_bytes,
            reserve_bytes=self.options.reserve,
            resident=self.residency.by_kind,
            gradients_bytes=_gradients_bytes(self.capture.graph),
            activations_bytes=chosen.default_profile.saved_bytes,
            default_peak_bytes=default_bytes,
            predicted_peak_bytes=resident_bytes + chosen.profile.peak_bytes,
            saved_bytes=chosen.profile.saved_bytes,
            forward_time_us=forward_us,
            backward_time_us=whole.step_time_us - forward_us,
            recompute_time_us=chosen.time_us + decision.chunking_us,
            optimality_gap=(chosen.time_us - chosen.bound_us) / max(forward_us, 1e-9),
            bound_kind=chosen.bound_kind,
            passes=[PassRow(p.name, p.time_us, p.changed, p.change) for p in decision.passes],
            _planner=self,
            _decision=decision,
        )

    def problem(self, capture: Capture) -> PlanningProblem:
        updates = fused_update(capture.graph, self._request(capture))
        return problem_of(capture.graph, self.device, updates, tries_operators=False)

    def _request(self, capture: Capture | None = None, **limits: Any) -> Request:
        """The request for the step, or for another capture of it."""
        capture = self.capture if capture is None else capture
        trained = frozenset(trained_positions(capture.inputs))
        updates = frozenset[int]()
        if self._in_backward and FusedUpdate.name not in self.options.disable_passes:
            _check_positions(capture)
            updates = trained
        subject = Subject(len(capture.inputs), trained=trained)
        return Request(self.options, subject, updates=updates, **limits)

    def search(self, problem: PlanningProblem, chosen: RetentionPlan) -> BudgetSearch:
        nodes = default_saved_nodes(problem, chosen.default_saved)
        return self._searches.of(problem, self.options.solver_effort, nodes)

    def lowest_bytes(self, decision: pipeline.Decision) -> int:
        """Peak of the lowest plan of the graph, whole or in chunks; it does not depend on the
        request."""
        if self._lowest_bytes is None:
            lowest = self._run(decision.whole, self._request(limit_bytes=0, lowest_peak=True))
            self._lowest_bytes = lowest.plan.profile.peak_bytes
        return self._lowest_bytes

    def largest_batch(self, budget_bytes: int | None, reserve_bytes: int) -> LargestBatch:
        if budget_bytes is None:
            budget_bytes = _auto_bytes(self.device)
        fn, args, kwargs = self._call
        step = trace_batches(fn, args, kwargs, self.device)
        return largest_batch(
            step, self.problem, self._residency, budget_bytes - reserve_bytes, self.options
        )

    def report(self, made: Plan, decision: pipeline.Decision) -> GraphReport:
        chosen, problem = decision.plan, decision.problem
        return GraphReport(
            name="the planned step",
            budget_bytes=made.budget_bytes,
            reserve_bytes=made.reserve_bytes,
            resident=dict(made.resident),
            predicted_peak_bytes=made.predicted_peak_bytes,
            prediction="simulation",
            saved_bytes=made.saved_bytes,
            forward_time_us=made.forward_time_us,
            recompute_time_us=made.recompute_time_us,
            optimality_gap=made.optimality_gap,
            bound_kind=made.bound_kind,
            saved=saved_rows(problem, chosen),
            recomputed=recomputed_rows(chosen),
            passes=list(made.passes),
            notes=[f"planned for {self.device.name}, not run", *self.residency.notes],
            _floor=lambda: made.floor_bytes - made.resident_bytes,
            _least=lambda: made.least_peak_bytes - made.resident_bytes,
            _default=lambda: (made.default_peak_bytes - made.resident_bytes, "simulation"),
            _curve=lambda: tuple(point.above(-made.resident_bytes) for point in made.curve),
            _timeline=lambda: plan_timeline(problem, chosen),
            _default_timeline=lambda: default_timeline(decision.whole, chosen),
        )

    def _decide(self, problem: PlanningProblem, budget_bytes: int | None) -> pipeline.Decision:
        if budget_bytes is None:
            return self._run(problem, self._request())
        accept_bytes = budget_bytes - self.options.reserve - self.residency.total_bytes
        limit_bytes, default_within_bytes = first_limits(max(accept_bytes, 0))
        request = self._request(limit_bytes=limit_bytes, default_within_bytes=default_within_bytes)
        return self._run(problem, request)

    def _run(self, problem: PlanningProblem, request: Request) -> pipeline.Decision:
        recompute = recompute_of(request, self._searches)
        return pipeline.decide(problem, recompute, may_chunk=may_chunk(request))

    def _budget_bytes(self, default_bytes: int) -> int | None:
        asked = self.options.memory_budget
        if asked is None or asked.num_bytes is not None:
            return None if asked is None else asked.num_bytes
        return int(asked.share * default_bytes) if asked.share else _auto_bytes(self.device)

    def _residency(self, capture: Capture) -> Residency:
        found = measure_residency(capture.inputs, with_optimizers=self._optimizer is None)
        found = replace(found, workspaces=self.device.workspace_bytes)
        if self._optimizer is None:
            return found
        trained = [capture.inputs[i] for i in trained_positions(capture.inputs)]
        return replace(found, optimizer_state=state_bytes(self._optimizer, trained))


def _auto_bytes(device: Device) -> int:
    if device.memory_bytes is None:
        raise OptionError(
            f"How much memory there is on {device.name!r} is not known: give a memory_budget in "
            'bytes, such as "16GiB".'
        )
    return int(device.memory_bytes * (1 - AUTO_MARGIN))


def _check_positions(capture: Capture) -> None:
    """Raises:
    UnsupportedError: it is not known which gradients are those of parameters.
    """
    graph = capture.graph
    if len(graph.primals) != len(capture.inputs):
        raise UnsupportedError(
            "in_backward cannot be planned for this step: some of its inputs are tensor subclasses "
            f"that torch takes apart ({len(capture.inputs)} inputs are {len(graph.primals)} tensors "
            "of the graph), so it is not known which gradients are those of parameters. Plan "
            "without in_backward: the plan then holds every gradient, which is an upper bound."
        )


def _gradients_bytes(graph: TrainingGraph) -> int:
    static = set(graph.static_inputs)
    results = zip(graph.primals, graph.backward_outputs, strict=False)
    return sum(
        storage_bytes(result.meta["val"])
        for position, (_, result) in enumerate(results)
        if isinstance(result, fx.Node) and (position in static or not static)
    )
