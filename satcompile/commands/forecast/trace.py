"""A training step captured on fake tensors, for a device that need not be there.

The step is traced on the CPU. Of the differences on a GPU, only attention matters to memory. On a
GPU, kernels that never hold the scores can apply dropout to them, while the CPU falls back to
holding the scores. So for a GPU, attention is traced without its dropout, whose random seed takes
next to no memory.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from satcompile.errors import UnsupportedError
from satcompile.graph.capture import Capture, capture_with_inputs
from satcompile.graph.training_graph import storage_bytes
from satcompile.planner.cost.device import Device
from satcompile.torch_compat.dynamo import TorchDynamoException, Unsupported, mark_dynamic
from satcompile.torch_compat.symbols import SymTypes, size_expression
from satcompile.torch_compat.tensors import fake_mode_of, is_fake, is_static_input
from satcompile.torch_compat.trees import pytree

_ATTENTION = torch.nn.functional.scaled_dot_product_attention
_DROPOUT_POSITION = 4  # among its arguments


@dataclass(frozen=True)
class SymbolicStep:
    """A step whose batch size is a symbol.

    Attributes:
        capture: of the step.
        symbol: of sympy, the batch size.
        batch: at which it was traced.
        batched_bytes: of its batched inputs at that batch; captured inputs keep these sizes.
    """

    capture: Capture
    symbol: Any
    batch: int
    batched_bytes: int


def trace(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], device: Device
) -> Capture:
    """The joint graph of ``fn(*args, **kwargs)`` and its backward, at these sizes.

    Raises:
        UnsupportedError: the step cannot be captured as one graph; the message says why.
    """
    with _refusals_in_our_words(fn), _mode_of((fn, args, kwargs)):
        return capture_with_inputs(fn, args, kwargs, _prepare_for(device))


def trace_batches(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], device: Device
) -> SymbolicStep | str:
    """The same with one symbol as the first dimension of all inputs; or, in words, why the model
    cannot be captured that way. A batch of one is doubled, since torch takes 1 for a number."""
    batches = {tensor.shape[0] for tensor in _batched(args, kwargs)}
    if len(batches) != 1:
        return "the inputs' first dimensions differ, so none of them is the batch"
    if batches == {1}:
        with _mode_of((fn, args, kwargs)):
            args, kwargs = pytree.tree_map_only(torch.Tensor, _doubled, (args, kwargs))
    inputs = _batched(args, kwargs)
    batch = inputs[0].shape[0]
    try:
        with _mode_of((fn, args, kwargs)), _marked_dynamic(inputs):
            found = capture_with_inputs(fn, args, kwargs, _prepare_for(device), dynamic=True)
    except Exception as error:  # any error: a model may do with a size what a symbol cannot do
        return f"the model fixes its batch size ({_first_line(error)})"
    symbols = {
        size_expression(value)
        for value in found.inputs
        if isinstance(value, SymTypes) and size_expression(value).is_Symbol
    }
    if not symbols:
        return "the model fixes its batch size (it computes with the number)"
    if len(symbols) > 1:
        return "the inputs have more sizes that are symbols than the batch"
    batched_bytes = sum(storage_bytes(v) for v in found.inputs if _is_of_batch(v, batch))
    return SymbolicStep(found, symbols.pop(), batch, batched_bytes)


def _batched(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Inputs that have a first dimension."""
    leaves = pytree.tree_leaves((args, kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    """Two samples where there was one."""
    if not tensor.dim():
        return tensor
    return torch.cat([tensor.detach()] * 2).requires_grad_(tensor.requires_grad)


def _is_of_batch(value: Any, batch: int) -> bool:
    """Whether a graph's input is an input of the call, by the rule of ``measure_residency``."""
    if not isinstance(value, torch.Tensor) or isinstance(value, torch.nn.Parameter):
        return False
    return not is_static_input(value) and value.dim() > 0 and value.shape[0] == batch


@contextlib.contextmanager
def _marked_dynamic(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Mark tensors inside. Marks are attributes of the user's tensors; new ones go on exit."""
    before = [dict(vars(tensor)) for tensor in tensors]
    try:
        for tensor in tensors:
            mark_dynamic(tensor, 0)
        yield
    finally:
        for tensor, attributes in zip(tensors, before, strict=True):
            for name in vars(tensor).keys() - attributes.keys():
                delattr(tensor, name)


@contextlib.contextmanager
def _refusals_in_our_words(fn: Callable[..., Any]) -> Any:
    try:
        yield
    except Unsupported as error:
        raise UnsupportedError(
            f"{_name(fn)} cannot be planned as one graph: {_said_by_dynamo(error)}. A plan is made for "
            "one graph of forward and backward: take out what breaks it (torch._dynamo.explain "
            "names every place), or plan the parts that are compiled one by one."
        ) from error
    except TorchDynamoException as error:
        raise UnsupportedError(
            f"{_name(fn)} cannot be traced: {_said_by_dynamo(error)}. Call it once without planning: "
            "what fails there fails here."
        ) from error


def _said_by_dynamo(error: BaseException) -> str:
    """The error's first line, which says its kind; then the raised exception and its place."""
    text = str(error)
    raised = re.search(r": got (\w+\(.*\))$", text, re.MULTILINE) or re.search(
        r"context: raised exception (.+)$", text, re.MULTILINE
    )
    places = re.findall(r'File "(.+)", line (\d+), in ', text.partition("from user code:")[2])
    said = _first_line(error) + (f", {raised[1]}" if raised else "")
    return f"{said} ({places[-1][0]}, line {places[-1][1]})" if places else said


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _mode_of(values: Any) -> contextlib.AbstractContextManager[Any]:
    """The context in which fake tensors among the values were made."""
    fn = values[0]
    tensors = [*fn.parameters(), *fn.buffers()] if isinstance(fn, torch.nn.Module) else []
    tensors += [t for t in pytree.tree_leaves(values[1:]) if isinstance(t, torch.Tensor)]
    for tensor in tensors:
        if is_fake(tensor):
            return fake_mode_of(tensor)
    return contextlib.nullcontext()


def _prepare_for(device: Device) -> Callable[[fx.GraphModule], None] | None:
    return _attend_without_dropout if device.kind == "cuda" else None


def _attend_without_dropout(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target is _ATTENTION:
            if len(node.args) > _DROPOUT_POSITION:
                node.update_arg(_DROPOUT_POSITION, 0.0)
            if "dropout_p" in node.kwargs:
                node.update_kwarg("dropout_p", 0.0)
    gm.recompile()
