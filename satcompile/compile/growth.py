"""Whether generated code takes no less memory for larger sizes, as its text shows.

A wrapper's allocations and frees have a fixed order; only their sizes are expressions. If each
expression grows with each of its symbols, so do the step's peaks and all other sums of a walk. The
figures at larger sizes then bound those at smaller ones. For sizes that come only once, a walk at
the next larger sizes of a grid is therefore enough, and that walk can be used again.

Everything that is not known to grow is assumed to shrink: differences, remainders, quotients by
sizes, and comparisons. The same holds for operators that make their own results, except a few known
ones. On the CPU it holds for all of these, because their workspace is measured by calling them.
"""

from __future__ import annotations

import ast
import functools
from typing import Any

import sympy

from satcompile.compile.allocation import GeneratedGraph, ScalarSpec, TensorSpec, runs_on_cpu

_GROWING = (ast.Add, ast.Mult, ast.FloorDiv)
_DECIDING = (ast.Compare, ast.BoolOp, ast.IfExp, ast.If, ast.While, ast.For)
# Operators with results of their inputs' sizes, or of windows over them, or without results.
_MAKERS = frozenset(
    {
        "aten.mm", "aten.bmm", "aten.addmm", "aten.convolution", "aten.convolution_backward",
        "aten.embedding", "aten.native_dropout", "satcompile.update_",
        *(
            f"aten._scaled_dot_product_{kind}_attention{direction}"
            for kind in ("flash", "efficient", "cudnn")
            for direction in ("", "_backward")
        ),
    }
)  # fmt: skip
# If a CPU's graph has one of these, some operator's workspace was measured by a call.
_TRIED = ("torch.ops.", "aten.", "convolution", "mkldnn", "torch.bfloat16", "torch.float16")
_TRIED_ON_GPU = ("convolution",)  # cuDNN takes another algorithm at another size

GRIDS = (0, 4)  # bits after the leading one: powers of two, and 16 sizes per power


def rounded_up(size: int, bits: int) -> int:
    """The next size on a grid whose sizes have ``bits`` bits after the leading one. It is at most
    one part in ``2**bits`` above ``size``."""
    step = 1 << max(0, size.bit_length() - 1 - bits)
    return -(-size // step) * step


def grows_with_sizes(graph: GeneratedGraph) -> bool:
    """Whether no allocation of the code shrinks when a symbol of its sizes grows."""
    return _text_grows(graph.source) and all(_input_grows(spec) for spec in graph.inputs)


def _input_grows(spec: Any) -> bool:
    if isinstance(spec, TensorSpec):
        return all(_expression_grows(value) for value in (*spec.shape, *spec.strides))
    return not isinstance(spec, ScalarSpec) or _expression_grows(spec.expression)


def _expression_grows(value: Any) -> bool:
    if isinstance(value, int):
        return value >= 0
    return all(
        part.is_Symbol
        or (part.is_Integer and part >= 0)
        or isinstance(part, (sympy.Add, sympy.Mul))
        or (isinstance(part, sympy.Pow) and part.exp.is_Integer and part.exp > 0)
        for part in sympy.preorder_traversal(value)
    )


@functools.lru_cache(maxsize=64)
def _text_grows(source: str) -> bool:
    module = ast.parse(source)
    calls = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and node.name == "call"
    ]
    if len(calls) != 1:
        return False
    tried = _TRIED if runs_on_cpu(source) else _TRIED_ON_GPU
    if any(word in ast.unparse(calls[0]) for word in tried):
        return False
    return all(_grows(node) for node in ast.walk(calls[0]))


def _grows(node: ast.AST) -> bool:
    """Whether one part of the text grows; the caller checks the parts inside it separately."""
    if isinstance(node, _DECIDING):
        return False
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.operand, ast.Constant)  # a dimension; factors are checked below
    if isinstance(node, ast.Call):
        return _call_grows(node)
    if not isinstance(node, ast.BinOp):
        return True
    if isinstance(node.op, ast.FloorDiv):
        return _is_positive(node.right)
    constants = [side for side in (node.left, node.right) if _is_constant(side)]
    return isinstance(node.op, _GROWING) and all(map(_is_positive, constants))


def _call_grows(node: ast.Call) -> bool:
    """Whether a call grows with its arguments. Allocations, views, kernels and operators with an
    ``out=`` do."""
    if any(word.arg == "out" for word in node.keywords):
        return True
    match ast.unparse(node.func).split("."):
        case ["torch", "ops", namespace, name, *_]:
            return f"{namespace}.{name}" in _MAKERS
        case ["extern_kernels" | "aten", name, *_]:
            return f"aten.{name}" in _MAKERS
        case ["math", *_] | ["max" | "min" | "abs" | "int" | "float"]:
            return False
    return True


def _is_constant(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_constant(node.operand)
    return isinstance(node, ast.Constant)


def _is_positive(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value > 0
