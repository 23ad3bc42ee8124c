"""Operators of several results."""

from __future__ import annotations

from tests.programs.builder import Builder, Operator
from tests.programs.program import COLUMNS


def _ramped(b: Builder) -> str:
    """A matrix without equal entries in a row: which of them is first is nobody's promise."""
    m = b.matrix()
    return f"({m} + 0.01 * torch.arange({b.size(m, 1)}, dtype={m}.dtype))"


def _topk(b: Builder) -> tuple[str, int]:
    return f"torch.topk({_ramped(b)}, 2, dim=1)", 2


def _sort(b: Builder) -> tuple[str, int]:
    return f"torch.sort({_ramped(b)}, dim=1, descending=True)", 2


def _max(b: Builder) -> tuple[str, int]:
    return f"torch.max({_ramped(b)}, dim=1)", 2


def _kth(b: Builder) -> tuple[str, int]:
    return f"torch.kthvalue({_ramped(b)}, 2, dim=1)", 2


def _cummax(b: Builder) -> tuple[str, int]:
    return f"torch.cummax({_ramped(b)}, dim=1)", 2


def _var_mean(b: Builder) -> tuple[str, int]:
    return f"torch.var_mean({b.matrix()}, dim={b.number(2)}, keepdim=True)", 2


def _std_mean(b: Builder) -> tuple[str, int]:
    return f"torch.std_mean({b.matrix()} * 1.5, dim={b.number(2)})", 2


def _native_layer_norm(b: Builder) -> tuple[str, int]:
    m = b.matrix()
    size = b.size(m, 1)
    return f"torch.native_layer_norm({m}, ({size},), {b.parameter(size)}, None, 1e-5)", 3


def _native_group_norm(b: Builder) -> tuple[str, int]:
    m = b.value(lambda t: t.dim() == 2 and t.shape[1] % 2 == 0 and t.shape[1] > 2)
    rows, columns = b.tensor(m).shape
    return f"torch.native_group_norm({m}, None, None, {rows}, {columns}, 1, 2, 1e-5)", 3


def _split(b: Builder) -> tuple[str, int]:
    m = b.value(lambda t: t.dim() == 2 and t.shape[1] >= 4)
    size = b.size(m, 1) // 2
    return f"torch.split({m}, [{size}, {b.size(m, 1) - size}], dim=1)", 2


def _chunk(b: Builder) -> tuple[str, int]:
    m = b.value(lambda t: t.dim() == 2 and t.shape[0] % 2 == 0 and t.shape[0] > 0)
    return f"torch.chunk({m}, 2, dim=0)", 2


def _unbind(b: Builder) -> tuple[str, int]:
    x = b.value(lambda t: t.dim() > 1 and 0 < t.shape[0] <= 6)
    return f"{x}.unbind(0)", b.size(x, 0)


def _meshed(b: Builder) -> tuple[str, int]:
    x = b.value(lambda t: t.dim() == 1 and t.numel() <= COLUMNS)
    return f"torch.meshgrid({x}, {x} * 2, indexing='ij')", 2


def _pooled(b: Builder) -> tuple[str, int]:
    m = b.value(lambda t: t.dim() == 2 and min(t.shape) > 1)
    return f"F.max_pool2d({m}[None] * 1.25, 2, return_indices=True)", 2


def _unpooled(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and min(t.shape) > 1)
    y, i = b.emit(f"F.max_pool2d(torch.tanh({m})[None], 2, return_indices=True)", 2)
    rows, columns = b.tensor(m).shape
    size = (rows // 2 * 2, columns // 2 * 2)
    return f"F.max_unpool2d({y}, {i}, 2, output_size={size})[0]" if size == (rows, columns) else y


def _adaptive(b: Builder) -> tuple[str, int]:
    return f"F.adaptive_max_pool2d({b.matrix()}[None], (2, 3), return_indices=True)", 2


def _frexp(b: Builder) -> str:
    return f"torch.frexp({b.value()})[0]"


def _log_determinant(b: Builder) -> tuple[str, int]:
    m = b.matrix()
    size = b.size(m, 0)
    return f"torch.linalg.slogdet({m} @ {m}.t() + 2 * torch.eye({size}, dtype={m}.dtype))", 2


def _lstm(b: Builder) -> tuple[str, int]:
    m = b.matrix()
    w, v = b.parameter(4 * 4, b.size(m, 1)), b.parameter(4 * 4, 4)
    state = f"{m}[:, :4].tanh()"
    return f"torch.lstm_cell({m}, ({state}, {state} * 0.5), {w}, {v})", 2


def _aminmax(b: Builder) -> tuple[str, int]:
    return f"torch.aminmax({_ramped(b)}, dim=1)", 2


def _qr(b: Builder) -> tuple[str, int]:
    m = b.value(lambda t: t.dim() == 2 and t.shape[0] >= t.shape[1])
    size = b.size(m, 1)
    gram = f"({m}.t() @ {m} + torch.eye({size}, dtype={m}.dtype))"
    return f"torch.linalg.qr({gram})", 2


OPERATORS: list[tuple[str, Operator]] = [
    ("topk", _topk),
    ("sort", _sort),
    ("max", _max),
    ("kthvalue", _kth),
    ("cummax", _cummax),
    ("var_mean", _var_mean),
    ("std_mean", _std_mean),
    ("native_layer_norm", _native_layer_norm),
    ("native_group_norm", _native_group_norm),
    ("split", _split),
    ("chunk", _chunk),
    ("unbind", _unbind),
    ("meshgrid", _meshed),
    ("max_pool", _pooled),
    ("max_unpool", _unpooled),
    ("adaptive_max_pool", _adaptive),
    ("frexp", _frexp),
    ("slogdet", _log_determinant),
    ("lstm_cell", _lstm),
    ("aminmax", _aminmax),
    ("qr", _qr),
]
