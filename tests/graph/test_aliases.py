"""Who owns the storage of what, in graphs small enough to see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from satcompile.graph.aliases import aliased_argument, storage_owners

aten = torch.ops.aten


def traced(fn: Callable, *inputs: torch.Tensor) -> fx.Graph:
    return make_fx(fn)(*inputs).graph


def owners_by_name(graph: fx.Graph) -> dict[str, str]:
    return {node.name: owner.name for node, owner in storage_owners(graph).items()}


def output_owners(fn: Callable, *inputs: torch.Tensor) -> list[str]:
    """Owner of each output; inputs are called after ``fn``'s parameters, with ``_1``."""
    graph = traced(fn, *inputs)
    owners = storage_owners(graph)
    output = next(iter(graph.find_nodes(op="output"))).args[0]
    return [
        owners[node].name for node in (output if isinstance(output, tuple | list) else [output])
    ]


VIEWS = {
    "view": lambda x: aten.view.default(x, [16]),
    "unsafe view": lambda x: aten._unsafe_view.default(x, [16]),
    "reshape": lambda x: aten.reshape.default(x, [16]),
    "permute": lambda x: aten.permute.default(x, [1, 0]),
    "transpose": lambda x: aten.t.default(x),
    "expand": lambda x: aten.expand.default(x, [3, 4, 4]),
    "select": lambda x: aten.select.int(x, 0, 1),
    "slice": lambda x: aten.slice.Tensor(x, 0, 1, 3),
    "squeeze": lambda x: aten.squeeze.dim(x, 0),
    "unsqueeze": lambda x: aten.unsqueeze.default(x, 0),
    "as_strided": lambda x: aten.as_strided.default(x, [2, 2], [1, 4]),
    "diagonal": lambda x: aten.diagonal.default(x),
    "alias": lambda x: aten.alias.default(x),
    "detach": lambda x: aten.detach.default(x),
}
COPIES = {
    "clone": lambda x: aten.clone.default(x),
    "add": lambda x: aten.add.Tensor(x, 1),
    "mm": lambda x: aten.mm.default(x, x),
    "cat": lambda x: aten.cat.default([x, x]),
    "index": lambda x: aten.index.Tensor(x, [torch.tensor([0, 1])]),
    "to copy": lambda x: aten._to_copy.default(x, dtype=torch.float64),
    "copy": lambda x: aten.copy.default(x, x + 1),
    "expand copy": lambda x: aten.expand_copy.default(x, [3, 4, 4]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_belongs_to_its_base(name):
    assert output_owners(lambda x: VIEWS[name](x), torch.ones(4, 4)) == ["x_1"]


@pytest.mark.parametrize("name", COPIES)
def test_a_new_result_belongs_to_itself(name):
    (owner,) = output_owners(lambda x: COPIES[name](x), torch.ones(4, 4))
    assert owner != "x_1"


def test_a_view_of_a_view_belongs_to_the_first_base():
    def fn(x):
        made = aten.mul.Tensor(x, 2)
        return aten.select.int(aten.permute.default(aten.view.default(made, [2, 8]), [1, 0]), 0, 1)

    assert output_owners(fn, torch.ones(4, 4)) == ["mul"]


def test_parts_of_a_split_share_what_was_split():
    def fn(x):
        made = aten.mul.Tensor(x, 2)
        first, second = aten.split.Tensor(made, 2)
        return first, aten.view.default(second, [8]), aten.add.Tensor(second, 1)

    assert output_owners(fn, torch.ones(4, 4)) == ["mul", "mul", "add"]


def test_parts_of_an_unbind_share_what_was_unbound():
    assert output_owners(lambda x: tuple(aten.unbind.int(x)), torch.ones(2, 4)) == ["x_1", "x_1"]


def test_results_of_one_operator_have_a_storage_each():
    def fn(x):
        values, indices = aten.max.dim(x, 1)
        return values, indices, aten.unsqueeze.default(indices, 0)

    first, second, view = output_owners(fn, torch.ones(4, 4))
    assert first != second
    assert view == second
    assert {first, second} == {"getitem", "getitem_1"}


def test_normalization_results_have_a_storage_each():
    def fn(x, w, b):
        return tuple(aten.native_layer_norm.default(x, [4], w, b, 1e-5))

    owners = output_owners(fn, torch.ones(4, 4), torch.ones(4), torch.ones(4))
    assert owners == ["getitem", "getitem_1", "getitem_2"]


def test_copy_into_an_argument_returns_that_argument():
    def fn(x, y):
        return aten.copy_.default(x, aten.add.Tensor(y, 1))

    assert output_owners(fn, torch.ones(4), torch.ones(4)) == ["x_1"]


def test_copy_into_a_view_belongs_to_the_base():
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    view = graph.call_function(aten.view.default, (x, [4]))
    graph.call_function(aten.copy_.default, (view, y))
    assert owners_by_name(graph)["copy__default"] == "x"


def test_an_argument_given_by_name_is_found():
    graph = fx.Graph()
    x = graph.placeholder("x")
    view = graph.call_function(aten.view.default, (), {"self": x, "size": [4]})
    assert aliased_argument(view) is x


def test_inputs_attributes_and_outputs_own_themselves():
    graph = fx.Graph()
    x = graph.placeholder("x")
    constant = graph.create_node("get_attr", "constant")
    output = graph.output((x, constant))
    assert storage_owners(graph) == {x: x, constant: constant, output: output}


def test_plain_functions_own_their_results():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch.sym_int, (x,))
    assert owners_by_name(graph) == {"x": "x", "sym_int": "sym_int"}
