"""The entry point: from ``torch.compile``'s call to a compiled callable within its budget.

The backend reads the options, refuses by name what cannot be honoured, and hands each graph of
Dynamo's to ``satcompile.runtime``, which plans it and runs it.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from satcompile.compile.rounds import Compilation
from satcompile.errors import SatcompileError, UnsupportedError
from satcompile.graph.devices import devices_of
from satcompile.options import Options, parse, refuse_mode
from satcompile.runtime import registry
from satcompile.runtime.bound_graph import BoundGraph, UnlimitedGraph
from satcompile.runtime.plan_in_use import PlanInUse
from satcompile.torch_compat import aot, distributed, dynamo, inductor, versions

log = logging.getLogger("satcompile")


def sat(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, options: Any = None, mode: Any = None
) -> Callable[..., Any]:
    """The backend that ``torch.compile(..., backend="sat")`` calls with each captured graph.

    Args:
        gm: Dynamo's graph.
        example_inputs: the graph's inputs; parameters arrive as real ``torch.nn.Parameter``.
        options: see ``satcompile.options.Options``.
        mode: not supported; any value but None is refused.

    Raises:
        OptionError, UnsupportedError, BudgetError, VerificationError.
    """
    try:
        refuse_mode(mode)
        _warn_of_untested_torch()
        _refuse_settings()
        return _compile(gm, list(example_inputs), parse(options))
    except SatcompileError as error:
        error.first_useful_frame = sys._getframe()  # the user's traceback ends here, not in torch
        if not dynamo.suppress_errors_enabled():
            raise
        # Dynamo would swallow this error and run eager. It does not swallow what a compiled graph
        # raises when it runs, so the refusal is raised there.
        return _raising(error)


def _raising(error: SatcompileError) -> Callable[..., Any]:
    def refused(*args: Any) -> Any:
        raise error

    return refused


@functools.cache
def _warn_of_untested_torch() -> None:
    """Warn once per process. On any torch, plans are verified and allocations read off the code."""
    if versions.is_untested():
        newest = ".".join(map(str, versions.NEWEST_TESTED))
        warnings.warn(
            f"satcompile was tested with torch up to {newest}, not with this torch "
            f"{torch.__version__}: where it has moved something that satcompile uses, compiling ends "
            "with an error. Look for a newer satcompile, or install an older torch.",
            stacklevel=2,
        )


def _refuse_settings() -> None:
    if dynamo.suppress_errors_enabled():
        raise UnsupportedError(
            "torch._dynamo.config.suppress_errors is on: an error of the compiler, a BudgetError "
            "too, would silently run the model uncompiled. Set it to False to use backend='sat'."
        )
    if dynamo.compiled_autograd_enabled():
        raise UnsupportedError(
            "Compiled autograd is on: it traces the backward again and drops what backend='sat' "
            "planned for it. Turn it off (torch._dynamo.config.compiled_autograd = False)."
        )
    if aot.activation_budget() != 1:
        raise UnsupportedError(
            "torch._functorch.config.activation_memory_budget is "
            f"{aot.activation_budget()}: torch's own budget and backend='sat' would both "
            "decide what is saved. Set it to 1 and use options={'memory_budget': ...}."
        )


def _refuse_gathered(parameters: list[Any]) -> None:
    if distributed.gathered_by_fully_shard(parameters):
        raise UnsupportedError(
            "A memory_budget was given for a module under FSDP2 (fully_shard), where it could not be "
            "kept: parameters are gathered and gradients scattered between the compiled graphs, in "
            "memory that these do not see. Leave memory_budget out (torch.compile's own plan then "
            "runs; torch.utils.checkpoint works inside it), or use DistributedDataParallel, beside "
            "which a budget holds."
        )


_TAKES_SPARSE = {torch.nn.functional.embedding: 6, torch.nn.functional.embedding_bag: 7}


def _refuse_sparse_gradients(gm: fx.GraphModule) -> None:
    """Refuse sparse gradients: torch's own compiled code fails on them with an internal error."""
    if not torch.is_grad_enabled():
        return
    graphs = [m for m in gm.modules() if isinstance(m, fx.GraphModule)]
    for node in (node for module in graphs for node in module.graph.nodes):
        position = _TAKES_SPARSE.get(node.target)
        if position is None:
            continue
        given = node.args[position] if len(node.args) > position else node.kwargs.get("sparse")
        if given is True:
            raise UnsupportedError(
                f"An embedding with sparse=True ({node.name}) has a sparse gradient, which compiled "
                "code cannot make (torch.compile's own fails on it, too). Use sparse=False with the "
                "same optimizer's dense form, or keep the embedding outside of the compiled model."
            )


def _refuse_devices(gm: fx.GraphModule, options: Options) -> None:
    """Refuse a budget on other devices: the byte counts were checked on CPUs and CUDA only."""
    others = sorted({device.type for device in devices_of(gm)} - {"cpu", "cuda", "meta"})
    if others and options.memory_budget is not None:
        raise UnsupportedError(
            f"memory_budget {options.memory_budget.text!r} was asked for a model on "
            f"{' and '.join(others)}: what a step allocates there is not known. Budgets hold on CPUs "
            "and on CUDA (NVIDIA; ROCm goes the same way, untried). Compile without a memory_budget."
        )


def _refuse_cuda_graphs(gm: fx.GraphModule, options: Options) -> None:
    """CUDA graphs keep memory of their own between steps and replay recorded values. A mask that
    changes, or a number that an update reads again, would keep its recorded value."""
    on_gpu = any(device.type == "cuda" for device in devices_of(gm))
    if not on_gpu or not inductor.uses_cuda_graphs(options.inductor):
        return
    asked = [name for name in ("memory_budget", "sparsity") if getattr(options, name) is not None]
    if asked:
        raise UnsupportedError(
            f"{asked[0]} was asked for together with CUDA graphs (Inductor's triton.cudagraphs is on): "
            "what their own memory takes, and what they replay, was never checked. Turn them off "
            f"(options={{'inductor': {{'triton.cudagraphs': False}}}}), or leave {asked[0]} out."
        )


def _refuse_streams(gm: fx.GraphModule, options: Options) -> None:
    """A stream may free memory that another stream still needs; that memory waits for the other."""
    asked = [name for name in ("memory_budget", "sparsity") if getattr(options, name) is not None]
    used = [node.name for node in gm.graph.nodes if dynamo.is_of_streams(node)]
    if asked and used:
        raise UnsupportedError(
            f"{asked[0]} was asked for a model that uses streams of its own ({used[0]}): what runs on "
            "several streams holds its memory in ways that no plan knows. Use the current stream inside "
            f"the compiled model, or leave {asked[0]} out."
        )


def _compile(gm: fx.GraphModule, inputs: list[Any], options: Options) -> Callable[..., Any]:
    """Turn a graph of Dynamo's into a callable that keeps to the options."""
    _refuse_sparse_gradients(gm)
    _refuse_devices(gm, options)
    _refuse_cuda_graphs(gm, options)
    _refuse_streams(gm, options)
    parameters = [i for i, v in enumerate(inputs) if isinstance(v, torch.nn.Parameter)]
    if options.memory_budget is not None:
        _refuse_gathered([inputs[position] for position in parameters])
    record = registry.GraphRecord(_graph_name(), dynamo.current_frame_code(), parameters)
    compilation = Compilation(gm, inputs, options)
    bound: BoundGraph | UnlimitedGraph
    if options.memory_budget is None:
        bound = UnlimitedGraph(compilation, inputs, record)
    else:
        bound = BoundGraph(compilation, inputs, record)
    plan = _planned_or_refused(bound, inputs, options)
    if not plan.generated.is_training:
        return plan.forward  # an inference graph: nothing is saved, nothing to plan
    _warn_of_recompile_limit()
    registry.add(record)
    return bound


def _planned_or_refused(
    bound: BoundGraph | UnlimitedGraph, inputs: list[Any], options: Options
) -> PlanInUse:
    """Make the first plan. Where torch's compiler gives up on a graph, Dynamo warns and runs it in
    eager. With a budget that would break the promise, so it is refused."""
    try:
        return bound.first_plan(inputs)
    except dynamo.LEFT_TO_EAGER as error:
        if options.memory_budget is None:
            raise
        raise UnsupportedError(
            f"memory_budget {options.memory_budget.text!r} cannot be held: torch's compiler gives up "
            f"on this graph ({type(error).__name__}: {error}) and leaves it to eager, outside of any "
            "plan. Keep what it stops at outside of the compiled model, or compile without a "
            "memory_budget."
        ) from error


def _graph_name() -> str:
    compile_id, code = dynamo.current_compile_id(), dynamo.current_frame_code()
    where = (
        f"{code.co_qualname if hasattr(code, 'co_qualname') else code.co_name}" if code else "graph"
    )
    return f"{where} [{compile_id[0]}]" if compile_id else where


def _warn_of_recompile_limit() -> None:
    compile_id = dynamo.current_compile_id()
    if compile_id is not None and compile_id[1] + 1 >= compile_id[2]:
        log.warning(
            "This is compilation %d of this code; at Dynamo's recompile_limit of %d, further "
            "inputs run uncompiled, outside any budget. Raise torch._dynamo.config."
            "recompile_limit, or pass dynamic=True.",
            compile_id[1] + 1,
            compile_id[2],
        )
