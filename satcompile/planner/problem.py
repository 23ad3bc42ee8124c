"""The joint graph in the solver's numbers, and the solver's answer in the graph's nodes.

One graph takes two forms: a ``Step`` (every operation and storage, for simulating memory) and a
two-phase ``Problem`` (values of the forward that the backward may need, for choosing). Neither has
tensor views, only the storages that these share: a plan saves or recomputes storages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import torch
from torch import fx

from satcompile.graph.nodes import is_mutation, is_random
from satcompile.graph.training_graph import (
    TrainingGraph,
    is_getitem,
    is_multi_output,
    is_scalar,
    is_tensor,
    num_elements,
    storage_bytes,
)
from satcompile.planner.cost.roofline import CostModel, OperationCost
from satcompile.planner.workspace import is_product, workspace_of
from satcompile.solver.training.step import Phase, Step, StepOperation
from satcompile.solver.training.two_phase import Operation, Problem, Value
from satcompile.torch_compat.aot import incoming_gradients_stay
from satcompile.torch_compat.operators import HigherOrderOperator, OpOverload, schema_of
from satcompile.torch_compat.partitioner import is_backward_state, recompute_tag
from satcompile.torch_compat.symbols import size_hint

# Higher-order operators without effects of their own, safe to run twice.
_PURE_HIGHER_ORDER = ("flex_attention",)


class PlanningProblem:
    """Numbers of one ``TrainingGraph`` under one ``CostModel``.

    Attributes:
        storages: the node that made each storage; a storage's index is its position.
        operations: the node of each of ``step.operations``.
        consumed: positions among the backward's results of gradients that are not returned.
        tries_operators: whether the graph is compiled where it is planned, so that operators can be
            called to measure their workspaces.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        costs: CostModel,
        consumed: Iterable[int] = (),
        tries_operators: bool = False,
    ) -> None:
        self.graph, self.costs, self.consumed = graph, costs, frozenset(consumed)
        self.tries_operators = tries_operators
        owners = graph.owners
        self.storages = [n for n in graph.graph.nodes if owners[n] is n and is_tensor(n)]
        self.index_of = {node: index for index, node in enumerate(self.storages)}
        self.operations = [n for n in graph.graph.nodes if self._is_operation(n)]

    @property
    def _runs_on_cpu(self) -> bool:
        """Whether the plan is for a CPU; the trace may be of another device."""
        return self.costs.device.kind == "cpu"

    def _is_operation(self, node: fx.Node) -> bool:
        if node.op != "call_function" or is_getitem(node) or is_scalar(node):
            return False
        if is_multi_output(node):
            # A split into views makes no storage: its parts share its argument's.
            return bool(self._writes(node)) or not node.users
        return self.graph.owners[node] is node or is_mutation(node)

    def storage_of(self, node: fx.Node) -> int | None:
        return self.index_of.get(self.graph.owners[node])

    def storages_of(self, nodes: Iterable[fx.Node]) -> frozenset[int]:
        found = (self.storage_of(node) for node in nodes)
        return frozenset(index for index in found if index is not None)

    def _writes(self, node: fx.Node) -> tuple[int, ...]:
        if is_multi_output(node):
            parts = [u for u in node.users if is_getitem(u) and self.graph.owners[u] is u]
            return tuple(self.index_of[part] for part in parts if part in self.index_of)
        return (self.index_of[node],) if node in self.index_of else ()

    def _reads(self, node: fx.Node) -> tuple[int, ...]:
        found = (self.storage_of(argument) for argument in node.all_input_nodes)
        return tuple(dict.fromkeys(index for index in found if index is not None))

    def _phase(self, node: fx.Node) -> Phase:
        if self.graph.is_backward(node):
            return Phase.BACKWARD
        return Phase.FORWARD if self.graph.is_forward(node) else Phase.EITHER

    @cached_property
    def step(self) -> Step:
        graph = self.graph
        transient = {graph.forward_outputs[position] for position in graph.transient_outputs}
        transient.discard(None)
        outputs = graph.nodes_of(graph.forward_outputs)
        held = self.storages_of(node for node in outputs if node not in transient)
        return Step(
            operations=[self._step_operation(node) for node in self.operations],
            storage_bytes=[self._bytes(node) for node in self.storages],
            outputs=held,
            transient_outputs=self.storages_of(graph.nodes_of(transient)) - held,
            gradients=self.storages_of(graph.nodes_of(graph.backward_outputs)),
            tangents=self.storages_of(graph.tangents),
            consumed=self._consumed(),
            tangents_stay=incoming_gradients_stay(),
        )

    def step_of(self, is_default: bool) -> Step:
        """The step; for torch's own plan, with the copies that it holds besides."""
        if not is_default:
            return self.step
        return replace(self.step, constant_bytes=self.layout_copies_bytes())

    def _consumed(self) -> frozenset[int]:
        results = self.graph.backward_outputs
        taken = [n for i, n in enumerate(results) if i in self.consumed]
        returned = [n for i, n in enumerate(results) if i not in self.consumed]
        nodes_of, storages_of = self.graph.nodes_of, self.storages_of
        return storages_of(nodes_of(taken)) - storages_of(nodes_of(returned))

    def layout_copies_bytes(self) -> int:
        """Bytes of the channels-last copies that Inductor makes on the CPU of what convolutions
        read. It saves these copies for the backward instead of the originals."""
        if not self._runs_on_cpu:
            return 0
        convolution, backward = (
            {n for o in self.operations if o.target is target for n in o.all_input_nodes}
            for target in (
                torch.ops.aten.convolution.default,
                torch.ops.aten.convolution_backward.default,
            )
        )
        return sum(
            storage_bytes(node.meta["val"])
            for node in convolution & backward
            if node.op == "placeholder" and _needs_channels_last(node.meta["val"])
        )

    def _bytes(self, node: fx.Node) -> int:
        exists_before = node.op in ("placeholder", "get_attr") and node not in self.graph.tangents
        return 0 if exists_before else storage_bytes(node.meta["val"])

    def _step_operation(self, node: fx.Node) -> StepOperation:
        writes = self._writes(node)
        fusible = self.costs.is_fusible(node)
        return StepOperation(
            name=node.name,
            reads=self._reads(node),
            writes=writes,
            phase=self._phase(node),
            fusible=fusible,
            reduces=fusible and self._reduces(node),
            workspace_bytes=self._workspace_bytes(node),
            stays=not self.is_recomputable(node),
            runs_anyway=is_random(node),
        )

    @property
    def workspaces_bytes(self) -> list[int]:
        """Bytes that each operation takes and gives back, at the sizes that are planned for."""
        return [self._workspace_bytes(node) for node in self.operations]

    def _workspace_bytes(self, node: fx.Node) -> int:
        if self.costs.is_fusible(node):
            return 0
        found = workspace_of(node) if self.tries_operators else None
        if found is None and is_product(node.target):
            found = self.costs.device.product_workspace_bytes
        if found is None:
            found = _reordered_weights_bytes(node) if self._runs_on_cpu else 0
        if self._runs_on_cpu and node.target is torch.ops.aten.convolution.default:
            found += _turned_bytes(node)
        return found

    def _reduces(self, node: fx.Node) -> bool:
        read = [num_elements(n.meta["val"]) for n in node.all_input_nodes if is_tensor(n)]
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return True
        if not read:  # numbers that kernels make for themselves, like ``full`` and ``iota``
            return is_random(node)
        return num_elements(value) < max(read)

    # -- the choice ----------------------------------------------------------------------

    @cached_property
    def prices(self) -> list[OperationCost]:
        return [self.costs.price(node, self.graph.owners) for node in self.operations]

    @cached_property
    def forward_time_us(self) -> float:
        """Time of the forward: each operation's own, and a write where it ends a kernel."""
        total = 0.0
        for operation, price in zip(self.step.operations, self.prices, strict=True):
            if operation.phase is Phase.FORWARD:
                total += price.inline_us
                total += price.write_us if self._reads_unfused(operation) else 0.0
        return total

    @cached_property
    def step_time_us(self) -> float:
        """The same for all operations of the step, each run once."""
        return sum(
            price.inline_us + (price.write_us if self._reads_unfused(operation) else 0.0)
            for operation, price in zip(self.step.operations, self.prices, strict=True)
        )

    def _reads_unfused(self, operation: StepOperation) -> bool:
        """Whether its results must reach memory: a reader cannot be fused, or there is none."""
        readers = [r for s in operation.writes for r in self._readers.get(s, ())]
        return not readers or any(not self.step.operations[r].fusible for r in readers)

    @cached_property
    def _readers(self) -> dict[int, list[int]]:
        readers: dict[int, list[int]] = {}
        for index, operation in enumerate(self.step.operations):
            for storage in operation.reads:
                readers.setdefault(storage, []).append(index)
        return readers

    @cached_property
    def choices(self) -> list[int]:
        """Storages that the two-phase problem decides on: results of non-backward operations."""
        return [
            storage
            for operation in self.step.operations
            if operation.phase is not Phase.BACKWARD
            for storage in operation.writes
        ]

    @cached_property
    def two_phase(self) -> Problem:
        step, makers = self.step, self.step.makers()
        position = {storage: i for i, storage in enumerate(self.choices)}
        forward = [i for i, o in enumerate(step.operations) if o.phase is not Phase.BACKWARD]
        number = {operation: i for i, operation in enumerate(forward)}
        operations = [
            Operation(
                name=step.operations[i].name,
                time_us=self._recompute_us(i),
                reads=tuple(position[s] for s in step.operations[i].reads if s in position),
                recomputable=self.is_recomputable(self.operations[i]),
            )
            for i in forward
        ]
        values = [self._value(s, makers[s], number) for s in self.choices]
        return Problem(operations, values)

    def _recompute_us(self, index: int) -> float:
        # An operation that only the backward needs is computed once, wherever it stands.
        if self.step.operations[index].phase is Phase.EITHER:
            return 0.0
        return self.prices[index].inline_us

    def _value(self, storage: int, maker: int, number: dict[int, int]) -> Value:
        step = self.step
        readers = self._readers.get(storage, [])
        backward = [r for r in readers if step.operations[r].phase is Phase.BACKWARD]
        others = [r for r in readers if step.operations[r].phase is not Phase.BACKWARD]
        num_bytes = 0 if storage in step.outputs else step.storage_bytes[storage]
        price, fusible = self.prices[maker], step.operations[maker].fusible
        in_forward = step.operations[maker].phase is Phase.FORWARD
        forward_readers = [r for r in others if step.operations[r].phase is Phase.FORWARD]
        fused_away = (
            self.costs.fusion
            and fusible
            and bool(forward_readers)
            and all(step.operations[r].fusible for r in forward_readers)
            and storage not in step.outputs
        )
        return Value(
            producer=number[maker],
            num_bytes=num_bytes,
            needed=bool(backward) or storage in step.gradients,
            saveable=recompute_tag(self.storages[storage]) != "recompute",
            save_time_us=self.costs.traffic_us(num_bytes) if fused_away else 0.0,
            materialize_time_us=price.write_us if in_forward else 0.0,
            unfused_backward=any(not step.operations[r].fusible for r in backward),
            unfused_readers=tuple(number[r] for r in others if not step.operations[r].fusible),
        )

    def is_recomputable(self, node: fx.Node) -> bool:
        """Whether ``node`` may run twice: pure, deterministic, and not tagged otherwise."""
        tag = recompute_tag(node)
        if tag is not None:
            return tag == "recompute"
        if any(recompute_tag(user) == "save" for user in node.users if is_getitem(user)):
            return False
        if isinstance(node.target, HigherOrderOperator):
            return node.target.name() in _PURE_HIGHER_ORDER
        if not isinstance(node.target, OpOverload):
            return True
        return not (schema_of(node.target).is_mutable or is_random(node))

    # -- the answer ------------------------------------------------------------------------

    def nodes_to_save(self, saved: Iterable[int]) -> tuple[list[fx.Node], list[fx.Node]]:
        """Nodes that cross to the backward when the storages ``saved`` do.

        Returns:
            Tensors (parameters and inputs that the backward reads among them) and symbolic
            sizes, in the joint graph's order.
        """
        chosen = {self.storages[index] for index in saved}
        crossing: set[fx.Node] = set()
        seen: set[fx.Node] = set()
        stack = list(self.graph.nodes_of(self.graph.backward_outputs))
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in chosen or self._crosses_anyway(node):
                crossing.add(node)
            else:
                stack.extend(node.all_input_nodes)
        ordered = [node for node in self.graph.graph.nodes if node in crossing]
        tensors = [n for n in ordered if not is_scalar(n)]
        return tensors, [n for n in ordered if is_scalar(n)]

    def _crosses_anyway(self, node: fx.Node) -> bool:
        if self.graph.is_backward(node):
            return False
        if node.op == "placeholder":
            return not is_backward_state(node)
        # A number read from a tensor; numbers made from numbers are computed again for free.
        return is_scalar(node) and any(not is_scalar(a) for a in node.all_input_nodes)


def _turned_bytes(node: fx.Node) -> int:
    """Bytes of copies of a convolution's inputs that were not computed in the layout it wants."""
    given = [n for n in node.all_input_nodes if n.op in ("placeholder", "get_attr")]
    values = [n.meta["val"] for n in given if is_tensor(n)]
    return sum(storage_bytes(value) for value in values if _needs_channels_last(value))


def _needs_channels_last(value: torch.Tensor) -> bool:
    return (
        value.dim() == 4
        and size_hint(value.stride(1)) != 1  # asking is_contiguous would guard on sizes
    )


def _reordered_weights_bytes(node: fx.Node) -> int:
    """Bytes that a convolution on the CPU takes for its library's own layout of the weight: one
    copy in the forward, two for the weight's gradient (measured; scratch space comes on top)."""
    copies = None
    if node.target is torch.ops.aten.convolution.default:
        copies = (1, 1)
    elif node.target is torch.ops.aten.convolution_backward.default:
        copies = (2, 2)
    if copies is None:
        return 0
    position, count = copies
    weight = node.args[position]
    value = weight.meta["val"] if isinstance(weight, fx.Node) else None
    return count * storage_bytes(value) if isinstance(value, torch.Tensor) else 0
