"""Views, and what gathers, scatters and joins."""

from __future__ import annotations

from tests.programs.builder import Builder, Operator


def _transposed(b: Builder) -> str:
    return f"{b.matrix()}.t()"


def _reshaped(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.shape[0] % 2 == 0 and t.numel() > 0)
    return f"{m}.reshape({b.size(m, 0) // 2}, {b.size(m, 1) * 2})"


def _three(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.shape[1] % 2 == 0 and t.numel() > 0)
    return f"{m}.reshape({b.size(m, 0)}, 2, {b.size(m, 1) // 2})"


def _flat(b: Builder) -> str:
    x = b.value(lambda t: t.dim() > 2)
    return f"{x}.flatten(1)"


def _slice(b: Builder) -> str:
    m = b.matrix()
    return f"{m}[{b.number(2)}:, ::{1 + b.number(2)}]"


def _expand(b: Builder) -> str:
    x = b.value(lambda t: t.dim() == 1 and 0 < t.numel() <= 32)
    return f"{x}.expand(6, {b.size(x, 0)})"


def _select(b: Builder) -> str:
    m = b.matrix()
    return f"{m}.select({b.number(2)}, 0)"


def _unfold(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.shape[1] >= 4)
    return f"{m}.unfold(1, 4, {1 + b.number(3)}).sum(-1)"


def _diagonal(b: Builder) -> str:
    return f"{b.matrix()}.diagonal()"


def _strided(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.is_contiguous() and t.shape[0] >= 2)
    rows, columns = b.tensor(m).shape
    return f"{m}.as_strided(({rows - 1}, {columns}), ({columns}, 1), {columns})"


def _same(b: Builder) -> str:
    return f"{b.value()}.view_as({b.value()})"


def _contiguous(b: Builder) -> str:
    return f"{b.matrix()}.t().contiguous()"


def _rolled(b: Builder) -> str:
    return f"torch.roll({b.matrix()}, 1, {b.number(2)}).flip(0)"


def _padded(b: Builder) -> str:
    return f"F.pad({b.matrix()}, (1, 1), value=0.5)[:, 1:]"


def _cat(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.shape[1] <= 32)
    return f"torch.cat([{m}, {b.like(m)}], 1)"


def _stack(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.numel() <= 256)
    return f"torch.stack([{m}, {b.like(m)}])"


def _rows(b: Builder) -> str:
    m = b.matrix()
    return f"{m}[{b.index(lambda t: t.dim() == 1)} % {b.size(m, 0)}]"


def _gather(b: Builder) -> str:
    m = b.matrix()
    i = b.index(lambda t: t.dim() == 1 and t.shape[0] <= b.size(m, 0))
    return f"{m}.gather(1, {i}[:, None] % {b.size(m, 1)}).squeeze(1)"


def _index_select(b: Builder) -> str:
    m = b.matrix()
    return f"{m}.index_select(0, {b.index(lambda t: t.dim() == 1)} % {b.size(m, 0)})"


def _index_add(b: Builder) -> str:
    m = b.matrix()
    i = b.index(lambda t: t.dim() == 1 and t.shape[0] == b.size(m, 0))
    return f"torch.zeros_like({m}).index_add(0, {i} % {b.size(m, 0)}, {m})"


def _scatter(b: Builder) -> str:
    m = b.matrix()
    i = b.index(lambda t: t.dim() == 1 and t.shape[0] == b.size(m, 0))
    return f"{m}.scatter_add(1, {i}[:, None] % {b.size(m, 1)}, {b.like(m)}[:, :1])"


def _index_put(b: Builder) -> str:
    m = b.matrix()
    i = b.index(lambda t: t.dim() == 1 and t.shape[0] == b.size(m, 0))
    return f"{m}.index_put(({i} % {b.size(m, 0)},), {b.like(m)}, accumulate=True)"


def _cumsum(b: Builder) -> str:
    return f"torch.cumsum({b.matrix()}, {b.number(2)}) / 4"


def _lower(b: Builder) -> str:
    return f"torch.tril({b.matrix()})"


def _one_hot(b: Builder) -> str:
    m = b.matrix()
    i = b.index(lambda t: t.dim() == 1 and t.shape[0] == b.size(m, 0))
    size = b.size(m, 1)
    return f"{m} * F.one_hot({i} % {size}, {size})"


def _argmax(b: Builder) -> str:
    m = b.matrix()
    return f"({m} + 0.01 * torch.arange({b.size(m, 1)}, dtype={m}.dtype)).argmax(1)"


def _repeated(b: Builder) -> str:
    m = b.value(lambda t: t.dim() == 2 and t.shape[0] <= 12)
    return f"{m}.repeat_interleave(2, 0)"


def _mean_rows(b: Builder) -> str:
    return f"{b.matrix()}.mean(0)"


OPERATORS: list[tuple[str, Operator]] = [
    ("transpose", _transposed),
    ("reshape", _reshaped),
    ("reshape to three", _three),
    ("flatten", _flat),
    ("slice", _slice),
    ("expand", _expand),
    ("select", _select),
    ("unfold", _unfold),
    ("diagonal", _diagonal),
    ("as_strided", _strided),
    ("view_as", _same),
    ("contiguous", _contiguous),
    ("roll", _rolled),
    ("pad", _padded),
    ("cat", _cat),
    ("stack", _stack),
    ("rows", _rows),
    ("gather", _gather),
    ("index_select", _index_select),
    ("index_add", _index_add),
    ("scatter_add", _scatter),
    ("index_put", _index_put),
    ("cumsum", _cumsum),
    ("tril", _lower),
    ("one_hot", _one_hot),
    ("argmax", _argmax),
    ("repeat_interleave", _repeated),
    ("mean of rows", _mean_rows),
]
