"""Random faults in planned graphs: what a broken pass could do to them.

Every fault changes what the step computes (or would crash it). What leaves the meaning alone,
such as swapping the two arguments of a sum, is not made.
"""

from __future__ import annotations

import contextlib
import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import fx

from satcompile.compile.partition import Partition
from satcompile.compile.verify import signature
from satcompile.graph.nodes import is_random

aten = torch.ops.aten

_COMMUTATIVE = {
    aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default, aten.eq.Tensor,
    aten.ne.Tensor, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.logical_and.default,
    aten.logical_or.default,
}  # fmt: skip
_OTHER_OPERATOR = {
    aten.add.Tensor: aten.sub.Tensor, aten.sub.Tensor: aten.add.Tensor,
    aten.mul.Tensor: aten.div.Tensor, aten.div.Tensor: aten.mul.Tensor,
    aten.exp.default: aten.log.default, aten.log.default: aten.exp.default,
    aten.tanh.default: aten.sigmoid.default, aten.sigmoid.default: aten.tanh.default,
    aten.rsqrt.default: aten.sqrt.default, aten.erf.default: aten.tanh.default,
    aten.sin.default: aten.cos.default, aten.cos.default: aten.sin.default,
    aten.neg.default: aten.abs.default, aten.relu.default: aten.neg.default,
    aten.gt.Scalar: aten.lt.Scalar, aten.ge.Scalar: aten.gt.Scalar, aten.le.Scalar: aten.lt.Scalar,
    aten.lt.Scalar: aten.le.Scalar, aten.eq.Scalar: aten.ne.Scalar, aten.ne.Scalar: aten.eq.Scalar,
    aten.sum.dim_IntList: aten.mean.dim, aten.mean.dim: aten.sum.dim_IntList,
    aten.amax.default: aten.amin.default, aten.amin.default: aten.amax.default,
    aten.clone.default: aten.zeros_like.default,
}  # fmt: skip


class Mutant:
    """A copy of a partition to break, and where chance comes from."""

    def __init__(self, parts: Partition, chance: random.Random) -> None:
        self._original, self.chance = parts, chance

    @property
    def parts(self) -> Partition:
        """The partition as it now is; a graph that no fault looked at is the original's."""
        made = self.__dict__
        return replace(
            self._original,
            forward=made.get("_forward", self._original.forward),
            backward=made.get("_backward", self._original.backward),
        )

    @property
    def num_outputs(self) -> int:
        return self._original.num_outputs

    @cached_property
    def _forward(self) -> fx.GraphModule:
        return _copy(self._original.forward)

    @cached_property
    def _backward(self) -> fx.GraphModule:
        return _copy(self._original.backward)

    @property
    def forward(self) -> fx.Graph:
        return self._forward.graph

    @property
    def backward(self) -> fx.Graph:
        return self._backward.graph

    def a_graph(self) -> fx.Graph:
        return self.chance.choice([self.forward, self.backward])

    def an_operation(self, where: Callable[[fx.Node], Any] = lambda node: True) -> fx.Node:
        graph = self.a_graph()
        # What nobody reads has no meaning to break; effects are a kind of their own.
        return self.one_of([n for n in _operations(graph) if n.users and where(n)])

    def one_of(self, choices: Any) -> Any:
        choices = list(choices)
        if not choices:
            raise Inapplicable
        return self.chance.choice(choices)

    def two_of(self, choices: Any) -> Any:
        choices = list(choices)
        if len(choices) < 2:
            raise Inapplicable
        return self.chance.sample(choices, 2)


class Inapplicable(Exception):
    """The drawn place cannot have this kind of fault; nothing was changed, draw again."""


def _copy(module: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        values[node] = graph.node_copy(node, lambda n: values[n])
        values[node].meta = dict(node.meta)
        assert values[node].name == node.name
    return fx.GraphModule(module, graph)


def _operations(graph: fx.Graph) -> Iterator[fx.Node]:
    return (node for node in graph.nodes if node.op == "call_function")


def _output(graph: fx.Graph) -> fx.Node:
    return next(iter(graph.find_nodes(op="output")))


def _replace_first(value: Any, old: Any, new: Any) -> Any:
    """``value`` with one occurrence of ``old`` replaced, looking into lists."""
    if isinstance(value, (tuple, list)):
        items = list(value)
        for position, item in enumerate(items):
            changed = _replace_first(item, old, new)
            if changed is not item:
                items[position] = changed
                break
        else:
            return value
        return type(value)(items)
    return new if value is old else value


def _changes(node: fx.Node, old: fx.Node, new: Any) -> bool:
    return _replace_first(node.args, old, new) is not node.args


def _swapped(value: Any, one: fx.Node, other: fx.Node) -> Any:
    return fx.node.map_arg(value, lambda n: other if n is one else one if n is other else n)


def _before(node: fx.Node) -> Iterator[fx.Node]:
    for earlier in node.graph.nodes:
        if earlier is node:
            return
        yield earlier


# -- edges -----------------------------------------------------------------------------------


def edge_to_another_value(mutant: Mutant) -> str:
    node = mutant.an_operation(lambda n: n.all_input_nodes)
    old = mutant.one_of(node.all_input_nodes)
    same = [n for n in _before(node) if n is not old and signature(n) == signature(old)]
    new = mutant.one_of(same)
    if not _changes(node, old, new):
        raise Inapplicable  # it stands among the keyword arguments
    node.args = _replace_first(node.args, old, new)
    return f"{node.name}: {old.name} -> {new.name}"


def edges_swapped(mutant: Mutant) -> str:
    node = mutant.an_operation(
        lambda n: len(n.all_input_nodes) > 1 and n.target not in _COMMUTATIVE
    )
    one, other = mutant.two_of(node.all_input_nodes)
    if not (_changes(node, one, other) and _changes(node, other, one)):
        raise Inapplicable
    node.args = _swapped(node.args, one, other)
    return f"{node.name}: {one.name} <-> {other.name}"


def edge_dropped(mutant: Mutant) -> str:
    node = mutant.an_operation(lambda n: n.all_input_nodes)
    old = mutant.one_of(node.all_input_nodes)
    constant = mutant.chance.choice([0, 1.0, None])
    if not _changes(node, old, constant):
        raise Inapplicable
    node.args = _replace_first(node.args, old, constant)
    return f"{node.name}: no {old.name}"


# -- operations ------------------------------------------------------------------------------


def operator_changed(mutant: Mutant) -> str:
    node = mutant.an_operation(lambda n: n.target in _OTHER_OPERATOR)
    old, node.target = node.target, _OTHER_OPERATOR[node.target]
    return f"{node.name}: {old} -> {node.target}"


def operation_skipped(mutant: Mutant) -> str:
    def passes_through(node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if signature(n) == signature(node)]

    node = mutant.an_operation(passes_through)
    instead = mutant.one_of(passes_through(node))
    node.replace_all_uses_with(instead)
    node.graph.erase_node(node)
    return f"{node.name} ({node.target}) skipped in favour of {instead.name}"


def _other_constant(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + chance.choice([-1, 1])
    if isinstance(value, float):
        return value * 1.5 + 0.25
    if isinstance(value, torch.dtype):
        return torch.float64 if value != torch.float64 else torch.float32
    if isinstance(value, str):
        return {"rand": "randn", "none": "tanh", "tanh": "none"}.get(value, value + "?")
    if isinstance(value, (tuple, list)) and value and all(type(v) is int for v in value):
        items = list(value)
        rotated = items[1:] + items[:1]
        if rotated != items and chance.random() < 0.5:
            return type(value)(rotated)
        position = chance.randrange(len(items))
        items[position] += 1
        return type(value)(items)
    raise Inapplicable


def constant_changed(mutant: Mutant) -> str:
    node = mutant.an_operation()
    positions = [i for i, v in enumerate(node.args) if v is not None and not _has_nodes(v)]
    names = [k for k, v in node.kwargs.items() if isinstance(v, (bool, int, float, torch.dtype))]
    # Beyond a dimension's end a slice is the same slice; frameworks read these as "no matter".
    if node.target in (aten.slice.Tensor, aten.slice_backward.default):
        positions = [i for i in positions if i < 2]
    names = [k for k in names if k not in ("requires_grad", "pin_memory")]
    where = mutant.one_of([*positions, *names])
    if isinstance(where, str):
        new = _other_constant(node.kwargs[where], mutant.chance)
        node.kwargs = {**node.kwargs, where: new}
    else:
        new = _other_constant(node.args[where], mutant.chance)
        node.args = tuple(new if i == where else v for i, v in enumerate(node.args))
    return f"{node.name} ({node.target}): argument {where} is now {new}"


def _has_nodes(value: Any) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return bool(found)


def result_of_another_number(mutant: Mutant) -> str:
    node = mutant.an_operation(lambda n: n.target is operator.getitem)
    results = node.args[0].meta["val"]
    other = mutant.one_of([i for i in range(len(results)) if i != node.args[1]])
    node.args = (node.args[0], other)
    return f"{node.name}: result {other} instead"


# -- metadata --------------------------------------------------------------------------------


def metadata_changed(mutant: Mutant) -> str:
    graph = mutant.a_graph()
    tensors = [n for n in graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    node = mutant.one_of(tensors)
    value = node.meta["val"]
    shape, strides, dtype = list(value.shape), list(value.stride()), value.dtype
    kind = mutant.one_of(["shape", "dtype", "strides"] if len(shape) > 1 else ["dtype"])
    if kind == "shape":
        shape[mutant.chance.randrange(len(shape))] += 1
    elif kind == "dtype":
        dtype = torch.float64 if dtype != torch.float64 else torch.float32
    elif strides[::-1] == strides:
        raise Inapplicable
    else:
        strides.reverse()
    with value.fake_mode:
        node.meta["val"] = torch.empty_strided(shape, strides, dtype=dtype, device=value.device)
    return f"{node.name}: {kind} is now {shape} {strides} {dtype}"


# -- the boundary and the results ------------------------------------------------------------


def _with_results(graph: fx.Graph, results: list[Any]) -> None:
    node = _output(graph)
    node.args = (type(node.args[0])(results),)


def saved_value_replaced(mutant: Mutant) -> str:
    results = list(_output(mutant.forward).args[0])
    position = mutant.one_of(range(mutant.num_outputs, len(results)))
    old = results[position]
    others = [n for n in mutant.forward.nodes if n is not old and n.op != "output"]
    alike = [n for n in others if signature(n) == signature(old)]
    results[position] = mutant.one_of(alike or others)
    _with_results(mutant.forward, results)
    return f"saved {results[position].name} instead of {old.name}"


def saved_values_swapped(mutant: Mutant) -> str:
    results = list(_output(mutant.forward).args[0])
    one, other = mutant.two_of(range(mutant.num_outputs, len(results)))
    if results[one] is results[other]:
        raise Inapplicable
    results[one], results[other] = results[other], results[one]
    _with_results(mutant.forward, results)
    return f"saved {results[one].name} <-> {results[other].name}"


def saved_value_removed(mutant: Mutant) -> str:
    results = list(_output(mutant.forward).args[0])
    position = mutant.one_of(range(mutant.num_outputs, len(results)))
    dropped = results.pop(position)
    _with_results(mutant.forward, results)
    return f"{dropped.name} not saved"


def forward_result_replaced(mutant: Mutant) -> str:
    results = list(_output(mutant.forward).args[0])
    position = mutant.one_of(range(mutant.num_outputs))
    old = results[position]
    alike = [n for n in mutant.forward.nodes if n is not old and signature(n) == signature(old)]
    results[position] = mutant.one_of(n for n in alike if n.op != "output")
    _with_results(mutant.forward, results)
    return f"the forward returns {results[position].name} instead of {old.name}"


def gradients_swapped(mutant: Mutant) -> str:
    results = list(_output(mutant.backward).args[0])
    one, other = mutant.two_of(i for i, r in enumerate(results) if r is not None)
    if results[one] is results[other]:
        raise Inapplicable
    results[one], results[other] = results[other], results[one]
    _with_results(mutant.backward, results)
    return f"gradients {results[one].name} <-> {results[other].name}"


def gradient_dropped(mutant: Mutant) -> str:
    results = list(_output(mutant.backward).args[0])
    position = mutant.one_of(i for i, r in enumerate(results) if r is not None)
    dropped, results[position] = results[position], None
    _with_results(mutant.backward, results)
    return f"gradient {dropped.name} is None"


def inputs_in_another_order(mutant: Mutant) -> str:
    """Graphs are called by position, so that two inputs change roles."""
    graph = mutant.a_graph()
    inputs = [n for n in graph.find_nodes(op="placeholder") if n.users]
    first, second = sorted(mutant.two_of(range(len(inputs))))
    one, other = inputs[first], inputs[second]
    after = other.next
    one.prepend(other)
    after.prepend(one)
    return (
        f"{'forward' if graph is mutant.forward else 'backward'} inputs {one.name} <-> {other.name}"
    )


# -- order, effects, random numbers ----------------------------------------------------------


def moved_before_an_input(mutant: Mutant) -> str:
    node = mutant.an_operation(lambda n: any(i.op == "call_function" for i in n.all_input_nodes))
    late = mutant.one_of(i for i in node.all_input_nodes if i.op == "call_function")
    late.prepend(node)
    return f"{node.name} before {late.name}"


def effect_dropped(mutant: Mutant) -> str:
    node = mutant.one_of(n for n in _operations(mutant.forward) if _writes_an_input(n))
    what = f"{node.name}: {node.args[0]} is not updated"
    node.replace_all_uses_with(node.args[0])
    node.graph.erase_node(node)
    return what


def effect_of_another_value(mutant: Mutant) -> str:
    node = mutant.one_of(n for n in _operations(mutant.forward) if _writes_an_input(n))
    written, source = node.args[:2]
    same = [n for n in _before(node) if n is not source and signature(n) == signature(source)]
    new = mutant.one_of(same)
    node.args = (written, new)
    return f"{node.name}: {written} is overwritten by {new} instead of {source}"


def effect_added(mutant: Mutant) -> str:
    """An input is overwritten that the model leaves alone, a weight for instance."""
    graph = mutant.a_graph()
    written = mutant.one_of(n for n in graph.find_nodes(op="placeholder") if n.users)
    end = _output(graph)
    others = [n for n in _before(end) if n is not written and signature(n) == signature(written)]
    source = mutant.one_of(others)
    if any(_writes_an_input(n) and n.args[:2] == (written, source) for n in written.users):
        raise Inapplicable  # the model does that itself, and twice is no different
    with graph.inserting_before(end):
        node = graph.call_function(aten.copy_.default, (written, source))
    node.meta = dict(written.meta)
    return f"{written} is overwritten by {source}"


def _writes_an_input(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def random_draw_repeated(mutant: Mutant) -> str:
    """A second draw where the first one's numbers were meant, within one graph."""
    node = mutant.one_of(n for n in _operations(mutant.forward) if is_random(n) and n.users)
    user = mutant.one_of(u for u in node.users if _changes(u, node, None))
    with mutant.forward.inserting_after(node):
        again = mutant.forward.node_copy(node)
    user.args = _replace_first(user.args, node, again)
    return f"{user.name} reads a second {node.name}"


def random_numbers_drawn_again(mutant: Mutant) -> str:
    """The backward draws anew what the forward drew, and all that follows from it."""
    forward = {n.name: n for n in mutant.forward.nodes}
    backward = mutant.backward
    first = next(n for n in backward.nodes if n.op == "call_function")

    def chain(node: fx.Node) -> list[fx.Node]:
        needed, stack = {node}, [node]
        while stack:
            for each in stack.pop().all_input_nodes:
                if each.op == "call_function" and each not in needed:
                    needed.add(each)
                    stack.append(each)
        return [n for n in mutant.forward.nodes if n in needed]

    candidates = [
        p for p in backward.find_nodes(op="placeholder")
        if p.users and p.name in forward and any(is_random(n) for n in chain(forward[p.name]))
    ]  # fmt: skip
    # A mask rather than what was made of it: its chain needs no inputs of the model.
    given = mutant.one_of(
        p for p in candidates
        if all(i.op == "call_function" for n in chain(forward[p.name]) for i in n.all_input_nodes)
    )  # fmt: skip
    copies: dict[fx.Node, fx.Node] = {}
    with backward.inserting_before(first):
        for node in chain(forward[given.name]):
            copies[node] = backward.node_copy(node, lambda n: copies[n])
    given.replace_all_uses_with(copies[forward[given.name]])
    return f"the backward draws {given.name} anew"


KINDS: tuple[Callable[[Mutant], str], ...] = (
    edge_to_another_value, edges_swapped, edge_dropped, operator_changed, operation_skipped,
    constant_changed, result_of_another_number, metadata_changed, saved_value_replaced,
    saved_values_swapped, saved_value_removed, forward_result_replaced, gradients_swapped,
    gradient_dropped, inputs_in_another_order, moved_before_an_input, effect_dropped,
    effect_of_another_value, effect_added, random_draw_repeated, random_numbers_drawn_again,
)  # fmt: skip


def broken(parts: Partition, chance: random.Random) -> tuple[Partition, str]:
    """A copy of ``parts`` with one random fault, and what it is."""
    mutant = Mutant(parts, chance)
    while True:
        kind = chance.choice(KINDS)
        with contextlib.suppress(Inapplicable):
            what = kind(mutant)
            return mutant.parts, f"{kind.__name__}: {what}"
