"""Projection and loss over a vocabulary, computed in chunks of tokens.

What the pass rewrites, in a joint graph: the logits (a product with several times more numbers out
than in), everything else of their size in the forward and in the backward, and what stands
between. Each chunk of tokens computes its own logits, its losses, its part of the gradient of the
hidden states, and its share of the weight's gradient, which is a sum over chunks. A chunk's logits
are one value, read by the forward's loss and by the backward: whether they are kept or computed
again is for ``recompute`` to decide, chunk by chunk, like everything else. Nothing is assumed of the
gradient that comes in, unlike in losses that compute their gradient in the forward (Liger kernel,
Hsu et al., 2024; cut cross-entropy, Wijmans et al., 2024; Inductor's own ``auto_chunker``).

What it leaves alone, each with the reason in the report: logits that are returned, or that some
operator reads for which there is no rule (``satcompile.graph.chunking.rows``; those of sparse training
among them); losses that need all tokens at once; symbolic numbers of tokens; logits that are not
larger than the rest.

It is not the least memory: of a weight's gradient two are alive when a chunk's share is added.
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
_ROWS = 64  # chunks are of whole tiles of a matrix product, where there are enough tokens
_MATTERS = 0.1  # of the peak
_HEADS = 8  # projections that are looked at, largest first


@dataclass(frozen=True)
class ChunkedLoss:
    """The pass.

    Attributes:
        peak_bytes: of the step without it; logits that are no large part of that are left alone.
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
        """Before anything is looked for around it: whether it were large in single precision."""
        value = head.meta["val"]
        if not all(isinstance(extent, int) for extent in value.shape):
            return  # ``find`` refuses symbols, without asking anything of them
        if value.numel() * max(value.dtype.itemsize, 4) < _MATTERS * self.peak_bytes:
            raise NotByRows("small beside the peak")

    def _chunks(self, graph: TrainingGraph, region: Region) -> list[range]:
        """So many that a chunk's logits are small beside the largest other storage."""
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
