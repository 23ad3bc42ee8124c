"""From a joint graph and a request to a planned pair of graphs: a function of these two alone.

The backend, ``satcompile.plan`` and the tests all plan here. A caller may pass in searches that
were begun for the same numbers. They save time and change no plan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from satcompile.compile import pipeline
from satcompile.compile.fingerprint import digest
from satcompile.compile.partition import Partition
from satcompile.errors import UnsupportedError
from satcompile.graph.devices import graph_device, is_on_cpu
from satcompile.graph.training_graph import TrainingGraph, is_tensor, storage_bytes
from satcompile.passes.chunked_loss import ChunkedLoss
from satcompile.passes.contract import Pass
from satcompile.passes.facts import SparseParameters
from satcompile.passes.fused_update import FusedUpdate
from satcompile.planner.cost.device import Device, device_of
from satcompile.planner.cost.roofline import CostModel
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.recompute import Recompute
from satcompile.planner.request import Request
from satcompile.planner.retention import RetentionPlan
from satcompile.planner.searches import Searches
from satcompile.torch_compat import aot, dynamo, inductor, symbols, tracing

log = logging.getLogger("satcompile")

_UPDATES_AND_STREAMS = (
    "fuse_optimizer(in_backward=True) was asked for with a model that uses streams of its own: an update "
    "would not wait for the stream that makes its gradient. Use the current stream inside the compiled "
    "model, or leave in_backward out."
)

_UPDATES_AND_CUDA_GRAPHS = (
    "fuse_optimizer(in_backward=True) was asked for together with CUDA graphs (Inductor's "
    "triton.cudagraphs is on), which would replay one step's updates: that was never checked. Turn "
    "them off (options={'inductor': {'triton.cudagraphs': False}}), or in_backward."
)


@dataclass(frozen=True)
class PlannedGraphs:
    """The forward and the backward graph into which a plan splits a joint graph.

    Attributes:
        request: what was asked for.
        outcome: of the joint stage: the problem, the plan, the two graphs, what each pass did.
        updates: the pass that hands gradients to their optimizer; None if there are none.
        update_edges: for each gradient that is handed over, its position among those of tensors.
        sparse: parameters that are trained in tiles; None without sparsity.
        sparse_edges: the same as ``update_edges``, for the parameters in ``sparse``.
        with_gradient: positions among the graph's inputs to which a gradient flows; None where
            positions are not known.
        regions_forgotten: number of operations in checkpoint regions that were taken as advice.
        transient_outputs: results of the forward that its caller drops at once.
        key: equal for plans with the same code.
        texts: texts of the joint graph as the first pass gets it, and of both graphs as they go to
            Inductor; only where torch writes a trace.
    """

    request: Request
    outcome: pipeline.Outcome
    updates: FusedUpdate | None
    update_edges: Mapping[int, int]
    sparse: SparseParameters | None
    sparse_edges: Mapping[int, int]
    with_gradient: frozenset[int] | None
    regions_forgotten: int
    transient_outputs: tuple[int, ...]
    key: str = field(repr=False)
    texts: Mapping[str, str] = field(repr=False)

    @property
    def problem(self) -> PlanningProblem:
        return self.outcome.problem

    @property
    def plan(self) -> RetentionPlan:
        return self.outcome.plan

    @property
    def parts(self) -> Partition:
        return self.outcome.parts

    @property
    def backward_passes(self) -> tuple[Pass[fx.Graph], ...]:
        """The passes that run on the backward while it is compiled."""
        return pipeline.backward_passes(self.updates)

    @property
    def consumed(self) -> tuple[int, ...]:
        """Positions of gradients that the backward does not return."""
        return tuple(sorted(self.updates.parameters)) if self.updates else ()

    @property
    def relative_time(self) -> float:
        """Time that the plan adds, as a share of the forward's."""
        added_us = self.plan.time_us + self.outcome.chunking_us
        return added_us / max(self.problem.forward_time_us, 1e-9)

    @property
    def is_within_request(self) -> bool:
        """Whether the simulated peak is within the limit. If it is not, no lower plan is known."""
        request = self.request
        if request.limit_bytes is None or request.lowest_peak:
            return True
        wanted_bytes = max(request.limit_bytes, request.default_within_bytes)
        return self.plan.profile.peak_bytes <= wanted_bytes


def plan_graphs(
    graph: TrainingGraph,
    request: Request,
    searches: Searches | None = None,
    default_saved: tuple[str, ...] = (),
    tries_operators: bool = True,
    regions_forgotten: int = 0,
) -> PlannedGraphs:
    """Run the joint stage on a graph, as ``request`` asks.

    Args:
        graph: a graph with a backward. It changes in place if the request is for sparse training.
        searches: searches that were begun for the same graph.
        default_saved: names of the nodes that torch's own plan saves, if they are known.
        tries_operators: whether operators may be called to measure their workspaces.
        regions_forgotten: how many operations in checkpoint regions were freed for the plan.

    Raises:
        UnsupportedError: the request cannot be honoured on this graph.
        VerificationError: a pass broke the graph.
    """
    texts = noted_texts(joint_graph=graph.module)
    graph, sparse, sparse_passes = _sparsified(graph, request)
    with_gradient = None
    if has_own_positions(graph.primals, request):
        results = enumerate(graph.backward_outputs)
        with_gradient = frozenset(p for p, r in results if isinstance(r, fx.Node))
    updates = fused_update(graph, request)
    device = device_of(graph_device(graph.module))
    problem = problem_of(graph, device, updates, tries_operators)
    outcome = pipeline.run(
        problem,
        recompute_of(request, searches, default_saved),
        sparse_passes,
        may_chunk=may_chunk(request),
    )
    if outcome.problem is not problem:  # its graph has other nodes
        updates = fused_update(outcome.problem.graph, request)
    # Inductor rewrites the modules that it is given, so their texts are noted now.
    parts = outcome.parts
    texts |= noted_texts(forward_graph=parts.forward, backward_graph=parts.backward)
    return PlannedGraphs(
        request=request,
        outcome=outcome,
        updates=updates,
        update_edges=_edges_of(outcome.problem.graph, updates.parameters if updates else ()),
        sparse=sparse,
        sparse_edges={} if sparse is None else _edges_of(graph, sparse.tiled),
        with_gradient=with_gradient,
        regions_forgotten=regions_forgotten,
        transient_outputs=graph.transient_outputs,
        key=_key(outcome, request.updates),
        texts=texts,
    )


def problem_of(
    graph: TrainingGraph, device: Device, updates: FusedUpdate | None, tries_operators: bool
) -> PlanningProblem:
    """The planning problem of the graph on a device."""
    consumed = updates.parameters if updates else ()
    return PlanningProblem(graph, CostModel(device), consumed, tries_operators)


def recompute_of(
    request: Request, searches: Searches | None = None, default_saved: tuple[str, ...] = ()
) -> Recompute:
    """The pass that plans, with the request's limits."""
    return Recompute(
        effort=request.options.solver_effort,
        default_saved=default_saved,
        searches=Searches() if searches is None else searches,
        **request.plan_settings,
    )


def may_chunk(request: Request) -> bool:
    """Whether the graph may be planned with its vocabulary in chunks."""
    return request.allows(ChunkedLoss.name)


def has_own_positions(inputs: Sequence[fx.Node], request: Request) -> bool:
    """Whether the inputs have the positions of Dynamo's graph. They do not if AOTAutograd drops
    duplicate inputs or merges inputs that overlap."""
    return len(inputs) == request.subject.num_inputs


def fused_update(graph: TrainingGraph, request: Request) -> FusedUpdate | None:
    """The pass that hands gradients to their optimizer; None if none is handed over.

    Raises:
        UnsupportedError: an update inside the backward would go wrong here.
    """
    if not request.updates or not request.allows(FusedUpdate.name):
        return None
    if not has_own_positions(graph.primals, request):
        log.warning(
            "in_backward=True: all gradients of this graph are returned and applied by step(), "
            "without the saving in memory, because some of its inputs share memory."
        )
        return None
    if inductor.uses_cuda_graphs(request.options.inductor) and not is_on_cpu(graph.module):
        raise UnsupportedError(_UPDATES_AND_CUDA_GRAPHS)
    if any(map(dynamo.is_of_streams, graph.graph.nodes)):
        raise UnsupportedError(_UPDATES_AND_STREAMS)
    owners = graph.owners
    names: dict[fx.Node, list[str]] = {graph.primals[i]: [] for i in sorted(request.updates)}
    for node in graph.graph.nodes:
        if owners[node] in names and not graph.is_backward(node):
            names[owners[node]].append(node.name)
    results = graph.backward_outputs
    slots = [slot for slot in sorted(request.updates) if isinstance(results[slot], fx.Node)]
    num_bytes = sum(storage_bytes(results[slot].meta["val"]) for slot in slots)
    return FusedUpdate({s: tuple(names[graph.primals[s]]) for s in slots}, num_bytes)


def _sparsified(
    graph: TrainingGraph, request: Request
) -> tuple[TrainingGraph, SparseParameters | None, tuple[pipeline.PassRecord, ...]]:
    """The graph with sparse gradients and a sparse forward, if the request asks for them."""
    sparsity = request.options.sparsity
    if sparsity is None:
        return graph, None, ()
    if not has_own_positions(graph.primals, request):
        log.warning(
            "sparsity: this graph is trained densely, because some of its inputs share memory."
        )
        return graph, None, ()
    graph, facts, records = pipeline.run_joint(graph, pipeline.joint_passes(request))
    return graph, facts.sparse, records


def _edges_of(graph: TrainingGraph, slots: Iterable[int]) -> dict[int, int]:
    """The position of each slot among the edges of autograd's node; only tensors have an edge."""
    tensors = [i for i, node in enumerate(graph.primals) if is_tensor(node)]
    edges = {position: edge for edge, position in enumerate(tensors)}
    return {slot: edges[slot] for slot in slots}


def noted_texts(**modules: fx.GraphModule) -> dict[str, str]:
    """The graphs as text, if torch writes a trace."""
    if not tracing.is_tracing():
        return {}
    return {name: tracing.readable(module) for name, module in modules.items()}


def _key(outcome: pipeline.Outcome, updates: Iterable[int]) -> str:
    """A digest of what determines the code: both graphs, and how they are fused."""
    plan, graph = outcome.plan, outcome.problem.graph
    values = [n.meta.get("val") for n in graph.primals]
    return digest(
        str(aot.may_overwrite_saved()),
        str(plan.is_default),
        str(sorted(updates)),
        str([(n.name, n.meta.get("recompute")) for n in graph.graph.nodes]),
        str([n.name for n in (*plan.crossing, *plan.scalars)]),
        str([plan.operations[i].name for i in plan.forward_order]),
        str([plan.operations[i].name for i in plan.backward_order]),
        str([(n.name, str(n.target)) for n in graph.graph.nodes]),
        str([symbols.size_hint(v) for v in values if isinstance(v, torch.SymInt)]),
    )
