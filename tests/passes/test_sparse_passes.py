"""The passes that cut gradients and mask weights, and the invariants that guard them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from satcompile.passes.facts import SparseParameters
from satcompile.passes.sparse_forward import SparseForward
from satcompile.passes.sparse_gradients import SparseGradients
from torch import fx, nn

from satcompile.compile import pipeline
from satcompile.compile.verify import check_joint, reference
from satcompile.compile.verify_sparse import check_slots
from satcompile.errors import VerificationError
from satcompile.graph.capture import capture
from satcompile.graph.training_graph import TrainingGraph
from satcompile.planner.cost.roofline import matrix_flops
from satcompile.updates.sparsity.operators import (
    MASKED,
    MASKED_ADDMM,
    MASKED_CONVOLUTION,
    MASKED_CONVOLUTION_INPUT,
    MASKED_MM,
    TILE_CONVOLUTION_WEIGHT,
    TILE_MM,
    TILED,
    slot_of,
)
from tests import zoo

BLOCK = 8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 24)
        self.second = nn.Linear(24, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.second(torch.tanh(self.first(x))).sum()


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.second = nn.Conv2d(16, 16, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x))).sum()


def captured(model: nn.Module, *inputs: torch.Tensor) -> TrainingGraph:
    torch._dynamo.reset()
    return capture(model, *inputs)


def parameters(graph: TrainingGraph) -> frozenset[int]:
    return frozenset(
        slot for slot, node in enumerate(graph.primals)
        if isinstance(node.meta["val"], torch.nn.Parameter) or node.meta["val"].requires_grad
        or isinstance(graph.backward_outputs[slot], fx.Node)
    )  # fmt: skip


def sparsified(
    graph: TrainingGraph, forward: bool = True
) -> tuple[TrainingGraph, SparseParameters]:
    passes = [SparseGradients(parameters(graph), BLOCK), *([SparseForward()] if forward else [])]
    changed, facts, _ = pipeline.run_joint(graph, passes)
    assert facts.sparse is not None
    return changed, facts.sparse


def count(graph: TrainingGraph) -> dict[str, int]:
    names: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.target in (*TILED, *MASKED):
            name = str(node.target).split(".")[1]
            names[name] = names.get(name, 0) + 1
    return names


def test_products_are_replaced_one_for_one() -> None:
    before = captured(Net(), torch.randn(4, 16))
    products = sum(matrix_flops(node) or 0 for node in before.graph.nodes)
    graph, found = sparsified(before)
    # Both weights are used twice; the input needs no gradient.
    assert count(graph) == {"tile_mm": 4, "masked_addmm": 2, "masked_mm": 5}
    assert not any(node.target is torch.ops.aten.mm.default for node in graph.graph.nodes)
    assert sum(matrix_flops(node) or 0 for node in graph.graph.nodes) == products
    assert found.total_flops == products
    each = 2 * 4 * 16 * 24
    assert [p.gradient_flops for p in found.tiled.values()] == [2 * each, 2 * each]
    assert sorted(p.forward_flops for p in found.tiled.values()) == [3 * each, 4 * each]


def test_a_convolutions_gradients_are_taken_apart() -> None:
    before = captured(Pictures(), torch.randn(2, 3, 9, 9))
    products = sum(matrix_flops(node) or 0 for node in before.graph.nodes)
    graph, found = sparsified(before)
    assert count(graph) == {
        "masked_convolution": 2, "tile_convolution_weight": 2, "masked_convolution_input": 1
    }  # fmt: skip
    left = [n for n in graph.graph.nodes if n.target is torch.ops.aten.convolution_backward.default]
    assert [list(node.args[10]) for node in left] == [[False, False, True]]  # the first's bias
    flops = sum(matrix_flops(node) or 0 for node in graph.graph.nodes if node not in left)
    assert flops == products == found.total_flops


def test_without_a_sparse_forward_the_forward_stays_as_it_was() -> None:
    before = captured(Net(), torch.randn(4, 16))
    forward = [str(n.target) for n in before.graph.nodes if before.is_forward(n)]
    graph, found = sparsified(before, forward=False)
    assert count(graph) == {"tile_mm": 4}
    assert [str(n.target) for n in graph.graph.nodes if graph.is_forward(n)] == forward
    assert not any(each.has_sparse_forward for each in found.tiled.values())


@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_real_models_keep_their_meaning(name: str) -> None:
    model, inputs = zoo.build(name)
    torch._dynamo.reset()
    graph = capture(model, **inputs)
    linear = sum(isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D" for m in model.modules())
    graph, found = sparsified(graph)  # checks both invariants
    tied = name in ("gpt2", "bert")  # the projection to the vocabulary
    single = sum("single tile" in d.reason and d.shape[0] > 1 for d in found.dense)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert len(found.tiled) + single == linear + convolutions - tied
    assert all(each.has_sparse_forward for each in found.tiled.values())


def test_no_cuda_graph_takes_in_what_is_looked_up_when_it_runs() -> None:
    for op in (*TILED, *MASKED, torch.ops.satcompile.update_.default):
        assert torch.Tag.cudagraph_unsafe in op.tags


# -- faults, each of which must be seen ----------------------------------------------------------


def first(graph: TrainingGraph, target: object) -> fx.Node:
    return next(node for node in graph.graph.nodes if node.target is target)


def _wrong_slot(graph: TrainingGraph, target: object) -> None:
    node = first(graph, target)
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    slots = sorted({slot_of(n) for n in graph.graph.nodes if n.target in (*TILED, *MASKED)})
    other = next(slot for slot in slots if slot != slot_of(node))
    node.update_arg(names.index("slot"), other)


def _wrong_turn(graph: TrainingGraph, target: object) -> None:
    node = first(graph, target)
    node.update_arg(len(node.args) - 1, not node.args[-1])


def _one_dense_use(graph: TrainingGraph, target: object) -> None:
    node = first(graph, target)
    with graph.graph.inserting_before(node):
        dense = graph.graph.call_function(torch.ops.aten.mm.default, node.args[:2])
    dense.meta = dict(node.meta)
    node.replace_all_uses_with(dense)
    graph.graph.erase_node(node)


def _read_on_the_way(graph: TrainingGraph, target: object) -> None:
    node = first(graph, target)
    output = next(iter(graph.graph.find_nodes(op="output")))
    with graph.graph.inserting_before(output):
        total = graph.graph.call_function(torch.ops.aten.sum.dim_IntList, (node, [1]))
    bias = next(i for i, p in enumerate(graph.primals) if p.meta["val"].dim() == 1)
    total.meta["val"] = graph.primals[bias].meta["val"]
    results = list(output.args[0])
    results[graph.num_forward_outputs + bias] = total
    output.args = (results,)


FAULTS: list[tuple[type[nn.Module], Callable[..., None], object]] = [
    (Net, _wrong_slot, TILE_MM),
    (Net, _wrong_slot, MASKED_MM),
    (Net, _wrong_slot, MASKED_ADDMM),
    (Net, _wrong_turn, TILE_MM),
    (Net, _wrong_turn, MASKED_MM),
    (Net, _wrong_turn, MASKED_ADDMM),
    (Net, _one_dense_use, MASKED_MM),
    (Net, _read_on_the_way, TILE_MM),
    (Pictures, _wrong_slot, TILE_CONVOLUTION_WEIGHT),
    (Pictures, _wrong_slot, MASKED_CONVOLUTION),
    (Pictures, _wrong_slot, MASKED_CONVOLUTION_INPUT),
]


@pytest.mark.parametrize(
    ("make", "fault", "target"), FAULTS, ids=lambda v: getattr(v, "__name__", str(v))
)
def test_a_wrong_slot_or_orientation_is_seen(
    make: type[nn.Module], fault: Callable[..., None], target: object
) -> None:
    inputs = torch.randn(4, 16) if make is Net else torch.randn(2, 3, 9, 9)
    graph, found = sparsified(captured(make(), inputs))
    check_slots(graph, found, [])
    fault(graph, target)
    broken = TrainingGraph(graph.module, graph.num_forward_outputs, graph.static_inputs)
    with pytest.raises(VerificationError):
        check_slots(broken, found, ["sparse_gradients"])


@pytest.mark.parametrize("target", [TILE_MM, MASKED_MM])
def test_swapped_arguments_are_seen(target: object) -> None:
    before = captured(Net(), torch.randn(4, 16))
    wanted = reference(before.module, dense=True)
    graph, _ = sparsified(before)
    check_joint(graph.module, wanted, [], dense=True)
    nodes = [node for node in graph.graph.nodes if node.target is target]
    nodes[0].args, nodes[1].args = (
        (*nodes[1].args[:2], *nodes[0].args[2:]),
        (*nodes[0].args[:2], *nodes[1].args[2:]),
    )
    with pytest.raises(VerificationError):
        check_joint(graph.module, wanted, ["sparse_gradients"], dense=True)
