"""The error for a budget that no plan keeps: where its bytes go, and what helps."""

from __future__ import annotations

from collections.abc import Mapping

from satcompile.compile.generation import Generated
from satcompile.errors import BudgetError
from satcompile.graph.nodes import module_path
from satcompile.options import Options
from satcompile.runtime.residency import Residency
from satcompile.sizes import format_bytes


def over_budget(
    lowest: Generated,
    residency: Residency,
    outside_bytes: int,
    options: Options,
    budget_bytes: int,
    situation: str = "",
    is_first_of_several: bool = False,
) -> BudgetError:
    """The error for a budget below the peak of the lowest plan, with a breakdown of that peak.

    Args:
        is_first_of_several: whether other graphs of the step are still to come.
    """
    assert options.memory_budget is not None
    step_kinds, where = _step_by_kind(lowest)
    kinds = {
        "parameters": residency.parameters,
        "gradients": residency.gradients + step_kinds.pop("gradients", 0),
        "optimizer state": residency.optimizer_state,
        "workspaces of matrix products": residency.workspaces,
        "inputs": residency.inputs,
        "outputs": step_kinds.pop("outputs", 0),
        "saved for backward": step_kinds.pop("saved for backward", 0),
        "temporaries": sum(step_kinds.values()),
        "other graphs of the step": outside_bytes,
        "reserve": options.reserve,
    }
    floor_bytes = sum(kinds.values())
    parts = ", ".join(f"{format_bytes(v)} {k}" for k, v in kinds.items() if v)
    more = _OTHERS_FOLLOW if is_first_of_several else ""
    return BudgetError(
        f"memory_budget {options.memory_budget.text!r} ({format_bytes(budget_bytes)}) is below "
        f"the floor of {format_bytes(floor_bytes)} ({floor_bytes} bytes){situation}. At the floor's "
        f"peak, which lies at {where}: {parts}. {_what_helps(kinds)}{more}",
        budget_bytes=budget_bytes,
        floor_bytes=floor_bytes,
        floor_op=where,
        breakdown=kinds,
        covers_step=not is_first_of_several,
    )


def _step_by_kind(lowest: Generated) -> tuple[dict[str, int], str]:
    if lowest.walk is None:
        where = lowest.graphs.plan.profile.peak_label
        return {"temporaries": lowest.step_peak_bytes}, _describe(lowest, where)
    assert lowest.code is not None
    origins = lowest.code.origins
    kinds, buffer, in_backward = lowest.walk.at_peak()
    rounding_bytes = lowest.step_peak_bytes - lowest.walk.peak_bytes
    kinds["temporaries"] = kinds.get("temporaries", 0) + rounding_bytes
    return kinds, _describe(lowest, origins.get(in_backward, {}).get(buffer, buffer))


_OTHERS_FOLLOW = (
    " This is the floor of one graph alone: Dynamo broke the model into several "
    "(torch._dynamo.explain says why), and those that follow need room beside it. The floor of the "
    "whole step is higher, and is named when a step has run."
)
_HELP = {
    "parameters": "keep parameters in a smaller dtype, or freeze and shard some of them",
    "gradients": "train fewer parameters (LoRA, frozen layers) or keep them in a smaller dtype, and "
    "set gradients to None between steps",
    "optimizer state": "take an optimizer with less state",
    "workspaces of matrix products": "set CUBLAS_WORKSPACE_CONFIG=:4096:1 before the first product, "
    "which gives cuBLAS 4 MiB a thread",
    "inputs": "lower the batch size or sequence length",
    "outputs": "lower the batch size or sequence length, or return less from the compiled model "
    "(the loss without the logits)",
    "saved for backward": "lower the batch size or sequence length",
    "temporaries": "lower the batch size or sequence length",
    "other graphs of the step": "remove the graph breaks, so that one plan covers the whole step",
    "reserve": "lower the option 'reserve'",
}


def _what_helps(kinds: Mapping[str, int]) -> str:
    """Advice for the kinds with the most bytes."""
    heaviest = sorted((kind for kind in kinds if kinds[kind]), key=lambda kind: -kinds[kind])[:2]
    advice = list(dict.fromkeys(_HELP[kind] for kind in heaviest))
    return f"Raise the budget to the floor or above; or {'; or '.join(advice)}."


def _describe(lowest: Generated, name: str) -> str:
    """A node as users know it: operation and module."""
    for node in lowest.graphs.problem.graph.graph.nodes:
        if node.name == name:
            module = module_path(node)
            return f"{name} ({node.target}){f' in {module}' if module else ''}"
    return name or "the start of the step"
