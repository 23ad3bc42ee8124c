"""Heads and losses over a vocabulary, and their joint graphs as they are and in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from satcompile.graph.capture import capture
from satcompile.graph.chunking.region import amplifiers, find
from satcompile.graph.chunking.rewrite import even_chunks, in_chunks
from satcompile.graph.training_graph import TrainingGraph

VOCABULARY, HIDDEN, BATCH, LENGTH = 96, 8, 4, 9
IGNORED = -100

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Head(torch.nn.Module):
    """An embedding, something between, a projection to the vocabulary, and a loss."""

    def __init__(self, loss: Loss, bias: bool = False, tied: bool = False, cap: float = 0) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, HIDDEN)
        self.inner = torch.nn.Linear(HIDDEN, HIDDEN)
        self.projection = torch.nn.Linear(HIDDEN, VOCABULARY, bias=bias)
        if tied:
            self.projection.weight = self.embedding.weight
        self.loss, self.cap = loss, cap

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> Any:
        logits = self.projection(torch.tanh(self.inner(self.embedding(tokens))))
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        return self.loss(logits, targets)


def cross_entropy(**settings: Any) -> Loss:
    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), **settings)

    return loss


def data(batch: int = BATCH, length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets, some of them to be ignored."""
    tokens = torch.randint(0, VOCABULARY, (batch, length))
    targets = torch.randint(0, VOCABULARY, (batch, length))
    return tokens, targets.masked_fill(torch.rand(batch, length) < 0.2, IGNORED)


def chunked(graph: TrainingGraph, chunks: int) -> TrainingGraph:
    """The same computation in chunks; its one vocabulary in at most so many."""
    region = find(graph, next(amplifiers(graph)))
    module = in_chunks(graph.module, region, even_chunks(region.units, chunks))
    return TrainingGraph(module, graph.num_forward_outputs, graph.static_inputs)


def joint(model: torch.nn.Module, inputs: Sequence[Any]) -> TrainingGraph:
    return capture(model, *inputs)


def values(graph: TrainingGraph) -> list[torch.Tensor]:
    """Numbers for a joint graph's inputs, of which the integers are tokens and targets."""
    tokens, targets = data_like(graph)
    torch.manual_seed(1)
    integers = iter((tokens, targets))
    return [
        torch.randn(tuple(value.shape), dtype=value.dtype)
        if value.dtype.is_floating_point
        else next(integers)
        for value in (node.meta["val"] for node in graph.inputs)
    ]


def data_like(graph: TrainingGraph) -> tuple[torch.Tensor, torch.Tensor]:
    shape = next(n.meta["val"].shape for n in graph.inputs if n.meta["val"].dtype == torch.int64)
    torch.manual_seed(2)
    return data(*shape)


def results(module: fx.GraphModule, given: Sequence[torch.Tensor]) -> list[Any]:
    found = fx.Interpreter(module).run(*given)
    return list(torch.utils._pytree.tree_leaves(found))


def largest(graph: TrainingGraph) -> int:
    """Numbers in the largest value that is no input."""
    values = [n.meta["val"] for n in graph.graph.nodes if n.op == "call_function"]
    return max(v.numel() for v in values if isinstance(v, torch.Tensor))
