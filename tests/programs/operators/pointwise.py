"""Pointwise operators, sums, casts, and random draws."""

from __future__ import annotations

from tests.programs.builder import Builder, Operator


def _unary(template: str) -> Operator:
    def operator(b: Builder) -> str:
        return template.format(x=b.value())

    return operator


def _binary(template: str) -> Operator:
    def operator(b: Builder) -> str:
        x = b.value()
        return template.format(x=x, y=b.like(x))

    return operator


def _row(b: Builder) -> str:
    """Broadcast over rows."""
    m = b.matrix()
    return f"{m} * {b.parameter(b.size(m, 1))}"


def _column(b: Builder) -> str:
    m = b.matrix()
    return f"{m} - {m}.mean(1, keepdim=True)"


# Numbers are drawn in the order of memory, which torch's decompositions do not always keep to: what is
# drawn for must be contiguous, or eager draws others.
def _dropout(b: Builder) -> str:
    return f"F.dropout({b.value()}.contiguous(), 0.{1 + b.number(5)})"


OPERATORS: list[tuple[str, Operator]] = [
    ("tanh", _unary("torch.tanh({x})")),
    ("mul", _binary("{x} * {y}")),
    ("add", _binary("{x} + {y}")),
    ("sigmoid", _unary("torch.sigmoid({x})")),
    ("gelu", _unary("F.gelu({x})")),
    ("sin", _unary("torch.sin({x})")),
    ("relu", _unary("F.relu({x})")),
    ("bump", _unary("torch.exp(-{x} * {x})")),
    ("div", _binary("{x} / ({y} * {y} + 1)")),
    ("where", _binary("torch.where({x} > {y}, {x}, 2 * {y})")),
    ("maximum", _binary("torch.maximum({x}, {y})")),
    ("addcmul", _binary("torch.addcmul({x}, {y}, {x}, value=0.5)")),
    ("row", _row),
    ("column", _column),
    ("clamp", _unary("{x}.clamp(-1, 1)")),
    ("detach", _unary("{x}.detach()")),
    ("scaled by detached", _unary("{x} / (1 + {x}.detach().abs().sum())")),
    ("total", _unary("{x} * {x}.mean()")),
    ("amax", _unary("{x} - {x}.amax(-1, keepdim=True)")),
    ("logsumexp", _unary("torch.logsumexp({x}, -1)")),
    ("norm", _unary("{x} / ({x}.norm() + 1)")),
    ("prod", _unary("torch.cumprod(torch.cos({x}), -1)")),
    ("half", _unary("{x}.to(torch.bfloat16).to(DTYPE)")),
    ("random dropout", _dropout),
    ("random dropout in place", _unary("F.dropout({x} + 0, 0.5, inplace=True)")),
    ("random own bernoulli", _unary("{x} * torch.bernoulli(torch.sigmoid({x}))")),
    ("random normal", _unary("{x} + 0.1 * torch.randn_like({x}.contiguous())")),
    ("random uniform", _unary("{x} * torch.rand({x}.shape, dtype={x}.dtype)")),
    ("random rows", _unary("{x}[torch.randperm({x}.shape[0])]")),
    ("random leaky", _unary("F.rrelu({x}, training=True)")),
    ("random mask", _unary("{x}.masked_fill(torch.rand_like({x}.contiguous()) < 0.3, 0.25)")),
    ("random integers", _unary("{x} * torch.randint(0, 3, {x}.shape)")),
    ("random written", _unary("{x} * torch.empty_like({x}).uniform_(0.5, 1.5)")),
]
