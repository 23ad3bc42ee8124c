"""Messages about a new plan, in torch's own channels.

The log ``satcompile`` gets a line at INFO, which ``TORCH_LOGS=satcompile`` shows (with a plus in
front, also passes and rounds at DEBUG). Torch's structured trace (``TORCH_TRACE``) gets the report
and the graphs, or the reason for having no plan, as files. tlparse lists them under the
compilation's id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from satcompile.compile.rounds import Compilation
from satcompile.errors import BudgetError
from satcompile.report.data import GraphReport, Report
from satcompile.report.terminal import render
from satcompile.report.trace import step_trace
from satcompile.runtime.plan_in_use import PlanInUse
from satcompile.sizes import format_bytes
from satcompile.torch_compat.tracing import is_tracing, trace_artifact

log = logging.getLogger("satcompile")

REFUSED = ("budget_bytes", "floor_bytes", "floor_op", "breakdown")  # of the error, as traced


def tell(plan: PlanInUse, compilation: Compilation, make_report: Callable[[], GraphReport]) -> None:
    """Log and trace a plan, once. The report is made only if the log or the trace is on, and
    nothing is planned or generated for it."""
    if plan.is_told:
        return
    plan.is_told = True
    is_traced = is_tracing()
    if not (is_traced or log.isEnabledFor(logging.INFO)):
        return
    report = make_report()
    with compilation.named():
        log.info("%s", decision(report))
        if is_traced:
            _trace(report, plan)


@contextmanager
def refusals(compilation: Compilation) -> Iterator[None]:
    """Log and trace the error for a budget that no plan keeps."""
    try:
        yield
    except BudgetError as error:
        said = {"message": str(error)} | {name: getattr(error, name) for name in REFUSED}
        with compilation.named():
            log.info("%s", error)
            trace_artifact("satcompile_refused", "json", lambda: said)
        raise


def decision(report: GraphReport) -> str:
    """A graph's plan in one line."""
    budget = "no budget"
    if report.budget_bytes is not None:
        budget = f"budget {format_bytes(report.budget_bytes)}"
    forward_us = report.forward_time_us
    added = report.recompute_time_us / forward_us if forward_us else 0.0
    rounds = f"{report.rounds} compilation{'s' if report.rounds != 1 else ''}"
    return (
        f"{report.name}: {budget}, predicted peak {format_bytes(report.predicted_peak_bytes)} (by "
        f"{report.prediction}), time added {added:.1%} of the forward (cost model), "
        f"{len(report.saved)} values saved, {len(report.recomputed)} recomputed, {rounds}"
    )


def _trace(report: GraphReport, plan: PlanInUse) -> None:
    alone = Report([report])
    trace_artifact("satcompile_report", "json", lambda: alone.to_dict(ask=False))
    trace_artifact("satcompile_report", "string", lambda: render(alone, ask=False))
    trace_artifact("satcompile_step", "json", lambda: step_trace([report], with_default=False))
    for name, text in plan.generated.texts.items():
        trace_artifact(f"satcompile_{name}", "string", partial(str, text))
