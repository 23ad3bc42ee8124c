"""Planned and partitioned graphs of a model, without compiling any kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from satcompile.compile.generation import Partitioner
from satcompile.compile.planning import PlannedGraphs, plan_graphs
from satcompile.graph.capture import capture_with_inputs
from satcompile.options import Options
from satcompile.planner.request import Request, Subject
from satcompile.torch_compat.aot import aot_settings
from satcompile.torch_compat.inductor import compile_fx


def planned(
    model: Callable[..., Any], inputs: dict[str, Any], limit_bytes: int | None = None
) -> PlannedGraphs:
    """Trace, plan and partition the training graph of ``model(**inputs)``."""
    torch.compiler.reset()
    try:
        captured = capture_with_inputs(model, (), inputs)
        request = Request(Options(), Subject(len(captured.inputs)), limit_bytes)
        return plan_graphs(captured.graph, request)
    finally:
        torch.compiler.reset()


def planned_tightly(
    model: Callable[..., Any], inputs: dict[str, Any], share: float
) -> PlannedGraphs:
    """Under a limit of ``share`` of what the step would take by default."""
    default_bytes = planned(model, inputs).plan.default_profile.peak_bytes
    return planned(model, inputs, int(share * default_bytes))


def uncompiled(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    request: Request,
    partition: Callable[..., tuple[fx.GraphModule, fx.GraphModule]],
    inner: Callable[..., Any],
) -> Any:
    """A graph of Dynamo's under AOTAutograd's runtime, with no code of Inductor's.

    Args:
        request: its Inductor options hold.
        partition: what AOTAutograd is to split the joint graph with.
        inner: what runs each of the two graphs, given it and its example inputs.
    """
    patches = {
        **request.options.inductor,
        "custom_partitioner_fn": Partitioner(request, False, partition),
    }
    with aot_settings():
        return compile_fx(gm, example_inputs, inner_compile=inner, config_patches=patches)
