"""Autograd: nodes, the tensors that they have saved, and the running backward."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch


def is_of_compiled_graph(node: Any) -> bool:
    """Whether an autograd node is a compiled graph's, by AOTAutograd's class name. 2.11, 2.13."""
    return "CompiledFunction" in type(node).__name__


@functools.cache
def _names_of_saved(kind: type[Any]) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def saved_by(node: Any) -> list[torch.Tensor]:
    """Tensors that an autograd node has saved for its backward. This does not call ``unpack``,
    which would run users' hooks (checkpointing recomputes in them). A tensor that a hook put in a
    tensor's place counts. ``_raw_saved_*``, ``SavedTensor.data``: 2.11, 2.13, 2.14."""
    found: list[Any] = []
    for name in _names_of_saved(type(node)):  # type: ignore[arg-type]
        try:
            raw = getattr(node, name)
        except RuntimeError:  # the backward has run and freed them
            continue
        found += [each.data for each in (raw if isinstance(raw, (tuple, list)) else (raw,))]
    found += getattr(node, "__dict__", {}).values()  # what a custom function keeps on its context
    return [value for value in found if isinstance(value, torch.Tensor)]


def backward_node(tensor: torch.Tensor) -> Any | None:
    """The autograd node of the compiled graph that made ``tensor``; None if there is none. The node
    lives until nobody can call the backward any more. 2.11, 2.13."""
    node = tensor.grad_fn
    for _ in range(4):  # views of outputs have nodes of their own in front
        if node is None or is_of_compiled_graph(node):
            return node
        node = node.next_functions[0][0] if node.next_functions else None
    return None


def current_backward_node() -> Any:
    """The autograd node whose backward runs in this thread. 2.11, 2.13."""
    return torch._C._current_autograd_node()


def leaves_behind(edges: Mapping[int, int]) -> dict[int, torch.Tensor | None]:
    """The leaves whose gradients the running backward computes, by the keys of ``edges``. Its
    values are positions among the edges of the backward's node. 2.11, 2.13."""
    functions = current_backward_node().next_functions
    return {name: getattr(functions[edge][0], "variable", None) for name, edge in edges.items()}


def current_backward_task() -> int:
    """A number that identifies the ``backward()`` running in this thread. 2.11, 2.13."""
    return int(torch._C._current_graph_task_id())


def keeps_graph() -> bool:
    """Whether the running backward may run again (``retain_graph``). 2.11, 2.13."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def will_accumulate(accumulation: Any) -> bool:
    """Whether the running backward will put a gradient into a leaf's ``.grad``, given the leaf's
    ``AccumulateGrad``. It will not under ``autograd.grad``, where the engine raises an exception,
    nor where ``inputs=`` leaves the leaf out. 2.11, 2.13."""
    try:
        return bool(torch._C._will_engine_execute_node(accumulation))
    except RuntimeError:
        return False


def has_gradient_hooks(tensor: torch.Tensor) -> bool:
    """Whether a leaf has hooks that receive its gradient. 2.11, 2.13."""
    return bool(tensor._backward_hooks or tensor._post_accumulate_grad_hooks)
