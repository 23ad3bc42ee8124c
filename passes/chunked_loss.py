"""Projection and loss over a vocabulary, computed in chunks of tokens.

What the pass rewrites, in a joint graph: the logits (a product with several times more numbers out
than in), all other values of their size in the forward and in the backward, and the nodes between
them. Each chunk of tokens computes its own logits, its losses, its part of the gradient of the
hidden states, and its share of the weight's gradient, which is a sum over chunks. A chunk's logits
are one value, which the forward's loss and the backward read. As for every value, ``recompute``
decides for each chunk whether they are kept or computed again. The pass assumes nothing about the
incoming gradient, unlike losses that compute their gradient in the forward (Liger kernel, Hsu et
al., 2024; cut cross-entropy, Wijmans et al., 2024; Inductor's own ``auto_chunker``).

What it leaves alone, each with the reason in the report: logits that are returned; logits that an
operator without a rule reads (``satcompile.graph.chunking.rows``; the operators of sparse training
have none); losses that need all tokens at once; symbolic numbers of tokens; logits that are not
larger than the rest.

The memory is not the least possible: when a chunk's share is added to a weight's gradient, two
gradients of that weight are alive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from satcompile.passes.contract import Ensures, Result, Stage
from satcompile.passes.facts import Facts
from torch import fx

from satcompile.graph.chunking.region import CHUNK_OF, Region, amplifiers, find
from satcompile.graph.chunking.rewrite import even_chunks, in_chunks
from satcompile.graph.chunking.rows import NotByRows
from satcompile.graph.training_graph import TrainingGraph, is_tensor, storage_bytes

_FEWEST, _MOST = 2, 16
_PER_STORAGE = 2  # chunks' logits in the largest other storage: several of their size are alive
_ROWS = 64  # a chunk is whole tiles of a matrix product, if there are enough tokens
_MATTERS = 0.1  # share of the peak
_HEADS = 8  # projections to try at most, largest first


@dataclass(frozen=True)
class ChunkedLoss:
    """The pass.

    Attributes:
        peak_bytes: of the step without the pass. Logits that are a small part of it stay whole.
    """

    peak_bytes: int

    name = "chunked_loss"
    stage = Stage.JOINT
    requires = ()
    ensures = Ensures.RESULTS

    def run(self, graph: TrainingGraph, facts: Facts) -> Result[TrainingGraph]:
        """Rewrite a copy of the joint graph; ``graph`` stays as it is."""
        changed, said, looked_at = graph, list[str](), set[str]()
        for _ in range(_HEADS):
            head = _next(amplifiers(changed), looked_at)
            if head is None:
                break
            looked_at.add(head.name)
            try:
                self._check_size(head)
                region = find(changed, head)
                chunks = self._chunks(changed, region)
                module = in_chunks(changed.module, region, chunks)
            except NotByRows as found:
                said.append(f"{_described(head)} whole: {found}")
                continue
            changed = TrainingGraph(module, graph.num_forward_outputs, graph.static_inputs)
            said.append(f"{_described(head)} in {len(chunks)} chunks")
        if changed is graph and not said:
            said.append("no dense product is much larger than its factors")
        return Result(changed, "; ".join(said), facts)

    def _check_size(self, head: fx.Node) -> None:
        """Refuse logits that are small even in single precision, before the region is searched."""
        value = head.meta["val"]
        if not all(isinstance(extent, int) for extent in value.shape):
            return  # ``find`` refuses symbols, and does not evaluate them
        if value.numel() * max(value.dtype.itemsize, 4) < _MATTERS * self.peak_bytes:
            raise NotByRows("small beside the peak")

    def _chunks(self, graph: TrainingGraph, region: Region) -> list[range]:
        """So many chunks that a chunk's logits are small beside the largest other storage."""
        logits_bytes = max(storage_bytes(node.meta["val"]) for node in region.large)
        if logits_bytes < _MATTERS * self.peak_bytes:
            raise NotByRows("small beside the peak")
        others = [n for n in graph.graph.nodes if is_tensor(n) and n not in region.large]
        other_bytes = max(storage_bytes(node.meta["val"]) for node in others)
        if logits_bytes <= other_bytes:
            raise NotByRows("not larger than the rest")
        wanted = math.ceil(_PER_STORAGE * logits_bytes / other_bytes)
        wanted = min(max(wanted, _FEWEST), _MOST, region.units)
        return even_chunks(region.units, wanted, _ROWS if region.units >= _ROWS * wanted else 1)


def _next(heads: Iterable[fx.Node], looked_at: set[str]) -> fx.Node | None:
    return next((head for head in heads if head.name not in looked_at), None)


def _described(head: fx.Node) -> str:
    extents = ", ".join(map(str, head.meta["val"].shape))
    return f"logits of [{extents}]"


def is_chunked(graph: TrainingGraph) -> bool:
    return any(CHUNK_OF in node.meta for node in graph.graph.nodes)
