"""Products, convolutions, normalisations, attention, losses, and transforms."""

from __future__ import annotations

import torch

from tests.programs.builder import Builder, Operator
from tests.programs.program import COLUMNS, ROWS


def _linear(b: Builder) -> str:
    m = b.matrix()
    return f"F.linear({m}, {b.parameter(COLUMNS, b.size(m, 1))}, {b.parameter(COLUMNS)})"


def _mm(b: Builder) -> str:
    m = b.matrix()
    return f"{m} @ {b.parameter(b.size(m, 1), (COLUMNS, ROWS, 5)[b.number(3)])}"


def _mm_values(b: Builder) -> str:
    m = b.matrix()
    n = b.value(lambda t: t.dim() == 2 and t.shape[0] == b.size(m, 1))
    return f"{m} @ {n}"


def _gram(b: Builder) -> str:
    m = b.matrix()
    return f"torch.einsum('ij,kj->ik', {m}, {b.like(m)}) / {b.size(m, 1)}"


def _tied(b: Builder) -> str:
    """A weight read as it is and transposed."""
    m = b.matrix()
    w = b.parameter(COLUMNS, b.size(m, 1))
    return f"torch.tanh({m} @ {w}.t()) @ {w}"


def _bmm(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 3 and t.numel() > 0)
    return f"torch.bmm({m}, {m}.transpose(1, 2)).softmax(-1) @ {m}"


def _addmm(b: Builder) -> str:
    m = b.matrix()
    bias, w = b.parameter(COLUMNS), b.parameter(b.size(m, 1), COLUMNS)
    return f"torch.addmm({bias}, {m}, {w}, beta=0.5)"


def _softmax(b: Builder) -> str:
    x = b.value(lambda t: t.dim() > 0)
    return f"torch.softmax({x}, {b.number(len(b.tensor(x).shape))})"


def _log_softmax(b: Builder) -> str:
    return f"F.log_softmax({b.value(lambda t: t.dim() > 0)}, -1)"


def _layer_norm(b: Builder) -> str:
    x = b.value(lambda t: t.dim() > 1 and t.shape[-1] > 1)
    size = b.size(x, -1)
    return f"F.layer_norm({x}, ({size},), {b.parameter(size)}, {b.parameter(size)})"


def _rms_norm(b: Builder) -> str:
    x = b.value(lambda t: t.dim() > 1 and t.shape[-1] > 1)
    return f"F.rms_norm({x}, ({b.size(x, -1)},), {b.parameter(b.size(x, -1))})"


def _group_norm(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.shape[1] % 2 == 0 and t.shape[1] > 2)
    return f"F.group_norm({m}, 2, {b.parameter(b.size(m, 1))})"


def _conv1d(b: Builder) -> str:
    m = b.matrix()
    rows, bias = b.size(m, 0), b.parameter(ROWS)
    return f"F.conv1d({m}[None], {b.parameter(ROWS, rows, 3)}, {bias}, padding=1)[0]"


def _conv2d(b: Builder) -> str:
    m = b.matrix()
    w = b.parameter(2, 1, 3, 3)
    return f"F.conv2d({m}[None, None], {w}, padding=1).mean(1)[0]"


def _conv_pair(b: Builder) -> str:
    """Two of them, strided and in groups, and a normalisation between."""
    m = b.matrix()
    w, v = b.parameter(4, 1, 3, 3), b.parameter(4, 2, 1, 1)
    return (
        f"F.conv2d(F.relu(F.instance_norm(F.conv2d({m}[None, None], {w}, stride=2, padding=1))), "
        f"{v}, groups=2).flatten(2)[0]"
    )


def _conv_transposed(b: Builder) -> str:
    m = b.matrix()
    w = b.parameter(b.size(m, 0), 2, 3)
    return f"F.conv_transpose1d({m}[None], {w}, stride=2)[0]"


def _attention(b: Builder) -> str:
    m = b.matrix()
    n = b.like(m)
    causal = bool(b.number(2))
    q, k = f"{m}[None, None]", f"{n}[None, None]"
    return f"F.scaled_dot_product_attention({q}, {k}, {k}, is_causal={causal})[0, 0]"


def _attention_of_heads(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.shape[1] % 2 == 0 and t.numel() > 0)
    rows, columns = b.tensor(m).shape
    w = b.parameter(3 * columns, columns)
    heads = f"F.linear({m}, {w}).view(1, {rows}, 3, 2, {columns // 2}).permute(2, 0, 3, 1, 4)"
    (h,) = b.emit(heads)
    attended = f"F.scaled_dot_product_attention({h}[0], {h}[1], {h}[2], is_causal=True)"
    return f"{attended}.transpose(1, 2).reshape({rows}, {columns})"


def _attention_dropout(b: Builder) -> str:
    m = b.matrix()
    q = f"{m}[None, None]"
    return f"F.scaled_dot_product_attention({q}, {q}, {q}, dropout_p=0.25)[0, 0]"


def _cross_entropy(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.shape[0] == ROWS and t.shape[1] >= COLUMNS)
    return f"F.cross_entropy({m}, labels, label_smoothing=0.{b.number(2)})"


def _nll(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.shape[0] == ROWS and t.shape[1] >= COLUMNS)
    return f"F.nll_loss(F.log_softmax({m}, 1), labels, ignore_index=2, reduction='none')"


def _binary_loss(b: Builder) -> str:
    x = b.value()
    return f"F.binary_cross_entropy_with_logits({x}, torch.sigmoid({b.like(x)}).detach())"


def _smooth_loss(b: Builder) -> str:
    x = b.value()
    return f"F.smooth_l1_loss({x}, {b.like(x)}, reduction='none')"


def _embedding(b: Builder) -> str:
    i = b.index(lambda t: bool((t < COLUMNS).all()) and t.dim() < 3)
    return f"F.embedding({i} % {COLUMNS}, {b.parameter(COLUMNS, COLUMNS)})"


def _embedding_bag(b: Builder) -> str:
    i = b.index(lambda t: t.dim() == 2)
    return f"F.embedding_bag({i} % {COLUMNS}, {b.parameter(COLUMNS, COLUMNS)}, mode='sum')"


def _average_pool(b: Builder) -> str:
    return f"F.avg_pool2d({b.matrix()}[None], 2, ceil_mode=True)[0]"


def _upsampled(b: Builder) -> str:
    return f"F.interpolate({b.matrix()}[None], scale_factor=2, mode='linear')[0, :, ::2]"


def _fourier(b: Builder) -> str:
    return f"torch.fft.rfft({b.matrix()}).abs().square()"


def _fourier_filter(b: Builder) -> str:
    m = b.matrix()
    size = b.size(m, 1)
    w = b.parameter(size // 2 + 1, 2)
    filtered = f"torch.fft.rfft({m}) * torch.view_as_complex({w})"
    return f"torch.fft.irfft({filtered}, n={size})"


def _complex(b: Builder) -> str:
    x = b.value()
    return f"(torch.complex({x}, {b.like(x)}) * torch.polar(torch.ones_like({x}), {x})).real"


def _determinant(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.dtype != _BF16)
    gram = f"{m} @ {m}.t() + torch.eye({b.size(m, 0)}, dtype={m}.dtype)"
    return f"torch.linalg.cholesky({gram}).diagonal().log().sum()"


def _distance(b: Builder) -> str:
    m = b.matrix()
    return f"torch.cdist({m}, {m} + 1)"


def _gru(b: Builder) -> str:
    m = b.matrix()
    w, v = b.parameter(3 * 4, b.size(m, 1)), b.parameter(3 * 4, 4)
    return f"torch.gru_cell({m}, {m}[:, :4].tanh(), {w}, {v})"


_BF16 = torch.bfloat16

OPERATORS: list[tuple[str, Operator]] = [
    ("linear", _linear),
    ("mm", _mm),
    ("mm of values", _mm_values),
    ("gram", _gram),
    ("tied", _tied),
    ("bmm", _bmm),
    ("addmm", _addmm),
    ("softmax", _softmax),
    ("log_softmax", _log_softmax),
    ("layer_norm", _layer_norm),
    ("rms_norm", _rms_norm),
    ("group_norm", _group_norm),
    ("conv1d", _conv1d),
    ("conv2d", _conv2d),
    ("conv pair", _conv_pair),
    ("conv transposed", _conv_transposed),
    ("attention", _attention),
    ("attention of heads", _attention_of_heads),
    ("random attention", _attention_dropout),
    ("cross_entropy", _cross_entropy),
    ("nll_loss", _nll),
    ("binary loss", _binary_loss),
    ("smooth loss", _smooth_loss),
    ("embedding", _embedding),
    ("embedding_bag", _embedding_bag),
    ("avg_pool", _average_pool),
    ("interpolate", _upsampled),
    ("fft", _fourier),
    ("fft filter", _fourier_filter),
    ("complex", _complex),
    ("cholesky", _determinant),
    ("cdist", _distance),
    ("gru_cell", _gru),
    ("cube", lambda b: f"Cube.apply({b.value()})"),
    ("squash", lambda b: f"Squash.apply({b.value()})"),
    ("sign and size", lambda b: (f"SignAndSize.apply({b.value()})", 2)),
    ("straight through", lambda b: f"StraightThrough.apply({b.value()})"),
]
