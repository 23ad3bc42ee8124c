"""Chunks of tokens compute what the whole does; what they cannot compute stays whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from satcompile.passes.chunked_loss import ChunkedLoss
from satcompile.passes.facts import Facts
from torch import fx

from satcompile.compile.verify import check_rewritten, reference
from satcompile.graph.chunking.operators import ADD_SHARE
from satcompile.graph.chunking.region import amplifiers, find
from satcompile.graph.chunking.rewrite import check_chunks, even_chunks, in_chunks
from satcompile.graph.chunking.rows import NotByRows, Rows, trimmed
from satcompile.graph.training_graph import TrainingGraph
from satcompile.planner.recompute import Recompute
from satcompile.torch_compat.tensors import fake_tensor_mode
from tests.passes.vocabulary import (
    HIDDEN,
    VOCABULARY,
    Head,
    Loss,
    chunked,
    cross_entropy,
    data,
    joint,
    largest,
    results,
    values,
)

TOKENS = 36


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def shifted(**settings: object) -> Loss:
    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits, targets = logits[:, :-1].reshape(-1, VOCABULARY), targets[:, 1:].reshape(-1)
        return F.cross_entropy(logits, targets, **settings)

    return loss


def with_z_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy()(logits, targets) + 0.01 * (torch.logsumexp(logits, -1) ** 2).mean()


def of_rows(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (cross_entropy(reduction="none")(logits, targets) ** 2).sum() / 7


def several(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    second = cross_entropy(label_smoothing=0.2)(2 * logits, targets)
    return cross_entropy()(logits, targets) + 0.3 * second


def against_soft_targets(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    soft = torch.softmax(2 * logits.detach(), -1)
    return -(logits.log_softmax(-1) * soft).sum(-1).mean()


def ignoring_another(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(ignore_index=3)(logits, targets.clamp(min=3))


def of_a_part_of_the_vocabulary(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As where a vocabulary is padded."""
    targets = targets.clamp(max=VOCABULARY - 8)
    return F.cross_entropy(logits[..., : VOCABULARY - 7].flatten(0, 1), targets.flatten())


HEADS = {
    "mean": lambda: Head(cross_entropy()),
    "sum": lambda: Head(cross_entropy(reduction="sum")),
    "rows": lambda: Head(of_rows),
    "bias": lambda: Head(cross_entropy(), bias=True),
    "label smoothing": lambda: Head(cross_entropy(label_smoothing=0.1)),
    "ignored index": lambda: Head(ignoring_another),
    "tied": lambda: Head(cross_entropy(), tied=True),
    "capped": lambda: Head(cross_entropy(), cap=3.0),
    "weights": lambda: Head(cross_entropy(weight=torch.rand(VOCABULARY), label_smoothing=0.1)),
    "shifted": lambda: Head(shifted(), bias=True),
    "shifted, capped, tied": lambda: Head(shifted(label_smoothing=0.1), tied=True, cap=2.0),
    "z-loss": lambda: Head(with_z_loss, bias=True),
    "several losses": lambda: Head(several),
    "soft targets": lambda: Head(against_soft_targets),
    "padded vocabulary": lambda: Head(of_a_part_of_the_vocabulary),
}


def assert_same(found: TrainingGraph, wanted: TrainingGraph, given: list[torch.Tensor]) -> None:
    for one, other in zip(results(found.module, given), results(wanted.module, given), strict=True):
        if other is None:
            assert one is None
            continue
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one - other).abs().max() <= 1e-12 * other.abs().max(), (one, other)


@pytest.mark.parametrize("chunks", [2, 5])
@pytest.mark.parametrize("name", HEADS)
def test_chunks_compute_what_the_whole_does(name: str, chunks: int) -> None:
    graph = joint(HEADS[name](), data())
    found = chunked(graph, chunks)
    assert_same(found, graph, values(graph))
    check_rewritten(found.module, reference(graph.module), [])


@pytest.mark.parametrize("name", [n for n in HEADS if n != "weights"])  # those are expanded: a view
def test_nothing_has_the_logits_size_any_more(name: str) -> None:
    graph = joint(HEADS[name](), data())
    assert largest(graph) >= TOKENS * (VOCABULARY - 7) * 8 // 9
    assert largest(chunked(graph, 4)) <= TOKENS * VOCABULARY // 4


_STEPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cap": lambda z: 5 * torch.tanh(z / 5),
    "scale each word": lambda z: z * torch.linspace(0.5, 1, z.shape[-1], dtype=z.dtype),
    "scale each token": lambda z: z / z.detach().abs().amax(-1, keepdim=True),
    "center": lambda z: z - z.mean(-1, keepdim=True),
    "normalize": lambda z: z.log_softmax(-1),
    "rectify": lambda z: torch.where(z > 0, z, 0.1 * z),
    "fewer words": lambda z: z[..., :-3],
    "flat and back": lambda z: z.reshape(-1, z.shape[-1]).view_as(z) + 1,
    "turned": lambda z: (z.flatten(0, 1).t() * 2).t().view_as(z),
}
_LOSSES: dict[str, Loss] = {
    "cross entropy": lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()),
    "smooth": lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), label_smoothing=0.2),
    "of rows": lambda z, y: (torch.logsumexp(z, -1) ** 2).mean() + z.amax(-1).sum() / 50,
    "next word": lambda z, y: F.cross_entropy(z[:, :-1].flatten(0, 1), y[:, 1:].flatten()),
}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.sampled_from(sorted(_STEPS)), max_size=4),
    loss=st.sampled_from(sorted(_LOSSES)),
    chunks=st.integers(2, 6),
    tied=st.booleans(),
)
def test_any_loss_of_rows(steps: list[str], loss: str, chunks: int, tied: bool) -> None:
    def whole(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        for step in steps:
            logits = _STEPS[step](logits)
        return _LOSSES[loss](logits, targets.clamp(max=VOCABULARY - 13))

    torch.compiler.reset()
    graph = joint(Head(whole, tied=tied), data())
    assert_same(chunked(graph, chunks), graph, values(graph))


def test_the_last_chunk_may_be_smaller() -> None:
    assert [len(chunk) for chunk in even_chunks(36, 5)] == [8, 8, 8, 8, 4]
    assert [len(chunk) for chunk in even_chunks(1000, 3, 64)] == [384, 384, 232]
    graph = joint(Head(cross_entropy()), data(3, 7))
    found = chunked(graph, 4)  # of 6, 6, 6 and 3 tokens
    assert_same(found, graph, values(graph))


def test_one_chunk_stands_behind_the_other() -> None:
    """In the forward and in the backward: one chunk's logits are alive at a time."""
    found = chunked(joint(Head(cross_entropy()), data()), 4)
    position = {node: index for index, node in enumerate(found.graph.nodes)}
    products = [n for n in found.graph.nodes if n.target is torch.ops.aten.mm.default]
    logits = [n for n in products if n.meta["val"].shape == (TOKENS // 4, VOCABULARY)]
    hidden = [n for n in products if n.meta["val"].shape == (TOKENS // 4, HIDDEN)]
    (embedding,) = [n for n in products if n.meta["val"].shape == (VOCABULARY, HIDDEN)]
    shares = [
        embedding,
        *(n for n in found.graph.nodes if n.target is torch.ops.aten.addmm.default),
    ]
    shares = [n for n in shares if n.meta["val"].shape == (VOCABULARY, HIDDEN)]
    assert len(logits) == len(hidden) == len(shares) == 4
    for one, following in itertools.pairwise(logits):
        forward = [u for u in one.users if found.is_forward(u)]
        assert max(position[u] for u in forward) < position[following]
    for k in range(3):
        assert max(position[hidden[k]], position[shares[k]]) < position[hidden[k + 1]]
        assert max(position[hidden[k]], position[shares[k]]) < position[shares[k + 1]]


def test_shares_in_half_precision_are_added_in_single_precision() -> None:
    torch.set_default_dtype(torch.float32)
    model = Head(cross_entropy())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graph = joint(model, data())
    found = chunked(graph, 4)
    targets = [g.target for g in found.backward_outputs if g is not None]
    assert ADD_SHARE in targets  # of float32, with no cast behind it
    given = values(graph)
    exact = results(joint(model.double(), data()).module, [_double(v) for v in given])
    for one, other, right in zip(
        results(found.module, given), results(graph.module, given), exact, strict=True
    ):
        if right is not None:
            error = (other.double() - right).abs().max()
            assert (one.double() - right).abs().max() <= 1.5 * error + 1e-6


def _double(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.dtype.is_floating_point else value


# -- what stays whole ---------------------------------------------------------------------------


class Returned(Head):
    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> object:
        logits = self.projection(torch.tanh(self.inner(self.embedding(tokens))))
        return self.loss(logits, targets), logits


def over_tokens(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy()(logits.flatten(0, 1).softmax(0).view_as(logits), targets)


def less_the_mean_of_tokens(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy()(logits - logits.mean((0, 1)), targets)


def normalized_over_tokens(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    flat = logits.flatten(0, 1)
    return cross_entropy()(F.batch_norm(flat, None, None, training=True).view_as(logits), targets)


def summed_over_tokens(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy()(logits - logits.sum((0, 1)), targets)


def along_tokens(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy()(logits.cumsum(1), targets)


def in_another_order(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.transpose(0, 1).flatten(0, 1), targets.flatten())


def dropped(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy()(F.dropout(logits, 0.5), targets)


def of_some_sequences(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy()(logits[1:], targets[1:])


WHOLE = {
    "returned": (lambda: Returned(cross_entropy()), "is a result"),
    "softmax over tokens": (lambda: Head(over_tokens), "needs all tokens"),
    "mean of tokens": (lambda: Head(less_the_mean_of_tokens), "tokens"),
    "normalized": (lambda: Head(normalized_over_tokens), "."),
    "sum of tokens": (lambda: Head(summed_over_tokens), "needs results of all tokens"),
    "along tokens": (lambda: Head(along_tokens), "nothing is known of"),
    "another order": (lambda: Head(in_another_order), "tokens change their order"),
    "random": (lambda: Head(dropped), "nothing is known of"),
    "some sequences": (lambda: Head(of_some_sequences), "single sequence"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_chunks_cannot_compute_stays_whole(name: str) -> None:
    make, reason = WHOLE[name]
    graph = joint(make(), data())
    with pytest.raises(NotByRows, match=reason):
        find(graph, next(amplifiers(graph)))
    found = ChunkedLoss(0).run(graph, Facts())
    assert found.graph is graph and "whole: " in found.changed


def test_an_operator_without_a_rule_is_refused_wherever_it_stands() -> None:
    """A known graph, in which one node after the other becomes something that no rule knows."""
    graph = joint(Head(cross_entropy(label_smoothing=0.1), cap=2.0), data())
    region = find(graph, next(amplifiers(graph)))
    large = [n for n in region.large if n is not region.amplifier]
    assert len(large) > 10
    for node in large:
        target, node.target = node.target, torch.ops.aten.cumsum.default
        with pytest.raises(NotByRows):
            find(graph, region.amplifier)
        node.target = target


@pytest.mark.parametrize(
    "chunks",
    [[], [range(4)], [range(4), range(5, 9)], [range(5), range(4, 9)], [range(9), range(9, 9)]],
)
def test_chunks_that_are_no_partition_are_refused(chunks: list[range]) -> None:
    with pytest.raises(NotByRows, match="no partition"):
        check_chunks(chunks, 9)


def test_a_rule_that_is_wrong_about_a_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = joint(Head(cross_entropy()), data())
    region = find(graph, next(amplifiers(graph)))
    monkeypatch.setattr("satcompile.graph.chunking.rewrite.emit", _first_operand)
    with pytest.raises(NotByRows, match="a chunk of"):
        in_chunks(graph.module, region, even_chunks(region.units, 4))


def _first_operand(use: object, chunk: object) -> fx.Node:
    return chunk.of(next(iter(use.operands)))  # type: ignore[attr-defined]


def test_small_logits_stay_whole() -> None:
    graph = joint(Head(cross_entropy()), data())
    assert "small beside the peak" in ChunkedLoss(10**9).run(graph, Facts()).changed
    few = joint(Head(cross_entropy()), data(2, 3))  # fewer tokens than hidden numbers
    assert "not larger than the rest" in ChunkedLoss(0).run(few, Facts()).changed


def test_nothing_is_looked_for_around_small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("satcompile.passes.chunked_loss.find")  # adapters have hundreds of them
    graph = joint(Head(cross_entropy()), data())
    assert "small beside the peak" in ChunkedLoss(10**9).run(graph, Facts()).changed


def test_a_symbolic_number_of_tokens_stays_whole() -> None:
    tokens, targets = data()
    for each in (tokens, targets):
        torch._dynamo.mark_dynamic(each, 0)
    graph = joint(Head(cross_entropy()), (tokens, targets))
    found = ChunkedLoss(0).run(graph, Facts())
    assert found.graph is graph and "symbolic" in found.changed


def test_the_graph_that_is_given_stays_as_it_is() -> None:
    graph = joint(Head(cross_entropy()), data())
    before = str(graph.graph)
    found = ChunkedLoss(0).run(graph, Facts())
    assert found.graph is not graph and "logits of [36, 96] in" in found.changed
    assert str(graph.graph) == before


@pytest.mark.parametrize(
    ("limit", "lowest", "chunked_plan", "whole_plan", "wanted"),
    [
        (100, False, (90, 5), (95, 4), False),  # both fit: the faster one, chunks' own time counted
        (100, False, (90, 1), (95, 9), True),
        (100, False, (90, 50), (110, 0), True),  # one fits
        (100, False, (110, 0), (90, 50), False),
        (100, False, (120, 9), (130, 0), True),  # none does: the lower one
        (0, True, (120, 0), (110, 9), False),
    ],
)
def test_the_better_plan_is_taken(
    limit: int, lowest: bool, chunked_plan: Any, whole_plan: Any, wanted: bool
) -> None:
    def plan(peak_bytes: int, time_us: int) -> Any:
        profile = SimpleNamespace(peak_bytes=peak_bytes, saved_bytes=0)
        return SimpleNamespace(profile=profile, time_us=time_us)

    recompute = Recompute(limit, lowest)
    assert recompute.prefers(plan(*chunked_plan), 12, plan(*whole_plan), 10) is wanted


def test_rows_compare_without_dimensions_of_one() -> None:
    assert trimmed((1, 5, 7), 0, 2) == Rows(1, 2) == trimmed((1, 5, 1, 7), 0, 3)
    assert trimmed((4, 1, 5, 7), 0, 3) == Rows(0, 3)


def test_full_size_graphs_are_cut_without_memory() -> None:
    torch.set_default_dtype(torch.float32)
    with fake_tensor_mode():
        model = torch.nn.Linear(768, 50_257, bias=False)
        hidden = torch.randn(8 * 512, 768, requires_grad=True)
        targets = torch.zeros(8 * 512, dtype=torch.long)
        graph = joint(_Projected(model), (hidden, targets))
    found = ChunkedLoss(0).run(graph, Facts())
    assert found.changed == "logits of [4096, 50257] in 11 chunks"


class _Projected(torch.nn.Module):
    def __init__(self, projection: torch.nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.projection(hidden), targets)
