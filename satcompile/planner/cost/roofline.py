"""Microseconds of each operation: the larger of its arithmetic and its memory traffic.

The roofline of Williams, Waterman and Patterson (CACM 2009), applied to each kernel as Inductor
would make it. A fusible operation has two prices. One is for a kernel of its own. The other is for
a place in a kernel that exists anyway: the operation's arithmetic, and the reads that the kernel
would not have made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from satcompile.planner.cost.device import Device
from satcompile.torch_compat.partitioner import default_op_types
from satcompile.torch_compat.symbols import size_hint
from satcompile.torch_compat.trees import pytree
from satcompile.updates.sparsity.operators import dense_form

aten = torch.ops.aten

_TRANSCENDENTAL = {
    aten.exp, aten.log, aten.sin, aten.cos, aten.tanh, aten.erf, aten.sigmoid, aten.pow,
    aten.rsqrt, aten.sqrt, aten.log1p, aten.expm1, aten.gelu, aten.silu, aten.softplus,
}  # fmt: skip
# Philox rounds per element: dozens of integer operations, which CPUs do not vectorize.
_RANDOM_FLOPS = 60.0


@dataclass(frozen=True)
class OperationCost:
    """Prices of one operation in microseconds.

    Attributes:
        inline_us: time inside a kernel that exists anyway; all of it if the operation cannot fuse.
        write_us: time on top, where the result must reach memory in a kernel of its own.
    """

    inline_us: float
    write_us: float


class CostModel:
    """Prices on one device. ``fusion=False`` prices every operation as a kernel of its own."""

    def __init__(self, device: Device, fusion: bool = True) -> None:
        self.device, self.fusion = device, fusion
        self._types = default_op_types()

    def is_fusible(self, node: fx.Node) -> bool:
        return self._types.is_fusible(node)

    def traffic_us(self, num_bytes: float) -> float:
        return num_bytes / self.device.bytes_per_us

    def price(self, node: fx.Node, owners: Mapping[fx.Node, fx.Node]) -> OperationCost:
        """Prices of ``node``; views and symbolic arithmetic cost nothing.

        Args:
            node: an operation.
            owners: for each node, the one that made its storage.
        """
        if node.op != "call_function" or self._types.is_view(node) or _has_no_tensor(node):
            return OperationCost(0.0, 0.0)
        written = sum(_bytes(v) for v in _tensors([node.meta.get("val")]))
        arithmetic_us = self._arithmetic_us(node)
        if not (self.fusion and self.is_fusible(node)):
            read = sum(_bytes(v) for v in _tensors(_argument_values(node)))
            alone_us = max(arithmetic_us, self.traffic_us(read + written)) + self.device.kernel_us
            return OperationCost(alone_us, 0.0)
        # Results of fusible operations come from registers; other reads are charged, once each.
        unfused = {
            owners[argument]: sum(_bytes(v) for v in _tensors([argument.meta.get("val")]))
            for argument in node.all_input_nodes
            if not (owners[argument].op == "call_function" and self.is_fusible(owners[argument]))
        }
        inline_us = max(arithmetic_us, self.traffic_us(sum(unfused.values())))
        return OperationCost(inline_us, self.traffic_us(written) + self.device.kernel_us)

    def _arithmetic_us(self, node: fx.Node) -> float:
        packet = getattr(node.target, "_overloadpacket", None)
        counted = matrix_flops(node)
        if counted is not None:
            return counted / self.device.rate(_compute_dtype(node))
        outputs = list(_tensors([node.meta.get("val")]))
        inputs = list(_tensors(_argument_values(node)))
        elements = max((_elements(v) for v in (*outputs, *inputs)), default=0)
        per_element = 1.0
        if packet in _TRANSCENDENTAL:
            per_element = self.device.transcendental_flops
        elif "random" in str(node.target):
            per_element = _RANDOM_FLOPS
        # Vector units run plain arithmetic at about a quarter of the matrix rate.
        return elements * per_element / (self.device.rate(torch.float32) / 4)


def matrix_flops(node: fx.Node) -> float | None:
    """FLOPs of a matrix product, convolution or attention; None for anything else."""
    from torch.utils.flop_counter import flop_registry

    form = dense_form(node)
    if form is not None:
        return _dense_flops(node, *form)
    packet = getattr(node.target, "_overloadpacket", None)
    value = node.meta.get("val")
    if packet in flop_registry:
        args, kwargs = pytree.tree_map(_concrete, (node.args, node.kwargs))
        return float(flop_registry[packet](*args, **kwargs, out_val=_concrete(value)))
    if packet is not None and "scaled_dot_product" in str(packet):
        return _attention_flops(node, backward="backward" in str(packet))
    return None


def _dense_flops(
    node: fx.Node, target: Any, arguments: tuple[Any, ...], result: int | None
) -> float:
    """FLOPs of a sparse operator with all tiles active: the active tiles are not known yet."""
    from torch.utils.flop_counter import flop_registry

    value = node.meta.get("val")
    if result is not None:  # one of a convolution's three gradients
        wanted = [position == result for position in range(3)]
        arguments = (*arguments[:3], None, *arguments[3:], wanted)
        value = tuple(value if each else None for each in wanted)
    concrete = pytree.tree_map(_concrete, arguments)
    return float(flop_registry[target.overloadpacket](*concrete, out_val=_concrete(value)))


def _attention_flops(node: fx.Node, backward: bool) -> float:
    # By position, not by distinct node: one tensor may be query, key and value at once.
    tensors = list(_tensors(a.meta.get("val") for a in node.args if isinstance(a, fx.Node)))
    query, key = (tensors[1], tensors[2]) if backward else (tensors[0], tensors[1])
    *batch, rows, width = (size_hint(s) for s in query.shape)
    columns = size_hint(key.shape[-2])
    return (5 if backward else 2) * 2.0 * math.prod(batch) * rows * columns * width


def _concrete(value: object) -> object:
    """An argument as the flop formulas need it: tensors with plain sizes."""
    if isinstance(value, fx.Node):
        value = value.meta.get("val")
    if isinstance(value, torch.Tensor):
        return torch.empty([size_hint(s) for s in value.shape], dtype=value.dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return type(value)(_concrete(v) for v in value)
    if isinstance(value, torch.SymInt):
        return size_hint(value)
    return value


def _compute_dtype(node: fx.Node) -> torch.dtype:
    return next((v.dtype for v in _tensors(_argument_values(node))), torch.float32)


def _argument_values(node: fx.Node) -> list[object]:
    return [argument.meta.get("val") for argument in node.all_input_nodes]


def _tensors(values: Iterable[object]) -> Iterable[torch.Tensor]:
    for leaf in pytree.tree_leaves(list(values)):
        if isinstance(leaf, torch.Tensor):
            yield leaf


def _has_no_tensor(node: fx.Node) -> bool:
    return next(iter(_tensors([node.meta.get("val")])), None) is None


def _elements(value: torch.Tensor) -> int:
    return math.prod(size_hint(s) for s in value.shape)


def _bytes(value: torch.Tensor) -> int:
    """Bytes that a read of the whole tensor moves; broadcast dimensions are read once."""
    shape, strides = map(size_hint, value.shape), map(size_hint, value.stride())
    extents = [extent for extent, stride in zip(shape, strides, strict=True) if stride != 0]
    return math.prod(extents) * value.dtype.itemsize
