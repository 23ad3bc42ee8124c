"""Rewrites a joint graph with one region of it in chunks.

Every chunk has its own copy of the region's nodes, on slices of the region's inputs. In each stage,
the chunks stand one after the other, so that only one chunk's values are alive at a time. The
results of the region are put together again: rows side by side, sums added up in order. Sums in
half precision are added in single precision.

The values of a chunk are compared with those of the whole: dtype, and shape except for the number
of rows. If they differ, the rewriting is refused.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from satcompile.graph.chunking.operators import ADD_SHARE
from satcompile.graph.chunking.region import CHUNK_OF, Region
from satcompile.graph.chunking.rows import NotByRows, Rows, Shape, Use, emit, shape_of
from satcompile.torch_compat.tensors import fake_mode_of

aten, prims = torch.ops.aten, torch.ops.prims

_HALF = (torch.bfloat16, torch.float16)
_STALE = ("tensor_meta", "eager_input_vals")  # in a node's meta: about the whole, not a chunk


def in_chunks(module: fx.GraphModule, region: Region, chunks: Sequence[range]) -> fx.GraphModule:
    """A module that computes the same; ``module`` stays as it is.

    Args:
        chunks: the units of rows of each chunk, in order.

    Raises:
        NotByRows: a chunk does not match the whole.
    """
    check_chunks(chunks, region.units)
    return _Writer(module, region, chunks).write()


def check_chunks(chunks: Sequence[range], units: int) -> None:
    """Check that the chunks have all units, each once and in order."""
    if [unit for chunk in chunks for unit in chunk] != list(range(units)) or not all(chunks):
        raise NotByRows(f"the chunks {list(chunks)} are no partition of {units} units")


@dataclass
class _Writer:
    module: fx.GraphModule
    region: Region
    chunks: Sequence[range]
    graph: fx.Graph = field(default_factory=fx.Graph)
    whole: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _flat: dict[tuple[fx.Node, Rows], fx.Node] = field(default_factory=dict)
    _taken: dict[tuple[fx.Node, Rows], set[tuple[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fake_mode = fake_mode_of(self.region.amplifier.meta["val"])
        self.parts: list[dict[fx.Node, fx.Node]] = [{} for _ in self.chunks]

    def write(self) -> fx.GraphModule:
        for item in self._order():
            if isinstance(item, int):
                self._write_stage(item)
            elif item not in self.whole:
                self.whole[item] = self.graph.node_copy(item, self.whole.__getitem__)
        for (operand, rows), taken in self._taken.items():
            _check_slices(operand, sorted(taken), rows.count(shape_of(operand)))
        made = fx.GraphModule(self.module, self.graph)
        made.meta = dict(self.module.meta)
        made.graph.lint()
        return made

    def _order(self) -> Iterable[fx.Node | int]:
        """The joint graph's nodes and the stages, each after what it reads; otherwise in the
        joint graph's order."""
        nodes = list(self.module.graph.nodes)
        position = {node: index for index, node in enumerate(nodes)}
        stages, keys = self.region.stages, {}
        reads: dict[Any, set[Any]] = {n: set() for n in nodes if n not in stages} | {
            0: set(),
            1: {0},
        }
        for node in nodes:
            item = stages.get(node, node)
            reads[item] |= {stages.get(a, a) for a in node.all_input_nodes} - {item}
        for item, needed in reads.items():
            first = position[item] if isinstance(item, fx.Node) else len(nodes)
            keys[item] = (first, 0)
            if isinstance(item, int):
                outside = [position[each] for each in needed if isinstance(each, fx.Node)]
                keys[item] = (max(outside, default=-1), 1 + item)
        return _sorted(reads, keys)

    def _write_stage(self, stage: int) -> None:
        uses = self.region.of_stage(stage)
        sums: dict[fx.Node, fx.Node] = {}
        for number in range(len(self.chunks)):
            for use in uses:
                if use.rows is None:
                    sums[use.node] = self._added(use, number, sums.get(use.node))
                else:
                    self.parts[number][use.node] = self._part(use, number)
        for use in uses:
            if use.rows is None:
                self._give_sum(use.node, sums[use.node])
            elif any(user not in self.region.uses for user in use.node.users):
                self._give_rows(use, [parts[use.node] for parts in self.parts])

    def _part(self, use: Use, number: int) -> fx.Node:
        chunk = _Chunk(self, use, number)
        part = emit(use, chunk)
        found = part.meta["val"]
        wanted = use.node.meta["val"]
        same = found.dtype == wanted.dtype and found.device == wanted.device
        if use.rows is not None:
            same = same and tuple(found.shape) == chunk.shape(use.node)
        else:
            same = same and found.numel() == wanted.numel()
        if not same:
            raise NotByRows(f"a chunk of {use.node.name} is {found}, the whole {wanted}")
        return part

    def _added(self, use: Use, number: int, total: fx.Node | None) -> fx.Node:
        """The sum with one more share. A product is added where it is made: see ``operators``."""
        node, is_half = use.node, use.node.meta["val"].dtype in _HALF
        is_product = node.target is aten.mm.default
        if is_product and total is not None and not is_half:
            chunk = _Chunk(self, use, number)
            factors = [chunk.of(factor) for factor in node.all_input_nodes]
            return self.call(node, aten.addmm.default, total, *factors)
        share = self._part(use, number)
        if is_product and total is not None:
            return self.call(node, ADD_SHARE, total, share)
        if is_half:
            share = self.call(node, prims.convert_element_type.default, share, torch.float32)
        return share if total is None else self.call(node, aten.add.Tensor, total, share)

    def _give_sum(self, node: fx.Node, total: fx.Node) -> None:
        wanted = node.meta["val"]
        if total.meta["val"].shape != wanted.shape:
            total = self.call(node, aten.view.default, total, list(wanted.shape))
        if total.meta["val"].dtype != wanted.dtype:
            # The gradient of a weight in single precision need not pass through half precision.
            casts = [user for user in node.users if self._casts(user, total.meta["val"].dtype)]
            self.whole.update(dict.fromkeys(casts, total))
            if len(casts) == len(node.users):
                return
            total = self.call(node, prims.convert_element_type.default, total, wanted.dtype)
        self.whole[node] = total

    def _casts(self, user: fx.Node, dtype: torch.dtype) -> bool:
        is_cast = user.target is prims.convert_element_type.default and user.args[1] == dtype
        return is_cast and user not in self.region.uses

    def _give_rows(self, use: Use, parts: list[fx.Node]) -> None:
        assert use.rows is not None
        wanted = list(shape_of(use.node))
        joined = self.call(use.node, aten.cat.default, parts, use.rows.start)
        if list(joined.meta["val"].shape) != wanted:
            joined = self.call(use.node, aten.view.default, joined, wanted)
        self.whole[use.node] = joined

    def rows_of(self, node: fx.Node, operand: fx.Node, rows: Rows, number: int) -> fx.Node:
        """The chunk's slice of an input of the region."""
        if (operand, rows) not in self._flat:
            self._flat[operand, rows] = self._flattened(node, operand, rows)
        chunk, per_unit = self.chunks[number], rows.count(shape_of(operand)) // self.region.units
        start, stop = chunk.start * per_unit, chunk.stop * per_unit
        self._taken.setdefault((operand, rows), set()).add((start, stop))
        return self.call(
            node, aten.slice.Tensor, self._flat[operand, rows], rows.start, start, stop
        )

    def _flattened(self, node: fx.Node, operand: fx.Node, rows: Rows) -> fx.Node:
        whole, shape = self.whole[operand], shape_of(operand)
        if rows.stop - rows.start == 1:
            return whole
        flat = list(rows.flat(shape, rows.count(shape)))
        try:
            return self.call(node, aten.view.default, whole, flat)
        except RuntimeError:  # its memory is in another order
            copied = self.call(
                node, aten.clone.default, whole, memory_format=torch.contiguous_format
            )
            return self.call(node, aten.view.default, copied, flat)

    def call(self, origin: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new node that does part of the work of ``origin``."""
        values, named = fx.map_arg((args, kwargs), lambda node: node.meta["val"])
        with self.fake_mode:
            value = target(*values, **named)
        made = self.graph.create_node("call_function", target, args, kwargs, f"{origin.name}_part")
        made.meta = {k: v for k, v in origin.meta.items() if k not in _STALE}
        made.meta |= {"val": value, CHUNK_OF: origin.name}
        return made


def _check_slices(operand: fx.Node, taken: Sequence[tuple[int, int]], count: int) -> None:
    """Check that the slices take all rows of an input of the region, each row once."""
    ends = [0, *(stop for _, stop in taken)]
    if [start for start, _ in taken] != ends[:-1] or ends[-1] != count:
        raise NotByRows(f"the slices {list(taken)} of {operand.name} are not its {count} rows")


def _sorted(reads: dict[Any, set[Any]], keys: dict[Any, tuple[int, int]]) -> list[Any]:
    readers: dict[Any, list[Any]] = {item: [] for item in reads}
    missing = {item: len(needed) for item, needed in reads.items()}
    for item, needed in reads.items():
        for each in needed:
            readers[each].append(item)
    ready = [(keys[item], item) for item, count in missing.items() if not count]
    heapq.heapify(ready)
    done = []
    while ready:
        _, item = heapq.heappop(ready)
        done.append(item)
        for reader in readers[item]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, (keys[reader], reader))
    if len(done) < len(reads):
        raise NotByRows("what a chunk needs is made of other chunks")
    return done


@dataclass
class _Chunk:
    """One node's view of one chunk."""

    writer: _Writer
    use: Use
    number: int

    def of(self, operand: fx.Node, aligned_to: fx.Node | None = None) -> fx.Node:
        rows = self.use.operands[operand]
        if rows is not None and operand in self.writer.region.uses:
            return self.writer.parts[self.number][operand]
        if rows is not None:
            return self.writer.rows_of(self.use.node, operand, rows, self.number)
        whole = self.writer.whole[operand]
        if aligned_to is None or self.use.rows is None:
            return whole
        return self._broadcast(whole, len(shape_of(aligned_to)), self.use.rows)

    def _broadcast(self, whole: fx.Node, rank: int, rows: Rows) -> fx.Node:
        """Merge the operand's dimensions of rows where a chunk merges several into one."""
        own = shape_of(whole)
        offset = rank - len(own)
        start, stop = max(rows.start - offset, 0), max(rows.stop - offset, 0)
        if stop - start <= 1:
            return whole
        shape = [*own[:start], 1, *own[stop:]]
        return self.call(aten.view.default, whole, shape)

    def shape(self, node: fx.Node) -> Shape:
        rows = self.use.rows if node is self.use.node else self.use.operands[node]
        assert rows is not None
        shape = shape_of(node)
        per_unit = rows.count(shape) // self.writer.region.units
        return rows.flat(shape, len(self.writer.chunks[self.number]) * per_unit)

    def blocks(self, unit: int) -> int:
        return len(self.writer.chunks[self.number]) * unit // self.writer.region.units

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.writer.call(self.use.node, target, *args, **kwargs)


def even_chunks(units: int, wanted: int, multiple: int = 1) -> list[range]:
    """At most ``wanted`` chunks of equal size, a multiple of ``multiple``; the last is smaller."""
    size = math.ceil(math.ceil(units / wanted) / multiple) * multiple
    return [range(start, min(start + size, units)) for start in range(0, units, size)]
