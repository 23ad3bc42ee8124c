"""Memory that an operator takes and returns inside one call, measured by calling it.

A convolution reorders its weight and asks its library for scratch space; an attention's backward
sums in float32. The amount depends on shapes, libraries and the machine, and no schema states it.
We make each distinct call once on zeros (on ones where the operator refuses zeros), on the device
for which it is compiled, and record the allocator's events. The result is kept for the process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from satcompile.planner.allocator import allocator_events
from satcompile.solver.base.simulator import replay
from satcompile.torch_compat.cuda import blas_workspace_bytes, blas_workspaces_stay
from satcompile.torch_compat.operators import OpOverload, schema_of
from satcompile.torch_compat.symbols import size_hint
from satcompile.torch_compat.tensors import without_tracing
from satcompile.torch_compat.tracing import profiler_is_active
from satcompile.torch_compat.trees import pytree

log = logging.getLogger("satcompile")

_measured: dict[Any, int] = {}


def workspace_bytes(
    op: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    device_type: str = "cpu",
) -> int:
    """Peak bytes of one call beyond its results; on a GPU as its allocator gives them out.

    Args:
        op: a functional operator.
        args, kwargs: arguments of the call, tensors given as ``(shape, strides, dtype)`` wrapped in
            ``Zeros``.

    Returns:
        The bytes. While the user's own profiler runs, new calls are not measured, as two profilers
        cannot record at once: a product on a GPU counts as its maximum, anything else as 0.
    """
    how: Any = torch.get_num_threads() if device_type == "cpu" else torch.backends.cudnn.benchmark
    is_exact = torch.are_deterministic_algorithms_enabled()  # an attention then takes less
    most_bytes = None
    if device_type != "cpu" and is_product(op):
        args, kwargs = pytree.tree_map(_cut, (tuple(args), dict(kwargs)))
        how = most_bytes = blas_workspace_bytes()  # the user may change it
    key = (str(op), repr(args), repr(sorted(kwargs.items())), device_type, how, is_exact)
    if key not in _measured:
        if profiler_is_active():
            if most_bytes is not None:
                return most_bytes
            log.warning("a profiler is running: workspaces of operators are not counted")
            return 0
        _measured[key] = _measure(op, args, kwargs, device_type)
    return _measured[key]


class Zeros:
    """A tensor that is made when it is needed, filled with zeros or another number."""

    def __init__(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> None:
        self.shape, self.strides, self.dtype = tuple(shape), tuple(strides), dtype

    def __repr__(self) -> str:
        return f"Zeros({self.shape}, {self.strides}, {self.dtype})"

    def make(self, device_type: str = "cpu", number: int = 0) -> torch.Tensor:
        made = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device_type)
        return made.fill_(number)


# For these dtypes, the CPU's matrix products use oneDNN, which takes scratch space from torch.
_HALF = (torch.bfloat16, torch.float16)
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def product_takes_workspace(dtype: torch.dtype, device_type: str) -> bool:
    """Whether a matrix product takes memory for the duration of its call."""
    return dtype in _HALF if device_type == "cpu" else not blas_workspaces_stay()


def is_product(op: Any) -> bool:
    return getattr(op, "__name__", "").partition(".")[0] in _PRODUCTS


# The workspace of cuBLAS depends on the library that torch takes for a kind of product, not on
# sizes beyond these. Operands of full size might not fit beside the model.
_LARGEST_OF_PRODUCT = 64


def _cut(value: Any) -> Any:
    if not isinstance(value, Zeros):
        return value
    shape = [min(size, _LARGEST_OF_PRODUCT) for size in value.shape]
    strides, step = [0] * len(shape), 1
    for position in sorted(range(len(shape)), key=lambda i: (value.strides[i], value.shape[i])):
        strides[position] = step if value.strides[position] else 0
        step *= shape[position] if value.strides[position] else 1
    return Zeros(shape, strides, value.dtype)


def workspace_of(node: fx.Node) -> int | None:
    """The workspace of a graph's operation at the sizes for which it is compiled; None if it cannot
    be tried. A matrix product in full precision takes nothing, and is not tried."""
    op, result = node.target, node.meta.get("val")
    if not may_need_workspace(op):
        return None
    results = [value for value in pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]
    if not results:
        return None
    device_type = results[0].device.type
    if is_product(op) and not product_takes_workspace(results[0].dtype, device_type):
        return None
    if device_type != "cpu" and not torch.cuda.is_available():
        return None
    is_convolution = getattr(op, "__name__", "").startswith("convolution")
    as_called = _as_convolved if is_convolution else _as_given
    try:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), as_called)
        return workspace_bytes(op, args, kwargs, device_type)  # type: ignore[arg-type]
    except Exception:  # the operator may refuse zeros; the walk of its code will tell
        return None


def _as_given(node: fx.Node) -> Any:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return size_hint(value)
    shape, strides = map(size_hint, value.shape), map(size_hint, value.stride())
    return Zeros(tuple(shape), tuple(strides), value.dtype)


def _as_convolved(node: fx.Node) -> Any:
    """The argument as Inductor gives it to a convolution: on a CPU with channels last."""
    value = _as_given(node)
    if (
        not isinstance(value, Zeros)
        or len(value.shape) != 4
        or node.meta["val"].device.type != "cpu"
    ):
        return value
    _, channels, height, width = value.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return Zeros(value.shape, strides, value.dtype)


def may_need_workspace(op: Any) -> bool:
    """Whether a call may take memory of its own and can be tried: functional, torch's or ours."""
    if not isinstance(op, OpOverload):
        return "convolution" in getattr(op, "__name__", "")  # among Inductor's extern kernels
    returned = [result.alias_info for result in schema_of(op).returns]
    is_view = any(info is not None for info in returned)
    is_known = op.namespace in ("aten", "mkldnn", "satcompile")
    return is_known and not schema_of(op).is_mutable and not is_view


def _measure(
    op: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], device_type: str
) -> int:
    def made_of(number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return pytree.tree_map(
            lambda value: value.make(device_type, number) if isinstance(value, Zeros) else value,
            (tuple(args), dict(kwargs)),
            is_leaf=lambda value: isinstance(value, Zeros),
        )

    drawn_from = [] if device_type == "cpu" else [torch.cuda.current_device()]
    # A random operator draws from the user's generator: its state is put back.
    with torch.no_grad(), without_tracing(), torch.random.fork_rng(devices=drawn_from):
        # The first call may set up caches; later calls do not.
        made_args, made_kwargs = made_of(0)
        try:
            op(*made_args, **made_kwargs)
        except RuntimeError:  # for example, pivots count from 1
            made_args, made_kwargs = made_of(1)
            op(*made_args, **made_kwargs)
        held: list[Any] = []
        events = allocator_events(lambda: held.append(op(*made_args, **made_kwargs)), device_type)
    profile = replay(events)
    return max(0, profile.peak_bytes - profile.end_bytes)
