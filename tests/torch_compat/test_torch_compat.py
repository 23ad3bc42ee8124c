"""What satcompile does with torch's private parts."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import fx
from torch._functorch.compile_utils import fx_graph_cse
from torch.utils.checkpoint import checkpoint

import satcompile
from satcompile.graph.capture import capture
from satcompile.torch_compat.dynamo import CompilationContext, copy_of_captured, is_part_of_call
from satcompile.torch_compat.inductor import fusing_in_order, rewriting_last
from satcompile.torch_compat.tensors import StorageReferences
from tests.torch_compat.versions import TORCH


class Checkpointed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.linear, x, use_reentrant=False) * self.scale


def captured(model: torch.nn.Module, x: torch.Tensor) -> fx.GraphModule:
    """The graph that Dynamo gives to a backend."""
    graphs = []

    def backend(gm: fx.GraphModule, inputs: list[torch.Tensor]) -> fx.GraphModule:
        graphs.append(gm)
        return gm

    torch.compile(model, backend=backend)(x)
    return graphs[0]


def test_a_copied_graph_tells_what_dynamo_told() -> None:
    gm = captured(Checkpointed(), torch.randn(2, 4))
    gm.register_buffer("constant", torch.ones(3))
    with gm.graph.inserting_before(next(iter(gm.graph.nodes))):
        gm.graph.get_attr("constant")
    copied = copy_of_captured(gm)
    assert copied.meta == gm.meta
    assert copied._param_name_to_source is gm._param_name_to_source
    for original, copy in zip(gm.graph.nodes, copied.graph.nodes, strict=True):
        assert original is not copy
        assert original.name == copy.name
        if original.op == "placeholder":
            assert copy._dynamo_source is original._dynamo_source
    bodies = [body for _, body in copied.named_children() if isinstance(body, fx.GraphModule)]
    assert bodies, "the checkpoint region's body"
    assert not {id(body) for body in bodies} & {id(body) for body in gm.children()}
    assert copied.constant is gm.constant


def test_a_users_pass_keeps_its_place_and_its_key() -> None:
    from torch._inductor import config
    from torch._inductor.custom_graph_pass import CustomGraphPass

    ran: list[str] = []

    class Theirs(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            ran.append("theirs")

        def uuid(self) -> str:
            return "theirs"

    def plain(graph: fx.Graph) -> None:
        ran.append("plain")

    keys = {}
    for name, theirs in (("keyed", Theirs()), ("plain", plain)):
        for call in (1, 2):
            with (
                config.patch(post_grad_custom_post_pass=theirs),
                rewriting_last(lambda graph: ran.append("ours"), "key"),
            ):
                keys[name, call] = config.post_grad_custom_post_pass.uuid()
                config.post_grad_custom_post_pass(fx.Graph())
    assert ran == ["theirs", "ours"] * 2 + ["plain", "ours"] * 2
    assert keys["keyed", 1] == keys["keyed", 2]
    assert keys["plain", 1] != keys["plain", 2], "code of an unknown pass must not be found again"


def test_what_the_forward_alone_needs_is_merged_as_torch_merges_it() -> None:
    """The cosine is an output of the forward, and the backward of the sine computes one, too."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sin().sum(), x.detach().cos() + 1

    graph = capture(function, torch.randn(8, requires_grad=True)).graph
    cosines = graph.find_nodes(op="call_function", target=torch.ops.aten.cos.default)
    keeps_apart = "extra_node_key" in inspect.signature(fx_graph_cse).parameters
    assert len(cosines) == (2 if keeps_apart else 1)


def test_torchs_own_budget_of_a_region_is_refused() -> None:
    region = getattr(torch.autograd.graph, "region_activation_memory_budget", None)
    if region is None:
        pytest.skip("from torch 2.14 on")

    def function(x: torch.Tensor) -> torch.Tensor:
        with region(0.5):
            return x.sin().cos().sum()

    with pytest.raises(satcompile.UnsupportedError, match="region_activation_memory_budget"):
        torch.compile(function, backend="sat")(torch.randn(8, requires_grad=True))


def test_what_a_user_chooses_for_inductor_still_counts_where_plans_keep_their_order() -> None:
    from torch._inductor.choices import InductorChoices
    from torch._inductor.virtualized import V

    asked = []

    class Theirs(InductorChoices):
        @staticmethod
        def can_fuse_vertical(*nodes: Any) -> bool:
            asked.append(nodes)
            return False

        def mark(self) -> str:
            return "theirs"

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.sin().sum(-1).cos()

    x = torch.randn(8, 8)
    with V.set_choices_handler(Theirs()), fusing_in_order():
        assert V.choices.mark() == "theirs"
        found = torch.compile(function, backend="inductor", options={"fx_graph_cache": False})(x)
    torch.testing.assert_close(found, function(x))
    assert asked


class Inner(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin()


class Broken(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Inner(), Inner()

    @torch._dynamo.disable
    def _in_eager(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._in_eager(self.first(x)).cos()


@pytest.mark.parametrize(
    ("make", "by_method", "parts"),
    [
        (Inner, False, [False]),
        (Inner, True, [False]),
        (Broken, False, [True, True]),
        (Broken, True, [True, True]),
        # Before 2.14 Dynamo skips the frames of torch.nn, unless they are what was compiled.
        (lambda: torch.nn.Sequential(Inner(), torch.nn.Tanh()), False, [False]),
        (lambda: torch.nn.Sequential(Inner(), torch.nn.Tanh()), True, [TORCH < (2, 14)]),
    ],
)
def test_a_graph_that_is_one_of_several_is_known_for_that(
    make: Any, by_method: bool, parts: list[bool]
) -> None:
    found = []

    def backend(gm: fx.GraphModule, inputs: Any) -> Any:
        found.append(is_part_of_call(gm))
        return gm

    torch._dynamo.reset()
    model = make()
    if by_method:
        model.compile(backend=backend)
        model(torch.ones(2))
    else:
        torch.compile(model, backend=backend)(torch.ones(2))
    assert found == parts


def test_floats_that_became_constants_are_so_when_a_graph_is_planned_anew() -> None:
    """Else AOTAutograd would ask for Dynamo to begin again, which is not there (Gemma 3's scale)."""
    from torch._dynamo.symbolic_convert import TensorifyState

    TensorifyState.clear()
    TensorifyState.specialize("zf0")
    context = CompilationContext()
    TensorifyState.clear()
    with context._modes():
        assert TensorifyState.should_specialize("zf0")
    assert TensorifyState.empty()


def test_a_storage_is_referred_to_by_its_own_address() -> None:
    """What is given back later is the address that was looked up."""
    storage = torch.ones(3).untyped_storage()
    address = storage._weak_ref()
    torch.UntypedStorage._free_weak_ref(address)
    assert address == storage._cdata
    references = StorageReferences()
    assert references.add(storage)
    assert not references.add(torch.ones(0).set_(storage).untyped_storage())
    assert references.addresses() == {address}
