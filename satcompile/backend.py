"""The entry point: from ``torch.compile``'s call to a compiled callable within its budget.

The only place that binds run-time tensors: what is resident, which parameters a graph served,
and the sizes for which a plan holds.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from satcompile import torch_compat
from satcompile.errors import BudgetError, SatcompileError, UnsupportedError
from satcompile.guard import SizeGuard
from satcompile.inductor import Attempt, CodeOnly, OverLimit, graph_device
from satcompile.options import Options, parse, refuse_mode
from satcompile.passes.recompute import budget_search
from satcompile.report import registry
from satcompile.report.data import GraphReport, PassRow
from satcompile.report.rows import module_path, recomputed_rows, saved_rows
from satcompile.report.terminal import format_bytes
from satcompile.residency import Residency, measure_residency

log = logging.getLogger("satcompile")

_ROUNDS = 4  # of tightening; the last one takes the plan with the lowest peak
_MARGIN = 0.02  # of the first round's limit: the simulation is that close to generated code
_UNSEEN = 0.03  # share of a plan's peak from which on the simulation is not good enough
_AUTO_MARGIN = 0.08  # of free memory: context, fragmentation, other processes


def sat(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, options: Any = None, mode: Any = None
) -> Callable[..., Any]:
    """The backend that ``torch.compile(..., backend="sat")`` calls with each captured graph.

    Args:
        gm: Dynamo's graph.
        example_inputs: its inputs; parameters arrive as real ``torch.nn.Parameter``.
        options: see ``satcompile.options.Options``.
        mode: refused by name.

    Raises:
        OptionError, UnsupportedError, BudgetError, VerificationError.
    """
    try:
        refuse_mode(mode)
        _refuse_settings()
        return _Compilation(gm, example_inputs, parse(options)).run()
    except SatcompileError as error:
        error.first_useful_frame = sys._getframe()  # the user's traceback ends here, not in torch
        if not torch_compat.suppress_errors_enabled():
            raise
        # Dynamo would swallow this and run eager. What a graph raises when it runs it does
        # not swallow, so the refusal waits there.
        return _raising(error)


def _raising(error: SatcompileError) -> Callable[..., Any]:
    def refused(*args: Any) -> Any:
        raise error

    return refused


def _refuse_settings() -> None:
    if torch_compat.suppress_errors_enabled():
        raise UnsupportedError(
            "torch._dynamo.config.suppress_errors is on: an error of the compiler, a BudgetError "
            "too, would silently run the model uncompiled. Set it to False to use backend='sat'."
        )
    if torch_compat.compiled_autograd_enabled():
        raise UnsupportedError(
            "Compiled autograd is on: it traces the backward again and drops what backend='sat' "
            "planned for it. Turn it off (torch._dynamo.config.compiled_autograd = False)."
        )
    if torch_compat.activation_budget() != 1:
        raise UnsupportedError(
            "torch._functorch.config.activation_memory_budget is "
            f"{torch_compat.activation_budget()}: torch's own budget and backend='sat' would both "
            "decide what is saved. Set it to 1 and use options={'memory_budget': ...}."
        )


class _Compilation:
    """One graph of Dynamo's, compiled once or, where a budget asks for it, several times."""

    def __init__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> None:
        self.gm, self.inputs, self.options = gm, list(example_inputs), options
        self.residency: Residency = measure_residency(self.inputs)
        self.rounds = 0
        self._default: Attempt | None = None

    def run(self) -> Callable[..., Any]:
        budget_bytes = self._budget_bytes()
        if budget_bytes is None:
            attempt = Attempt(self.options)
            compiled = attempt.compile(self.gm, self.inputs)
            self.rounds = 1
        else:
            attempt, compiled = self._within(budget_bytes)
        if not attempt.is_training:
            return compiled  # an inference graph: nothing is saved, nothing to plan
        _warn_of_recompile_limit()
        record = self._record(attempt, budget_bytes)
        guard = SizeGuard.of(attempt, self.inputs, self._step_limit(budget_bytes), budget_bytes)
        return _bound(compiled, record, guard)

    # -- the budget ------------------------------------------------------------------------

    def _budget_bytes(self) -> int | None:
        asked = self.options.memory_budget
        if asked is None:
            return None
        if asked.num_bytes is not None:
            return asked.num_bytes
        if asked.auto:
            free_bytes = _free_bytes(graph_device(self.gm))
            return self.residency.total_bytes + int(free_bytes * (1 - _AUTO_MARGIN))
        assert asked.share is not None
        default = self._code_of_default()
        if not default.is_training:
            return None
        return int(asked.share * (self.residency.total_bytes + default.step_peak_bytes))

    def _step_limit(self, budget_bytes: int | None) -> int | None:
        if budget_bytes is None:
            return None
        return budget_bytes - self.options.reserve - self.residency.total_bytes

    def _code_of_default(self) -> Attempt:
        """Torch's own plan, generated but not compiled: its peak to the byte."""
        if self._default is None:
            self._default = Attempt(self.options, dry=True)
            self._try(self._default)
        return self._default

    def _try(self, attempt: Attempt) -> Any:
        """The compiled callable, or None where the attempt ended early."""
        try:
            return attempt.compile(copy.deepcopy(self.gm), self.inputs)
        except (OverLimit, CodeOnly):
            return None

    def _within(self, budget_bytes: int) -> tuple[Attempt, Any]:
        """Compile until the generated code is within the budget.

        Each round tightens the limit of the simulated peak by what the code was over; the
        last takes the plan with the lowest peak.

        Raises:
            BudgetError: that plan, too, is over.
        """
        accept = self._step_limit(budget_bytes)
        assert accept is not None
        limit = accept - int(_MARGIN * max(accept, 0))
        lowest = accept <= 0
        while True:
            self.rounds += 1
            lowest = lowest or self.rounds >= _ROUNDS
            attempt = Attempt(
                self.options, max(limit, 0), accept, lowest_peak=lowest, dry=accept <= 0
            )
            compiled = self._try(attempt)
            if not attempt.is_training:
                return attempt, compiled  # no backward: nothing to plan, and dry runs do not stop
            if attempt.step_peak_bytes <= accept and compiled is not None:
                return attempt, compiled
            if lowest:
                raise self._over_budget(budget_bytes, attempt)
            assert attempt.outcome is not None
            over = attempt.step_peak_bytes - accept
            log.info("round %d: generated code is %s over", self.rounds, format_bytes(over))
            lowest = attempt.outcome.plan.profile.peak_bytes > limit
            limit -= max(over, 1)

    def _over_budget(self, budget_bytes: int, attempt: Attempt) -> BudgetError:
        assert attempt.outcome is not None and attempt.problem is not None
        assert self.options.memory_budget is not None
        resident, plan = self.residency, attempt.outcome.plan
        floor_bytes = resident.total_bytes + self.options.reserve + attempt.step_peak_bytes
        where = _describe_operation(attempt, plan.profile.peak_label)
        kinds = {
            "parameters and buffers": resident.parameters,
            "gradients already set": resident.gradients,
            "optimizer state": resident.optimizer_state,
            "inputs": resident.inputs,
            "reserve": self.options.reserve,
            "allocated by the step": attempt.step_peak_bytes,
        }
        parts = ", ".join(f"{format_bytes(v)} {k}" for k, v in kinds.items() if v)
        return BudgetError(
            f"memory_budget {self.options.memory_budget.text!r} ({format_bytes(budget_bytes)}) is "
            f"below the floor of {format_bytes(floor_bytes)} ({floor_bytes} bytes): {parts}. The "
            f"step's peak lies at {where}. Raise the budget to the floor or above, or lower the "
            "batch size or sequence length.",
            budget_bytes=budget_bytes,
            floor_bytes=floor_bytes,
            floor_op=where,
        )

    # -- the report ------------------------------------------------------------------------

    def _record(self, attempt: Attempt, budget_bytes: int | None) -> registry.GraphRecord:
        assert attempt.outcome is not None and attempt.problem is not None
        plan, problem = attempt.outcome.plan, attempt.problem
        resident = self.residency.total_bytes
        predicted = resident + attempt.step_peak_bytes
        prediction = "generated code" if attempt.walk is not None else "simulation"
        default, default_prediction = predicted, prediction
        if not plan.is_default:
            default, default_prediction = self._default_peak(attempt)
        search = budget_search(problem, self.options.solver_effort)
        most = plan.default_profile.saved_bytes
        forward_us = problem.forward_time_us
        # What the simulation did not see in this plan, it will not have seen in the lowest one.
        unseen_bytes = max(0, attempt.step_peak_bytes - plan.profile.peak_bytes)
        notes = list(self.residency.notes)
        if attempt.unreadable:
            notes.append(f"the generated code could not be followed: {attempt.unreadable}")
        report = GraphReport(
            name=_graph_name(),
            budget_bytes=budget_bytes,
            reserve_bytes=self.options.reserve,
            resident={
                "parameters": self.residency.parameters,
                "inputs": self.residency.inputs,
                "gradients": self.residency.gradients,
                "optimizer_state": self.residency.optimizer_state,
            },
            predicted_peak_bytes=predicted,
            prediction=prediction,
            default_peak_bytes=default,
            default_prediction=default_prediction,
            saved_bytes=attempt.walk.saved_bytes if attempt.walk else plan.profile.saved_bytes,
            forward_time_us=forward_us,
            recompute_time_us=plan.time_us,
            optimality_gap=(plan.time_us - plan.bound_us) / forward_us if forward_us else 0.0,
            bound_kind=plan.bound_kind,
            saved=saved_rows(problem, plan),
            recomputed=recomputed_rows(plan),
            passes=[PassRow(p.name, p.time_us, p.changed) for p in attempt.outcome.passes],
            rounds=self.rounds,
            notes=notes,
            _floor=lambda: search.floor(most).profile.peak_bytes + unseen_bytes,
        )
        parameters = [i for i, v in enumerate(self.inputs) if isinstance(v, torch.nn.Parameter)]
        record = registry.GraphRecord(report, torch_compat.current_frame_code(), parameters)
        if budget_bytes is not None and registry.has_other_graphs(record):
            report.notes.append(_GRAPH_BREAK_NOTE)
            log.warning("%s: %s", report.name, _GRAPH_BREAK_NOTE)
        registry.add(record)
        return record

    def _default_peak(self, attempt: Attempt) -> tuple[int, str]:
        assert attempt.outcome is not None
        resident = self.residency.total_bytes
        if self._default is not None and self._default.walk is not None:
            return resident + self._default.step_peak_bytes, "generated code"
        plan = attempt.outcome.plan
        unseen_bytes = attempt.step_peak_bytes - plan.profile.peak_bytes
        if unseen_bytes > _UNSEEN * plan.profile.peak_bytes and self._code_of_default().walk:
            return resident + self._code_of_default().step_peak_bytes, "generated code"
        return resident + plan.default_profile.peak_bytes, "simulation"


_GRAPH_BREAK_NOTE = (
    "the model compiles to several graphs (graph breaks), and the budget is held by each graph on "
    "its own: what earlier graphs keep for their backward comes on top"
)


def _bound(
    compiled: Callable[..., Any], record: registry.GraphRecord, guard: SizeGuard | None
) -> Callable[..., Any]:
    """The callable that Dynamo calls: notes whom it serves, and checks sizes under a budget."""
    if guard is None:

        def run(*args: Any) -> Any:
            record.observe(args)
            return compiled(*args)

        return run

    def run_guarded(*args: Any) -> Any:
        guard.check(args)
        record.observe(args)
        return compiled(*args)

    return run_guarded


def _describe_operation(attempt: Attempt, name: str) -> str:
    assert attempt.problem is not None
    for node in attempt.problem.operations:
        if node.name == name:
            module = module_path(node)
            return f"{name} ({node.target}){f' in {module}' if module else ''}"
    return name or "the start of the step"


def _graph_name() -> str:
    compile_id, code = torch_compat.current_compile_id(), torch_compat.current_frame_code()
    where = (
        f"{code.co_qualname if hasattr(code, 'co_qualname') else code.co_name}" if code else "graph"
    )
    return f"{where} [{compile_id[0]}]" if compile_id else where


def _warn_of_recompile_limit() -> None:
    compile_id = torch_compat.current_compile_id()
    if compile_id is not None and compile_id[1] + 1 >= compile_id[2]:
        log.warning(
            "This is compilation %d of this code; at Dynamo's recompile_limit of %d, further "
            "inputs run uncompiled, outside any budget. Raise torch._dynamo.config."
            "recompile_limit, or pass dynamic=True.",
            compile_id[1] + 1,
            compile_id[2],
        )


def _free_bytes(device: torch.device) -> int:
    """Free memory of the device. On the CPU, physical memory that is not in use at all."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
