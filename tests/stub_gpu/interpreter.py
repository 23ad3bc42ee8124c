"""Runs CUDA's generated kernels on the host: Triton's interpreter, with what it lacks for Inductor's.

Imported before triton is. Kernels run as they would on a card, one program after the other, in
numpy. The interpreter knows no libdevice, multiplies bfloat16's bits and reads broadcast operands of an
atomic wrongly.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import scipy.special

# By the names of CUDA's device library, without their prefix and the float's suffix.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in ("sqrt", "exp", "exp2", "expm1", "log", "log1p", "log2")},
    **{name: getattr(np, name) for name in ("log10", "tanh", "sin", "cos", "tan", "floor", "ceil")},
    **{name: getattr(np, name) for name in ("trunc", "rint", "hypot", "sinh", "cosh", "copysign")},
    "abs": np.abs, "fabs": np.abs, "pow": np.power, "fmod": np.fmod, "nearbyint": np.rint,
    "rsqrt": lambda x: 1 / np.sqrt(x), "erf": scipy.special.erf, "erfc": scipy.special.erfc,
    "erfinv": scipy.special.erfinv, "lgamma": scipy.special.gammaln, "isnan": np.isnan, "isnand": np.isnan,
    "isinf": np.isinf, "isinfd": np.isinf, "finite": np.isfinite, "isfinited": np.isfinite,
    "signbit": np.signbit, "signbitd": np.signbit, "fma": lambda a, b, c: a * b + c,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2,
    "fsqrt_rn": np.sqrt, "dsqrt_rn": np.sqrt, "fdiv_rn": np.divide, "ddiv_rn": np.divide,
}  # fmt: skip


def function_of(symbol: str) -> Callable[..., Any]:
    """What ``__nv_expf`` computes; a symbol that is not known here ends the run by its name."""
    name = symbol.removeprefix("__nv_")
    known = _FUNCTIONS.get(name) or _FUNCTIONS.get(name.removesuffix("f"))
    if known is None:
        raise NotImplementedError(f"stub GPU: {symbol} is not among the interpreter's functions")
    return known


def install() -> None:
    """To be called before a kernel is generated."""
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from triton.language.extra.cuda import libdevice
    from triton.runtime import interpreter

    triton_helpers.libdevice = _Libdevice(libdevice, interpreter.interpreter_semantic)
    for name in ("max2", "fmax2"):
        if hasattr(triton_helpers, name):
            setattr(triton_helpers, name, _maximum)
    builder = interpreter.InterpreterBuilder
    builder.create_extern_elementwise = _extern_elementwise
    interpreter.GridExecutor._init_args_hst = _in_place
    interpreter.GridExecutor._restore_args_dev = lambda *arguments: None
    builder.cast_impl = _through_float32(builder.cast_impl)
    builder.create_dot = _of_float32(builder.create_dot)
    builder.create_atomic_rmw = _with_whole_operands(builder.create_atomic_rmw)
    CachingAutotuner.__init__ = _with_few_programs(CachingAutotuner.__init__)


def _in_place(
    self: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Device memory is host memory: kernels write where they are told. The interpreter's own copies
    would be alive until the garbage collector comes."""
    import torch

    from tests.stub_gpu.twins import on_host

    def placed(value: Any) -> Any:
        if isinstance(value, tuple):
            return type(value)(map(placed, value))
        return on_host(value) if isinstance(value, torch.Tensor) and value.is_cuda else value

    return [placed(value) for value in args], {name: placed(v) for name, v in kwargs.items()}


def _maximum(values: Any, dim: int) -> Any:
    """Inductor's own is a function that the interpreter calls for one element after the other."""
    import triton.language as tl

    return tl.max(values, dim)


class _Libdevice:
    """The card's device library; a compiler would hand its functions the semantic."""

    def __init__(self, functions: Any, semantic: Any) -> None:
        self._functions, self._semantic = functions, semantic

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._functions, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs | {"_semantic": self._semantic})

        return call


def _extern_elementwise(
    self: Any, library: str, path: str, symbol: str, operands: list[Any], kind: Any, pure: bool
) -> Any:
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    with np.errstate(all="ignore"):
        found = function_of(symbol)(*[operand.data for operand in operands])
    scalar = kind.scalar
    return TensorHandle(np.asarray(found).astype(_get_np_dtype(scalar)), scalar)


def _with_whole_operands(atomic: Callable[..., Any]) -> Callable[..., Any]:
    """A mask that is one row, broadcast, would be read as its first element."""
    from triton.runtime.interpreter import TensorHandle

    def whole(handle: Any) -> Any:
        return TensorHandle(np.array(handle.data, order="C"), handle.dtype)

    def run(self: Any, op: Any, pointer: Any, value: Any, mask: Any, *how: Any) -> Any:
        return atomic(self, op, whole(pointer), whole(value), whole(mask), *how)

    return run


# numpy has no bfloat16. The interpreter keeps its bits as integers of 16; it multiplies those, drops
# bits where a card rounds, and converts nothing but float32.


def _through_float32(cast: Callable[..., Any]) -> Callable[..., Any]:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def run(self: Any, source: Any, wanted: Any) -> Any:
        source = _as_float32(source)
        if wanted.scalar != tl.bfloat16:
            return cast(self, source, wanted)
        return TensorHandle(_bfloat16_bits(source.data.astype(np.float32)), tl.bfloat16)

    return run


def _of_float32(dot: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _as_float32(a), _as_float32(b), *rest)

    return run


def _as_float32(handle: Any) -> Any:
    """What is not bfloat16 as it is."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _bfloat16_bits(values: Any) -> Any:
    """The bits of the nearest bfloat16, of the even one where two are as near."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _with_few_programs(init: Callable[..., None]) -> Callable[..., None]:
    """The interpreter takes the first configuration: that of the largest blocks is the fastest."""

    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if self.configs:
            self.configs.sort(key=lambda config: -math.prod(
                size for name, size in config.kwargs.items() if name.endswith("BLOCK")
            ))  # fmt: skip

    return run
