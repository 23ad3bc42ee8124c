"""What a node of a graph is, and where in the user's model it comes from."""

from __future__ import annotations

import re

import torch
from torch import fx

from satcompile.torch_compat.operators import OpOverload, schema_of


def is_random(node: fx.Node) -> bool:
    """Whether ``node`` draws random numbers. Inductor's ``inductor_random`` does not: it is a
    function of its seed, and replaying it from a saved seed gives the same numbers."""
    target = node.target
    if "inductor_seed" in str(target):
        return True
    if "inductor_rand" in str(target) or "inductor_lookup_seed" in str(target):
        return False
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    return _argument(node, "dropout_p") != 0  # attention is tagged even where it drops nothing


def _argument(node: fx.Node, name: str) -> object:
    """The value that ``node`` has for an argument of its schema; None if there is no such one."""
    if not isinstance(node.target, OpOverload):
        return None
    for position, argument in enumerate(schema_of(node.target).arguments):
        if argument.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, argument.default_value)
    return None


def is_mutation(node: fx.Node) -> bool:
    """Whether ``node`` writes into one of its arguments."""
    return isinstance(node.target, OpOverload) and schema_of(node.target).is_mutable


def module_path(node: fx.Node) -> str:
    """Path of the innermost module whose forward made the node, as in ``named_modules()``. For a
    node of the backward, it is the path of the module that the node differentiates."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    path = re.sub(r"\['?([^'\]]+)'?\]", r".\1", path)
    path = re.sub(r"^L\.?", "", path.replace("_modules.", "").replace("._orig_mod", ""))
    return re.sub(r"^\.*(self\.?)?", "", path)


def source_line(node: fx.Node) -> str:
    """ "file.py:123" of the innermost frame of the user's code."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    file, line = frames[-1]
    return f"{file.rsplit('/', 1)[-1]}:{line}"
