"""Writes in place: into values, into parts of them, and into inputs."""

from __future__ import annotations

from tests.programs.builder import Builder, Operator


def _target(b: Builder) -> str:
    """What may be written into: some value as it is, or a copy of one."""
    if b.number(3) == 0:
        return b.emit(f"{b.matrix()}.clone()")[0]
    if b.number(2) == 0:
        return b.emit(f"{b.matrix()} * 0.75")[0]
    return b.value(lambda t: t.dim() == 2 and t.numel() > 0 and not (t.is_leaf and t.requires_grad))


def _with_like(template: str) -> Operator:
    def operator(b: Builder) -> None:
        y = _target(b)
        b.do(template.format(y=y, x=b.like(y)))

    return operator


def _alone(template: str) -> Operator:
    def operator(b: Builder) -> None:
        b.do(template.format(y=_target(b)))

    return operator


def _with_index(template: str) -> Operator:
    def operator(b: Builder) -> None:
        y = _target(b)
        x = b.like(y)
        i = b.index(lambda t: t.dim() == 1 and t.shape[0] >= b.size(y, 0))
        rows = b.size(y, 0)
        b.do(template.format(y=y, x=x, i=f"({i}[:{rows}] % {rows})"))

    return operator


def _input(b: Builder) -> None:
    b.do(("x1.mul_(0.5)", "x1.add_(1)", "x1[1:].zero_()", "x1.copy_(x0.detach())")[b.number(4)])


def _into_view(b: Builder) -> None:
    """A view made before the write and read behind it."""
    y = _target(b)
    (view,) = b.emit(f"{y}[{b.number(2)}:]")
    x = b.like(y)
    b.do(f"{y}.add_({x})")
    b.emit(f"{view} * 2")


def _through_view(b: Builder) -> None:
    y = _target(b)
    (view,) = b.emit(f"{y}.t()")
    b.do(f"{view}[:2].mul_(0.5)")
    b.emit(f"torch.sin({y})")


OPERATORS: list[tuple[str, Operator]] = [
    ("add_", _with_like("{y}.add_({x})")),
    ("mul_", _with_like("{y}.mul_(torch.tanh({x}))")),
    ("copy_", _with_like("{y}.copy_({x})")),
    ("tanh_", _alone("{y}.tanh_()")),
    ("relu_", _alone("F.relu({y}, inplace=True)")),
    ("masked_fill_", _with_like("{y}.masked_fill_({x} > 0.5, 0.25)")),
    ("index_copy_", _with_index("{y}.index_copy_(0, {i}[:1], {x}[:1])")),
    ("index_add_", _with_index("{y}.index_add_(0, {i}, {x})")),
    ("index_fill_", _with_index("{y}.index_fill_(0, {i}, 0.5)")),
    ("put rows", _with_index("{y}[{i}[:1]] = {x}[:1]")),
    ("slice written", _with_like("{y}[1:3] = {x}[0:2]")),
    ("column written", _with_like("{y}[:, 0] = {x}[:, -1]")),
    ("part scaled", _alone("{y}[:, :2].mul_(0.5)")),
    ("row zeroed", _alone("{y}[0].zero_()")),
    ("input written", _input),
    ("view read behind a write", _into_view),
    ("written through a view", _through_view),
]
