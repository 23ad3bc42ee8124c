"""Matrix products that Inductor would compute later than a plan says.

Inductor makes one ``addmm`` of ``add(mm(a, b), x)`` (2.11 to 2.14), at the place of the sum. The
values that the product reads are kept until then. The gradient of a tied embedding is such a sum.
Its product reads the gradient of all logits, at the beginning of the backward, and the lookup's
share comes last.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from satcompile.graph.training_graph import storage_bytes

aten = torch.ops.aten


def keep_products_apart(graph: fx.Graph) -> None:
    """Turn ``x + mm`` into ``x - (-mm)``, the same number down to a zero's sign, where more would
    be kept for the product than its result takes. The graph is in the order of its plan."""
    values = _Values(graph)
    for total in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        terms = total.all_input_nodes
        if len(terms) != 2 or total.kwargs:
            continue
        for product, other in (terms, reversed(terms)):
            is_fused = product.target is aten.mm.default and len(product.users) == 1
            if is_fused and values.are_kept_for(product, total):
                with graph.inserting_before(total):
                    negative = graph.call_function(aten.neg.default, (product,))
                negative.meta = dict(product.meta)
                total.target, total.args = aten.sub.Tensor, (other, negative)
                break


class _Values:
    """The values of a graph and their readers; a view stands for the value that it shows."""

    def __init__(self, graph: fx.Graph) -> None:
        self._base: dict[fx.Node, fx.Node] = {}
        self._last_read: dict[fx.Node, dict[fx.Node, int]] = {}
        self._place: dict[fx.Node, int] = {}
        for node in graph.nodes:
            reads = [self._base[read] for read in node.all_input_nodes]
            self._base[node] = reads[0] if reads and _is_view(node) else node
            if self._base[node] is not node:
                continue
            self._place[node] = len(self._place)
            for read in reads:
                self._last_read.setdefault(read, {})[node] = self._place[node]

    def are_kept_for(self, product: fx.Node, total: fx.Node) -> bool:
        """Whether computing the product at the sum would keep more bytes alive than its result
        takes otherwise."""
        return sum(self._kept(product, total)) > storage_bytes(product.meta.get("val"))

    def _kept(self, product: fx.Node, total: fx.Node) -> Iterator[int]:
        for read in {self._base[node] for node in product.all_input_nodes}:
            if read.name.startswith("primals_"):  # torch's name for inputs, which are alive anyway
                continue
            others = [p for n, p in self._last_read[read].items() if n not in (product, total)]
            freed_at = max([self._place[product], *others])
            if freed_at + 1 < self._place[total]:
                yield storage_bytes(read.meta.get("val"))


def _is_view(node: fx.Node) -> bool:
    """Whether the node's result shares memory with a value that the node reads."""
    returned = getattr(getattr(node.target, "_schema", None), "returns", ())
    return any(result.alias_info is not None for result in returned)
