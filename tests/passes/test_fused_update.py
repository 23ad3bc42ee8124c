"""Where updates stand in a backward graph, and that a wrong place is found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from satcompile.passes import fused_update
from satcompile.passes.facts import Facts
from satcompile.passes.fused_update import FusedUpdate, check_order
from torch import fx, nn

import satcompile
from satcompile.compile import generation
from tests.integration.test_updates import Pair

aten = torch.ops.aten


def backward_graph() -> fx.Graph:
    """The backward of y = (x @ w).sin() @ w: w is read by two names, last behind the last gradient."""
    graph = fx.Graph()

    def call(name: str, target: Any, *args: Any) -> fx.Node:
        return graph.create_node("call_function", target, args, name=name)

    def value(node: fx.Node, *shape: int) -> fx.Node:
        node.meta["val"] = torch.empty(*shape, device="meta")
        return node

    w, wt = (value(graph.placeholder(name), 8, 8) for name in ("primals_1", "permute"))
    x, tangent = (value(graph.placeholder(name), 4, 8) for name in ("primals_2", "tangents_1"))
    late_bias = value(call("sum_1", aten.sum.dim_IntList, tangent, [0]), 8)
    gradient = value(call("mm", aten.mm.default, w, w), 8, 8)
    inner = value(call("mm_1", aten.mm.default, tangent, wt), 4, 8)
    flat = value(call("view", aten.view.default, w, [64]), 64)
    behind = value(call("sin", aten.sin.default, flat), 64)
    graph.output([gradient, inner, late_bias, behind])
    assert x.users == {}
    return graph


def names(graph: fx.Graph) -> list[str]:
    return [node.name for node in graph.nodes]


def calls(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.target is torch.ops.satcompile.update_.default]


def test_a_gradient_that_is_handed_over_has_no_layout_to_keep() -> None:
    """On a GPU Inductor looks at the strides of every result that users see."""
    graph = backward_graph()
    (output,) = graph.find_nodes(op="output")
    output.meta["user_visible_output_idxs"] = [0, 1, 2]
    FusedUpdate({0: ("primals_1", "permute")}, 256).run(graph, Facts())
    assert output.meta["user_visible_output_idxs"] == [1, 2]


def test_an_update_stands_behind_the_last_reader_of_any_name() -> None:
    graph = backward_graph()
    FusedUpdate({0: ("primals_1", "permute")}, 256).run(graph, Facts())
    graph.lint()
    (call,) = calls(graph)
    assert names(graph).index("sin") < names(graph).index(call.name)
    gradients, read, slots = call.args
    assert [node.name for node in gradients] == ["mm"] and slots == [0]
    assert {node.name for node in read} == {"primals_1", "permute"}
    (output,) = graph.find_nodes(op="output")
    assert [getattr(r, "name", None) for r in output.args[0]] == [None, "mm_1", "sum_1", "sin"]


def test_a_parameter_that_nothing_reads_is_updated_at_once() -> None:
    graph = backward_graph()
    FusedUpdate({2: ()}, 32).run(graph, Facts())
    (call,) = calls(graph)
    assert names(graph).index(call.name) == names(graph).index("sum_1") + 1


def test_small_gradients_go_together() -> None:
    graph = backward_graph()
    FusedUpdate({0: (), 2: ()}, 288).run(graph, Facts())
    assert [call.args[2] for call in calls(graph)] == [[2], [0]]  # 32 bytes are worth it here
    few = replace(FusedUpdate({0: (), 2: ()}, 288))
    graph = backward_graph()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_update, "_SHARE_OF_ALL", 2)
        few.run(graph, Facts())
    assert [call.args[2] for call in calls(graph)] == [[2, 0]]


SOURCE = """
def call(self, args):
    extern_kernels.mm(primals_1, buf1, out=buf2)
    torch.ops.satcompile.update_.default([buf2], [reinterpret_tensor(primals_1, (4, ))], [0])
    del primals_1  # primals_1
    torch.ops.satcompile.update_.default([reinterpret_tensor(buf3, (4, ), (1, ), 0)], [], [1, 2])
    {line}
    return (None, None, None, )
    primals_1 = rand_strided((24, 16), (16, 1))
"""


def test_code_is_searched_for_readers_behind_the_update() -> None:
    check_order(SOURCE.format(line="extern_kernels.mm(primals_12, buf1, out=buf4)"), 3)
    for line in ("extern_kernels.mm(primals_1, buf1)", "x = reinterpret_tensor(primals_1, (2,))"):
        with pytest.raises(satcompile.VerificationError, match="primals_1 behind its update"):
            check_order(SOURCE.format(line=line), 3)


def test_code_is_searched_for_other_names_of_the_memory() -> None:
    source = SOURCE.format(line="extern_kernels.mm(buf9, buf1)")
    check_order(source, 3)
    named = source.replace(
        "(self, args):", "(self, args):\n    buf9 = reinterpret_tensor(primals_1, (4, ))"
    )
    with pytest.raises(satcompile.VerificationError, match="buf9 behind its update"):
        check_order(named, 3)


def test_code_that_cannot_be_searched_is_refused() -> None:
    with pytest.raises(satcompile.UnsupportedError, match="3 of 4 updates"):
        check_order(SOURCE.format(line="pass"), 4)


class ReadAgain(nn.Module):
    """The backward reads the weight long after it has the weight's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x) @ self.weight.detach())
        return hidden @ self.weight


def one_step() -> Pair:
    options = {"inductor": {"fx_graph_cache": False}}  # the cache knows nothing of patched passes
    pair = Pair("cpu", model=ReadAgain(), options=options)
    pair.step(pair.inputs()[0])
    return pair


def test_a_weight_that_is_read_after_its_gradient_exists() -> None:
    one_step().check()


def test_the_report_has_the_backward_before_and_after() -> None:
    (graph,) = satcompile.report(one_step().model).graphs
    (row,) = (each for each in graph.passes if each.name == "fused_update")
    assert row.before is not None and "satcompile.update_" not in row.before
    assert row.after is not None and row.after.count("satcompile.update_") >= 1
    assert "\n+update_" in row.diff


def test_an_update_in_the_wrong_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass made wrong on purpose: every update right behind its gradient."""
    original = FusedUpdate._ready

    def too_early(self: FusedUpdate, graph: fx.Graph, results: Any) -> Iterator[Any]:
        position = {node: i for i, node in enumerate(graph.nodes)}
        for each in original(self, graph, results):
            yield replace(each, position=position[each.gradient])

    monkeypatch.setattr(FusedUpdate, "_ready", too_early)
    with pytest.raises(satcompile.VerificationError, match="behind its update"):
        one_step()
    torch.compiler.reset()
    monkeypatch.setattr(generation, "check_order", lambda *args: None)
    with pytest.raises(AssertionError, match="not close"):  # and the weights would be wrong
        one_step().check()
