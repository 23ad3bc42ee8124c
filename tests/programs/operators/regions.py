"""Regions that are checkpointed, cast, or without gradients, around the instructions to come."""

from __future__ import annotations

from tests.programs.builder import Builder, NotPossible, Operator

_DEPTH = 3


def _length(b: Builder) -> int:
    if b.depth >= _DEPTH:
        raise NotPossible
    return 1 + b.number(6)


def _checkpoint(b: Builder) -> None:
    b.open_region(_length(b), "use_reentrant=False")


def _selective(b: Builder) -> None:
    b.open_region(_length(b), "use_reentrant=False, context_fn=selective")


def _no_grad(b: Builder) -> None:
    b.open_context(_length(b), "torch.no_grad()")


def _autocast(b: Builder) -> None:
    if b.dtype.itemsize != 4:
        raise NotPossible  # autocast leaves float64 alone
    b.open_context(_length(b), 'torch.autocast("cpu", torch.bfloat16)')


OPERATORS: list[tuple[str, Operator]] = [
    ("checkpoint", _checkpoint),
    ("checkpoint", _checkpoint),
    ("checkpoint", _checkpoint),
    ("selective", _selective),
    ("selective", _selective),
    ("no_grad", _no_grad),
    ("autocast", _autocast),
    ("autocast", _autocast),
    ("autocast", _autocast),
]
