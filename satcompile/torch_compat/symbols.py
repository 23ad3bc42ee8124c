"""Symbolic sizes: their hints and their expressions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch

SymTypes = (torch.SymInt, torch.SymFloat, torch.SymBool)


_sizes: ContextVar[Mapping[Any, int] | None] = ContextVar("sizes", default=None)


@contextlib.contextmanager
def planning_for(sizes: Mapping[Any, int]) -> Iterator[None]:
    """Inside, ``size_hint`` takes these values for symbols, not those of the first call."""
    token = _sizes.set(sizes or None)
    try:
        yield
    finally:
        _sizes.reset(token)


def size_hint(value: Any, fallback: int = 4096) -> int:
    """The concrete value behind a size that may be symbolic, without adding a guard."""
    if isinstance(value, int):
        return value
    if not isinstance(value, torch.SymInt):
        return int(value)
    sizes = _sizes.get()
    if sizes is not None:
        found = value.node.expr.subs(sizes)
        if found.is_number:
            return int(found)
    try:
        from torch.fx.experimental.symbolic_shapes import optimization_hint  # 2.13
    except ImportError:
        from torch.fx.experimental.symbolic_shapes import (  # type: ignore[attr-defined]
            size_hint as hint_of,  # 2.11
        )

        return int(hint_of(value, fallback=fallback))
    return int(optimization_hint(value, fallback=fallback))


def is_symbolic(value: Any) -> bool:
    return isinstance(value, SymTypes)


def size_expression(value: Any) -> Any:
    """An int, or the sympy expression behind a symbolic size. 2.11, 2.13."""
    return value.node.expr if isinstance(value, SymTypes) else int(value)


def new_shape_environment() -> Any:
    """An environment that gives symbolic sizes their symbols. 2.11, 2.13."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return ShapeEnv()
