"""A plan as text for a terminal."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from satcompile.commands.forecast.batches import LargestBatch
from satcompile.sizes import format_bytes, format_time

if TYPE_CHECKING:
    from satcompile.commands.forecast.estimate import Plan

_WIDTH = 100
_MANY_FORWARDS = 2  # above this, a factor reads better than a percentage


def render(plan: Plan) -> str:
    """Plain text of a plan, without slow parts that were not asked for."""
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, color_system=None, highlight=False)
    show(plan, console)
    return out.getvalue().rstrip() + "\n"


def show(plan: Plan, console: Console) -> None:
    """Print the parts of a plan that are known."""
    for part in _parts(plan):
        console.print(part)


def _parts(plan: Plan) -> list[RenderableType]:
    parts: list[RenderableType] = [_memory(plan), "", _decision(plan)]
    if "curve" in plan.__dict__:
        parts += ["", _curve(plan)]
    if "largest_batch" in plan.__dict__:
        parts += ["", _batch(plan.largest_batch)]
    if not plan.fits:
        assert plan.budget_bytes is not None
        parts += ["", _too_little(plan)]
    return parts


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    return table


def _memory(plan: Plan) -> Table:
    table = _table("memory of a step")
    resident = plan.resident
    table.add_row("parameters and buffers", format_bytes(resident["parameters"]))
    table.add_row("gradients", format_bytes(plan.gradients_bytes), "appear in the backward")
    table.add_row("optimizer state", format_bytes(resident["optimizer_state"]))
    if resident["workspaces"]:
        table.add_row("workspaces", format_bytes(resident["workspaces"]), "of matrix products")
    table.add_row("inputs", format_bytes(resident["inputs"]))
    table.add_row(
        "activations", format_bytes(plan.activations_bytes), "kept by torch.compile's own plan"
    )
    table.add_row("peak of torch.compile", format_bytes(plan.default_peak_bytes), "its own plan")
    table.add_row(
        "floor", format_bytes(plan.floor_bytes),
        f"lowest found; none is below {format_bytes(plan.least_peak_bytes)}",
    )  # fmt: skip
    return table


def _decision(plan: Plan) -> Table:
    device = plan.device
    table = _table(f"the plan for {escape(device.name)}")
    known = format_bytes(device.memory_bytes) if device.memory_bytes else ""
    table.add_row("the device's memory", known, escape(device.source))
    if not device.is_validated:
        table.add_row("", "", "no measurement on it was compared yet")
    budget = "none" if plan.budget_bytes is None else format_bytes(plan.budget_bytes)
    reserve = f"{format_bytes(plan.reserve_bytes)} of it kept free" if plan.reserve_bytes else ""
    table.add_row("budget", budget, reserve)
    verdict = "" if plan.budget_bytes is None else "fits" if plan.fits else "does not fit"
    table.add_row("predicted peak", format_bytes(plan.predicted_peak_bytes), verdict)
    table.add_row("kept for the backward", format_bytes(plan.saved_bytes))
    step_us = plan.forward_time_us + plan.backward_time_us
    added = plan.recompute_time_us / max(plan.forward_time_us, 1e-9)
    table.add_row(
        "step without recomputing", format_time(step_us), "by the device's rates, at best"
    )
    table.add_row(
        "time added", format_time(plan.recompute_time_us),
        f"{added:.1%} of the forward, {plan.recompute_time_us / max(step_us, 1e-9):.1%} of the step",
    )  # fmt: skip
    table.add_row("above the best plan", f"{plan.optimality_gap:.2%}", "of the forward, at most")
    return table


def _curve(plan: Plan) -> Table:
    table = Table(title="peak against time", title_justify="left", box=None, pad_edge=False)
    table.add_column("peak", justify="right")
    table.add_column("of torch.compile's", justify="right")
    table.add_column("added to the forward", justify="right")
    table.add_column("")
    for point in plan.curve:
        table.add_row(
            format_bytes(point.peak_bytes),
            f"{point.peak_bytes / plan.default_peak_bytes:.1%}",
            f"{point.time_added_us / max(plan.forward_time_us, 1e-9):.1%}",
            "the plan" if point.is_chosen else "",
        )
    return table


def _batch(found: LargestBatch) -> RenderableType:
    if found.why_not:
        return escape(f"largest batch: not known, {found.why_not}")
    table = _table(f"largest batch within {format_bytes(found.within_bytes)}")
    table.add_row("torch.compile", _samples(found.default))
    if found.at_half != found.planned:
        table.add_row("satcompile", _samples(found.at_half), _price(found.at_half_share))
        table.add_row("... at its floor", _samples(found.planned), _price(found.added_share))
    else:
        table.add_row("satcompile", _samples(found.planned), _price(found.added_share))
    grows = f"torch.compile, resident and saved at a batch of b: {found.peak_of_default} bytes"
    return Group(table, Text(grows))


def _price(share: float) -> str:
    """The time that a plan adds, in terms of the forward's time."""
    if share > _MANY_FORWARDS:
        return f"adds {share:.1f} times the forward"
    return f"adds {share:.1%} of the forward" if share else ""


def _samples(batch: int | None) -> str:
    return "none" if batch is None else f"{batch:,}"


def _too_little(plan: Plan) -> str:
    assert plan.budget_bytes is not None
    over = plan.predicted_peak_bytes + plan.reserve_bytes - plan.budget_bytes
    helps = "a smaller batch or sequence"
    if plan.gradients_bytes + plan.resident["optimizer_state"] > plan.resident["parameters"]:
        helps += ", fewer trained parameters (--train lora) or an optimizer with less state"
    return (
        f"No plan was found within {format_bytes(plan.budget_bytes)}: the lowest is "
        f"{format_bytes(over)} over. What helps: {helps}, updates inside the backward "
        "(--in-backward), or a budget of the floor."
    )
