"""Sums of matrix products that stay sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from satcompile.compile.products import keep_products_apart

aten = torch.ops.aten
WIDE, NARROW = torch.randn(4, 64), torch.randn(64, 4)


def sum_of_product(*places: str, primals: bool = False) -> fx.GraphModule:
    """``exp(x) @ exp(y) + z``. In the order that is given: the product; ``again``, which reads what
    the product reads; ``other``, which does not; and the sum."""
    graph = fx.Graph()
    x, y, z = (graph.placeholder(name) for name in ("x", "y", "z"))
    a, b = (x, y) if primals else (graph.call_function(aten.exp.default, (n,)) for n in (x, y))
    if primals:
        x.name, y.name = "primals_1", "primals_2"
    made: dict[str, fx.Node] = {}
    for place in places:
        if place == "product":
            made[place] = graph.call_function(aten.mm.default, (a, b))
        elif place == "again":
            turned = graph.call_function(aten.t.default, (a,))
            both = graph.call_function(aten.add.Tensor, (turned, b))
            made[place] = both
        elif place == "other":
            made[place] = graph.call_function(aten.exp.default, (z,))
        else:
            made[place] = graph.call_function(aten.add.Tensor, (made["product"], z))
    graph.output(tuple(made[place] for place in places if place != "product"))
    gm = fx.GraphModule({}, graph)
    for node, value in values_of(gm).items():
        node.meta["val"] = value
    return gm


def values_of(gm: fx.GraphModule) -> dict[fx.Node, Any]:
    found: dict[fx.Node, Any] = {}

    class Noted(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n] = super().run_node(n)
            return found[n]

    Noted(gm).run(WIDE, NARROW, torch.randn(4, 4))
    return {node: value for node, value in found.items() if isinstance(value, torch.Tensor)}


def targets(gm: fx.GraphModule) -> list[Any]:
    return [node.target for node in gm.graph.nodes]


def test_a_product_stays_where_it_frees_more_than_it_gives() -> None:
    gm = sum_of_product("product", "other", "sum")
    inputs = WIDE, NARROW, torch.randn(4, 4)
    wanted = gm(*inputs)
    keep_products_apart(gm.graph)
    gm.recompile()
    assert aten.add.Tensor not in targets(gm)
    for found, value in zip(gm(*inputs), wanted, strict=True):
        assert torch.equal(found, value)


@pytest.mark.parametrize(
    ("places", "primals"),
    [
        (("product", "sum"), False),  # nothing runs between the two
        (("product", "again", "sum"), False),  # what is read is read until then anyway
        (("product", "other", "sum"), True),  # what is read is there anyway
    ],
)
def test_others_are_left_to_inductor(places: tuple[str, ...], primals: bool) -> None:
    gm = sum_of_product(*places, primals=primals)
    before = targets(gm)
    keep_products_apart(gm.graph)
    assert targets(gm) == before


def test_a_difference_with_the_negative_is_the_sum_down_to_the_signs_of_zeros() -> None:
    x, y = torch.tensor([0.0, 0.0, -0.0, -0.0]), torch.tensor([0.0, -0.0, 0.0, -0.0])
    assert torch.equal((x + y).signbit(), (x - (-y)).signbit())
