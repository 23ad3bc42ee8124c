"""The hand-off to Inductor: one attempt to compile a training graph under a limit.

Inductor gets our partitioner and our wrapper around its compile of each graph. When the
backward's code exists, the allocation check adds up what both wrappers allocate, before any
kernel of the backward is compiled: over the limit, the attempt ends there and the caller
tightens it.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from satcompile.compile import pipeline
from satcompile.compile.allocation import (
    Figures,
    GeneratedGraph,
    ScalarSpec,
    StepWalk,
    TensorSpec,
    UnreadableCode,
    walk_step,
)
from satcompile.compile.fingerprint import digest, source_digest
from satcompile.compile.products import keep_products_apart
from satcompile.errors import SatcompileError, UnsupportedError
from satcompile.graph.emission import COPY_OF
from satcompile.graph.text import GraphChange, graph_text, kept
from satcompile.graph.training_graph import TrainingGraph, is_tensor, storage_bytes
from satcompile.options import Options
from satcompile.passes.chunked_loss import ChunkedLoss, is_chunked
from satcompile.passes.fused_update import FusedUpdate, check_order
from satcompile.passes.recompute import Recompute
from satcompile.passes.sparse_forward import SparseForward
from satcompile.passes.sparse_gradients import SparseGradients, SparseParameters
from satcompile.planner.cost.device import device_of
from satcompile.planner.cost.roofline import CostModel
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.searches import Searches, default_saved_nodes
from satcompile.solver.search import BudgetSearch
from satcompile.torch_compat import (
    aot,
    autograd,
    codegen,
    dynamo,
    inductor,
    partitioner,
    symbols,
    tensors,
    tracing,
)
from satcompile.torch_compat.autograd import leaves_behind
from satcompile.torch_compat.operators import HigherOrderOperator
from satcompile.updates.optimizers.in_backward import LEDGER
from satcompile.updates.sparsity import masks

log = logging.getLogger("satcompile")

# On top of a simulated peak that no code confirms. It is a margin, no promise: of tiny models'
# lowest plans a quarter takes more, by workspaces of operators that only code can tell
# (``python -m benchmarks.simulation``).
UNREADABLE_MARGIN = 0.25
BY_CODE = "generated code"


class OverLimit(codegen.GenerationStopped):
    """The generated code would allocate more than the attempt's limit."""


_BUDGET_OF_REGION = (
    "The model is annotated with torch.autograd.graph.region_activation_memory_budget: torch's own "
    "budget and backend='sat' would both decide what is saved. Take the annotation off, and use "
    "options={'memory_budget': ...} where one is wanted."
)

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


class _Refused(codegen.GenerationStopped):
    """The graph or its code is not what it must be; torch would wrap the error."""

    def __init__(self, error: SatcompileError) -> None:
        super().__init__()
        self.error = error


class CodeOnly(codegen.GenerationStopped):
    """Both graphs' code exists; a dry attempt asks for no more."""


class Known:
    """What attempts at one graph share: searches for plans, and code that was generated."""

    def __init__(self) -> None:
        self.searches = Searches()
        self.codes: dict[Hashable, Code] = {}


@dataclass(frozen=True)
class Code:
    """What was generated for a plan, and what it allocates."""

    forward: GeneratedGraph | None
    backward: GeneratedGraph | None
    walk: StepWalk | None
    unreadable: str | None
    origins: dict[bool, dict[str, str]]
    update_change: GraphChange | None
    num_tokens: int
    transient_outputs: tuple[int, ...]
    peak_bytes: int


@dataclass
class Attempt:
    """One compilation of one Dynamo graph, and all that is learned on the way.

    Attributes:
        options: the user's.
        limit_bytes: what the plan's simulated peak is to stay within; None for no limit.
        accept_bytes: what the generated code may allocate; None for anything.
        saved_limit_bytes: what may be kept from forward to backward; None for no limit.
        default_within_bytes: up to this simulated peak torch's own plan is tried.
        default_saved: names of what that plan saves, where that is known.
        lowest_peak: plan for the lowest peak.
        low_way: of the ways in which plans of low peaks are made, the one to take; 0 for any.
        dry: stop when the code is generated.
        known: from earlier attempts at the graph.
        plan_key: equal for attempts with the same plan, and so with the same code; None before
            there is one.
        leaf_gradients: positions among the graph's inputs of leaves, whose gradients stay.
        updates: positions among the graph's inputs of parameters whose gradients the backward is to
            hand to their optimizer.
        trained: positions among the graph's inputs of parameters that get a gradient.
        sparse: which of them are trained in tiles; None without sparsity.
        names: of parameters by position among the graph's inputs, where they are known.
        latest_masks: of the latest call, by position.
        told_of_dense_uses: whether a warning was given.
        regions_forgotten: operations in checkpoint regions that were taken as advice.
        masked: in a graph without a backward, positions of parameters with a sparse forward.
        on_backward: called when the backward begins to run.
        with_gradient: positions among the graph's inputs to which a gradient flows; None where
            positions are not known.
        returned: by position, why the latest backward gave a gradient to autograd instead of its
            optimizer; None before the first backward.
        _update_change: what the updates made of the backward; None where its code was cached.
        _edges: of each gradient that is handed over, its position among those of tensors.
        origins: per graph (is it the backward's?) the node behind each buffer of its code.
        graphs: texts of the joint graph as the first pass gets it, and of the forward and the
            backward as they go to Inductor, and of the backward with its updates, where its code
            was not cached; where torch writes a trace.
    """

    options: Options
    limit_bytes: int | None = None
    accept_bytes: int | None = None
    saved_limit_bytes: int | None = None
    default_within_bytes: int = 0
    default_saved: tuple[str, ...] = ()
    lowest_peak: bool = False
    low_way: int = 0
    dry: bool = False
    known: Known = field(default_factory=Known, repr=False)
    plan_key: Hashable = field(default=None, repr=False)
    leaf_gradients: frozenset[int] = frozenset()
    updates: frozenset[int] = frozenset()
    trained: frozenset[int] = frozenset()
    on_backward: Callable[[], None] | None = None
    origins: dict[bool, dict[str, str]] = field(default_factory=dict, repr=False)
    graphs: dict[str, str] = field(default_factory=dict, repr=False)
    outcome: pipeline.Outcome | None = None
    problem: PlanningProblem | None = None
    forward: GeneratedGraph | None = None
    backward: GeneratedGraph | None = None
    walk: StepWalk | None = None
    unreadable: str | None = None
    _outputs: tuple[str | None, ...] = field(default=(), repr=False)
    transient_outputs: tuple[int, ...] = ()
    fused_update: FusedUpdate | None = None
    sparse: SparseParameters | None = None
    masked: frozenset[int] = frozenset()
    names: Mapping[int, str] = field(default_factory=dict, repr=False)
    latest_masks: Mapping[int, masks.Mask] = field(default_factory=dict, repr=False)
    told_of_dense_uses: bool = False
    regions_forgotten: int = 0
    with_gradient: frozenset[int] | None = None
    returned: Mapping[int, str] | None = None
    _update_change: GraphChange | None = None
    _edges: dict[int, int] = field(default_factory=dict)
    _sparse_edges: dict[int, int] = field(default_factory=dict)
    _num_inputs: int = 0
    _num_tokens: int = 0  # among the forward's results as it was partitioned
    _later: codegen.LaterModules = field(default_factory=codegen.LaterModules, repr=False)
    _compiled_forward: Any = field(default=None, repr=False)

    @property
    def is_training(self) -> bool:
        return self.outcome is not None

    @property
    def takes_regions_as_advice(self) -> bool:
        """Whether the plan decides what checkpoint regions say. Torch's own plan follows them."""
        is_planned = self.limit_bytes is not None or self.lowest_peak
        return self.options.checkpoints == "advice" and is_planned

    @property
    def settings(self) -> dict[str, Any]:
        """What the plan follows from, for another attempt that comes to the same."""
        return {
            "limit_bytes": self.limit_bytes,
            "saved_limit_bytes": self.saved_limit_bytes,
            "default_within_bytes": self.default_within_bytes,
            "lowest_peak": self.lowest_peak,
            "low_way": self.low_way,
        }

    @property
    def figures(self) -> Figures:
        """What the step comes to: by the generated code; where that cannot be followed, by the
        simulation and a margin."""
        return self._simulated_figures if self.walk is None else self.walk.figures

    @property
    def step_peak_bytes(self) -> int:
        """What the step allocates at its peak, known as ``figures`` are."""
        return self.figures.peak_bytes

    def is_within(self, accept_bytes: int) -> bool:
        """Whether it allocates no more; what has no backward has no plan that could."""
        return not self.is_training or self.step_peak_bytes <= accept_bytes

    @functools.cached_property
    def _simulated_figures(self) -> Figures:
        assert self.outcome is not None and self.problem is not None
        profile, results = self.outcome.plan.profile, self.problem.graph.backward_outputs
        kept = self.leaf_gradients - set(self.consumed)
        gradients = [results[p] for p in kept if p < len(results)]
        of_leaves = [n for n in gradients if isinstance(n, fx.Node)]
        held_bytes = profile.forward.end_bytes

        def with_margin(num_bytes: int) -> int:
            return int(num_bytes * (1 + UNREADABLE_MARGIN))

        return Figures(
            with_margin(profile.forward.peak_bytes),
            with_margin(profile.backward.peak_bytes),
            with_margin(held_bytes),
            max(0, held_bytes - profile.saved_bytes),
            sum(storage_bytes(n.meta["val"]) for n in of_leaves),
        )

    @property
    def prediction(self) -> str:
        """By what the step's bytes are known, in words."""
        if self.walk is not None:
            return BY_CODE
        return f"simulation and {UNREADABLE_MARGIN:.0%}"

    @property
    def relative_time(self) -> float:
        """Time that the plan adds, as a share of the forward's."""
        if self.outcome is None or self.problem is None:
            return 0.0
        added_us = self.outcome.plan.time_us + self.outcome.chunking_us
        return added_us / max(self.problem.forward_time_us, 1e-9)

    @functools.cached_property
    def search(self) -> BudgetSearch:
        """What other plans the graph has."""
        assert self.problem is not None and self.outcome is not None
        saved = default_saved_nodes(self.problem, self.outcome.plan.default_saved)
        return self.known.searches.of(self.problem, self.options.solver_effort, saved)

    @property
    def passes(self) -> tuple[pipeline.PassRecord, ...]:
        """What each pass did, those of the backward graph after those of the joint graph."""
        assert self.outcome is not None
        if self.fused_update is None:
            return self.outcome.passes
        changed = self.fused_update.description
        name, change = self.fused_update.name, self._update_change
        return (*self.outcome.passes, pipeline.PassRecord(name, 0.0, changed, change))

    @property
    def consumed(self) -> tuple[int, ...]:
        """Positions of gradients that the backward does not return."""
        return tuple(sorted(self.fused_update.parameters)) if self.fused_update else ()

    @property
    def num_outputs(self) -> int:
        """How many of the forward's results go to its caller."""
        return self.outcome.parts.num_outputs - self._num_tokens if self.outcome else 0

    def compile(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        """The compiled callable.

        Raises:
            OverLimit: the code would allocate more than ``accept_bytes``.
            CodeOnly: the attempt is dry, and the code is there.
            UnsupportedError, VerificationError: the code must not run.
        """
        self._num_inputs = len(example_inputs)
        patches = {**self.options.inductor, "custom_partitioner_fn": _Partitioner(self)}
        if self.dry:
            patches["fx_graph_cache"] = False  # a stub must not be stored as the graph's code
        with aot.aot_settings():
            try:
                return inductor.compile_fx(
                    gm, example_inputs, inner_compile=self._compile_graph, config_patches=patches
                )
            except _Refused as refused:
                raise refused.error from None

    # -- called by torch -------------------------------------------------------------------

    def partition(
        self, gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        static = kwargs.get("static_lifetime_input_indices") or []
        if partitioner.budget_of_region(gm) is not None:
            raise _Refused(UnsupportedError(_BUDGET_OF_REGION))
        if self.takes_regions_as_advice:
            self.regions_forgotten = partitioner.forget_checkpoint_regions(gm)
        graph = TrainingGraph(gm, kwargs["num_fwd_outputs"], static)
        if not graph.has_backward:
            return partitioner.default_partition(
                graph.module, joint_inputs, num_fwd_outputs=graph.num_forward_outputs,
                static_lifetime_input_indices=static,
                static_lifetime_input_nodes=graph.roles.static_lifetime_input_nodes,
            )  # fmt: skip
        self._note_graphs(joint_graph=graph.module)
        graph, sparse_passes = self._sparsified(graph)
        if self._has_own_positions(graph.primals):
            results = enumerate(graph.backward_outputs)
            self.with_gradient = frozenset(p for p, r in results if isinstance(r, fx.Node))
        self.fused_update = self._fused_update(graph)
        self.problem = PlanningProblem(
            graph,
            CostModel(device_of(graph_device(gm))),
            self.fused_update.parameters if self.fused_update else (),
            tries_operators=True,
        )
        self.outcome = pipeline.run(self.problem, self._recompute, sparse_passes, self._may_chunk)
        if self.outcome.problem is not self.problem:
            self.problem = self.outcome.problem
            self.fused_update = self._fused_update(self.problem.graph)
        parts = self.outcome.parts
        # Inductor rewrites the modules it is given: what is needed later is noted now.
        self._note_graphs(forward_graph=parts.forward, backward_graph=parts.backward)
        self._outputs = _output_names(parts.forward)
        self.transient_outputs = graph.transient_outputs
        self.plan_key = _plan_key(self.outcome, self.problem, self.updates)
        self._stop_where_known()
        return parts.forward, parts.backward

    @property
    def _recompute(self) -> Recompute:
        return Recompute(
            self.limit_bytes,
            self.lowest_peak,
            self.options.solver_effort,
            saved_limit_bytes=self.saved_limit_bytes,
            default_within_bytes=self.default_within_bytes,
            default_saved=self.default_saved,
            low_way=self.low_way,
            searches=self.known.searches,
        )

    @property
    def _may_chunk(self) -> bool:
        return ChunkedLoss.name not in self.options.disable_passes

    def decided(
        self, limit_bytes: int | None = None, lowest_peak: bool = False, low_way: int = 0
    ) -> pipeline.Decision:
        """What another attempt with these settings would decide for the same graph."""
        assert self.outcome is not None
        recompute = replace(
            self._recompute,
            limit_bytes=limit_bytes,
            lowest_peak=lowest_peak,
            low_way=low_way,
            saved_limit_bytes=None,
            default_within_bytes=0,
            default_saved=self.outcome.plan.default_saved,
        )
        return pipeline.decide(self.outcome.whole, recompute, may_chunk=self._may_chunk)

    def _stop_where_known(self) -> None:
        """End an attempt whose answer needs no code, or code that was generated before."""
        assert self.outcome is not None
        code = self.known.codes.get(self.plan_key)
        is_over = code is not None and (
            self.accept_bytes is not None and code.peak_bytes > self.accept_bytes
        )
        if code is not None and (self.dry or is_over):
            self.forward, self.backward, self.walk = code.forward, code.backward, code.walk
            self.unreadable, self.origins = code.unreadable, code.origins
            self._update_change = code.update_change
            self._num_tokens, self.transient_outputs = code.num_tokens, code.transient_outputs
            raise CodeOnly if self.dry else OverLimit
        wanted_bytes = max(self.limit_bytes or 0, self.default_within_bytes)
        is_low_enough = self.outcome.plan.profile.peak_bytes <= wanted_bytes
        if self.accept_bytes is not None and not is_low_enough and not self.lowest_peak:
            raise OverLimit  # the lowest plan that is known: whoever tightens asks for its code

    def _is_over(self) -> bool:
        return self.accept_bytes is not None and self.step_peak_bytes > self.accept_bytes

    def _note_graphs(self, **modules: fx.GraphModule) -> None:
        """For the trace; a plan that is given up leaves nothing there."""
        if tracing.is_tracing():
            self.graphs.update({n: tracing.readable(gm) for n, gm in modules.items()})

    def _sparsified(
        self, graph: TrainingGraph
    ) -> tuple[TrainingGraph, tuple[pipeline.PassRecord, ...]]:
        """The graph with sparse gradients, and a sparse forward, where these are asked for."""
        sparsity = self.options.sparsity
        if sparsity is None:
            return graph, ()
        if not self._has_own_positions(graph.primals):
            log.warning(
                "sparsity: this graph is trained densely, because some of its inputs share memory."
            )
            return graph, ()
        gradients = SparseGradients(self.trained, sparsity.block)
        forward = SparseForward() if sparsity.is_forward_sparse else None
        graph, self.sparse, records = pipeline.sparsify(graph, gradients, forward)
        self._sparse_edges = _edges_of(graph, self.sparse.tiled)
        return graph, records

    def _has_own_positions(self, inputs: Sequence[fx.Node]) -> bool:
        """AOTAutograd drops inputs that are there twice and merges those that overlap: positions
        are then others than in Dynamo's graph."""
        return len(inputs) == self._num_inputs

    def _fused_update(self, graph: TrainingGraph) -> FusedUpdate | None:
        """Which gradients to hand over."""
        if not self.updates or FusedUpdate.name in self.options.disable_passes:
            return None
        if not self._has_own_positions(graph.primals):
            log.warning(
                "in_backward=True: all gradients of this graph are returned and applied by step(), "
                "without the saving in memory, because some of its inputs share memory."
            )
            return None
        if inductor.uses_cuda_graphs(self.options.inductor) and not is_on_cpu(graph.module):
            raise _Refused(UnsupportedError(_UPDATES_AND_CUDA_GRAPHS))
        if any(map(dynamo.is_of_streams, graph.graph.nodes)):
            raise _Refused(UnsupportedError(_UPDATES_AND_STREAMS))
        owners = graph.owners
        names: dict[fx.Node, list[str]] = {graph.primals[i]: [] for i in sorted(self.updates)}
        for node in graph.graph.nodes:
            if owners[node] in names and not graph.is_backward(node):
                names[owners[node]].append(node.name)
        results = graph.backward_outputs
        slots = [slot for slot in sorted(self.updates) if isinstance(results[slot], fx.Node)]
        self._edges = _edges_of(graph, slots)
        num_bytes = sum(storage_bytes(results[slot].meta["val"]) for slot in slots)
        return FusedUpdate({s: tuple(names[graph.primals[s]]) for s in slots}, num_bytes)

    def _compile_graph(
        self, gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any
    ) -> Any:
        inductor.spell_out_scaled_sums(gm.graph)
        if self.outcome is not None and not self.outcome.plan.is_default:
            keep_products_apart(gm.graph)
        gm.recompile()
        if self.outcome is None or kwargs.get("is_inference"):
            self._mask_inference(gm)
            return inductor.compile_fx_inner(gm, example_inputs, **kwargs)
        names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
        specs = [_spec(value, name) for value, name in zip(example_inputs, names, strict=True)]
        is_backward = bool(kwargs.get("is_backward"))
        if not is_backward:
            self._leave_out_tokens(_output_names(gm))
        outputs = () if is_backward else self._outputs

        # Inductor returns a graph without operations as it is, and writes no code for it.
        own_text = None
        if not (is_backward and self.consumed):  # updates are put in behind this
            own_text = _text_without_operations(gm)
        copies = {n.name: n.meta[COPY_OF] for n in gm.graph.nodes if COPY_OF in n.meta}

        def generated(source: str, origins: dict[str, str]) -> None:
            self.origins[is_backward] = {b: copies.get(n, n) for b, n in origins.items()}
            graph = GeneratedGraph(source, specs, outputs)
            if not is_backward:
                self.forward = graph
                return
            self.backward = graph
            if self.fused_update is not None:
                try:
                    check_order(source, len(self.consumed))
                except SatcompileError as error:
                    raise _Refused(error) from None
            self._check_allocations()
            self._remember()
            if self._is_over():
                raise OverLimit
            if self.dry:
                raise CodeOnly

        with (
            self._as_planned(is_backward),
            self._updates_inserted() if is_backward else nullcontext(),
            codegen.watching_generated_code(generated, stub=self.dry and not is_backward),
            self._may_be_for_nothing(gm, is_backward),
        ):
            compiled = inductor.compile_fx_inner(gm, example_inputs, **kwargs)
        source = getattr(compiled, "source_code", None) or own_text
        if source and (self.backward if is_backward else self.forward) is None:
            generated(source, {})  # from the cache: nothing was generated, but the text came along
        elif not source and is_backward and self.walk is None:
            self._cannot_follow("Inductor kept no source")
            if self._is_over():
                raise OverLimit
        if not is_backward:
            self._compiled_forward = compiled
            return compiled
        self._later.load(self._compiled_forward)
        return self._announced(self._retainable(compiled))

    def _may_be_for_nothing(
        self, gm: fx.GraphModule, is_backward: bool
    ) -> AbstractContextManager[None]:
        """A forward's kernels are compiled once the backward's code is within the limit, too."""
        if is_backward or self.accept_bytes is None or not is_on_cpu(gm):
            return nullcontext()
        return self._later.put_off()

    def _leave_out_tokens(self, outputs: tuple[str | None, ...]) -> None:
        """AOTAutograd takes the tokens that put effects in order (checks of linear algebra, prints)
        out of the forward's results once it is partitioned."""
        if len(outputs) == len(self._outputs):
            return
        left = Counter(outputs)
        kept = []
        for position, name in enumerate(self._outputs):
            if left[name] > 0:
                left[name] -= 1
                kept.append(position)
        assert self.outcome is not None
        given = self.outcome.parts.num_outputs
        self._num_tokens = sum(position not in set(kept) for position in range(given))
        places = {position: number for number, position in enumerate(kept)}
        self.transient_outputs = tuple(places[p] for p in self.transient_outputs if p in places)
        self._outputs = outputs

    def _retainable(self, compiled: Any) -> Any:
        """The compiled backward, which may run again where the graph is retained: what it was saved
        and would overwrite is then copied first."""
        donated = aot.take_donated_positions()
        if not donated:
            return compiled

        def run(args: list[Any]) -> Any:
            if autograd.keeps_graph():
                args = list(args)
                for position in donated:
                    args[position] = tensors.same_strided_copy(args[position])
            return compiled(args)

        return run

    def _mask_inference(self, gm: fx.GraphModule) -> None:
        """What is evaluated is what is trained: a sparse forward without a backward."""
        sparsity = self.options.sparsity
        inputs = gm.graph.find_nodes(op="placeholder")
        if sparsity is None or not sparsity.is_forward_sparse or self.outcome is not None:
            return
        if self._has_own_positions(inputs):
            self.masked = SparseForward().run_on_inference(gm.graph, inputs, self.trained)
            gm.recompile()

    def _announced(self, compiled: Any) -> Any:
        """The compiled backward, which tells when it begins, and whose parameters are known."""

        def plain(args: list[Any]) -> Any:
            if self.on_backward is not None:
                self.on_backward()
            LEDGER.plain_backward()
            return compiled(args)

        def updated(args: list[Any]) -> Any:
            if self.on_backward is not None:
                self.on_backward()
            with LEDGER.backward(self._edges) as call:
                results = compiled(args)
            self.returned = call.returned
            return call.filled(results)

        def masked(args: list[Any]) -> Any:
            with masks.running(masks.bindings(leaves_behind(self._sparse_edges))):
                return run(args)

        run = updated if self.consumed else plain
        outer = run if self.sparse is None else masked
        outer._boxed_call = True  # type: ignore[attr-defined]  # it may empty the list it is given
        return outer

    def _updates_inserted(self) -> AbstractContextManager[None]:
        """The backward stage, which has one pass. It runs last: Inductor's own patterns would
        move readers of a parameter behind its update, or stop at the update."""
        if self.fused_update is None:
            return nullcontext()
        log.debug("pass %s: %s", self.fused_update.name, self.fused_update.description)
        key = digest(source_digest(), repr(self.fused_update))
        return inductor.rewriting_last(self._insert_updates, key)

    def _insert_updates(self, graph: fx.Graph) -> None:
        assert self.fused_update is not None
        before = kept(graph_text(graph))
        self.fused_update.run(graph)
        self._update_change = GraphChange(before, kept(graph_text(graph)))
        assert graph.owning_module is not None
        self._note_graphs(updated_backward_graph=graph.owning_module)

    @contextmanager
    def _as_planned(self, is_backward: bool) -> Iterator[None]:
        """A plan's buffers are freed when they are no longer read, it saves no copies of what is there
        anyway, its backward keeps its order, and chunks stay apart in the forward, too; without a plan
        of ours Inductor does as it will.

        The plan follows from the graph and the settings, and so does this: the partitioner's uuid
        covers them.
        """
        with ExitStack() as stack:
            if self.outcome is not None and not self.outcome.plan.is_default:
                stack.enter_context(inductor.freeing_at_once())
                stack.enter_context(inductor.turning_where_used())
                if is_backward or is_chunked(self.outcome.problem.graph):
                    stack.enter_context(inductor.fusing_in_order())
            yield

    def _check_allocations(self) -> None:
        """Walk both wrappers."""
        try:
            if self.forward is None or self.backward is None:
                raise UnreadableCode("one of the two graphs came without source")
            self.walk = walk_step(
                self.forward.at_hints(),
                self.backward.at_hints(),
                self.num_outputs,
                self.transient_outputs,
                self.leaf_gradients,
            )
        except UnreadableCode as error:
            self._cannot_follow(str(error))

    def _cannot_follow(self, why: str) -> None:
        """The plan's simulated peak, and a margin, stand for the code; but the simulation does not
        know what graphs within the graph allocate.

        Raises:
            _Refused: there are such, and a budget.
        """
        self.unreadable = why
        if self.options.memory_budget is None:
            return
        assert self.problem is not None
        inner = sorted({str(n.target) for n in self.problem.graph.graph.nodes if _has_graphs(n)})
        if inner:
            raise _Refused(
                UnsupportedError(
                    f"memory_budget {self.options.memory_budget.text!r} cannot be held: the generated "
                    f"code cannot be followed ({why}), and what {', '.join(inner)} allocates inside is "
                    "known from that alone. Keep it outside of the compiled model, or compile without "
                    "a memory_budget."
                )
            )
        log.warning(
            "The generated code cannot be followed (%s): the budget is held by the plan's simulated "
            "peak and %.0f%%, not by the code's own allocations.",
            why,
            UNREADABLE_MARGIN * 100,
        )

    def _remember(self) -> None:
        """The code, for attempts that come to the same plan. What came out of a cache does not say
        which operation each of its buffers is."""
        if not self.origins[True]:
            return
        self.known.codes[self.plan_key] = Code(
            self.forward, self.backward, self.walk, self.unreadable, self.origins,
            self._update_change, self._num_tokens, self.transient_outputs, self.step_peak_bytes,
        )  # fmt: skip


class _Partitioner(partitioner.CustomPartitionerFn):
    """What Inductor calls with the joint graph."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._uuid = digest(
            source_digest(),
            torch.__version__,
            # Code that may overwrite what was saved is wrong where a graph is retained, and the
            # cache of Inductor's code does not tell the two apart by itself.
            repr(aot.may_overwrite_saved()),
            attempt.options.code_key,
            repr(
                (
                    attempt.limit_bytes,
                    attempt.saved_limit_bytes,
                    attempt.default_within_bytes,
                    attempt.lowest_peak,
                    attempt.low_way,
                    attempt.dry,
                    sorted(attempt.updates),
                    sorted(attempt.trained) if attempt.options.sparsity is not None else None,
                )
            ),
        )

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        return self._attempt.partition(gm, joint_inputs, **kwargs)

    def uuid(self) -> str:
        return self._uuid

    # Inductor copies and pickles its configuration for cache keys; graphs stay out of them.
    def __deepcopy__(self, memo: Any) -> _Partitioner:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"_uuid": self._uuid}


def _plan_key(
    outcome: pipeline.Outcome, problem: PlanningProblem, updates: Iterable[int]
) -> Hashable:
    """Of what decides on the code: both graphs, and how they are fused."""
    plan = outcome.plan
    values = [n.meta.get("val") for n in problem.graph.primals]
    return digest(
        str(aot.may_overwrite_saved()),
        str(plan.is_default),
        str(sorted(updates)),
        str([(n.name, n.meta.get("recompute")) for n in problem.graph.graph.nodes]),
        str([n.name for n in (*plan.crossing, *plan.scalars)]),
        str([plan.operations[i].name for i in plan.forward_order]),
        str([plan.operations[i].name for i in plan.backward_order]),
        str([(n.name, str(n.target)) for n in problem.graph.graph.nodes]),
        str([symbols.size_hint(v) for v in values if isinstance(v, torch.SymInt)]),
    )


def _edges_of(graph: TrainingGraph, slots: Iterable[int]) -> dict[int, int]:
    """By slot, the position among the edges of autograd's node, of which tensors alone have one."""
    tensors = [i for i, node in enumerate(graph.primals) if is_tensor(node)]
    edges = {position: edge for edge, position in enumerate(tensors)}
    return {slot: edges[slot] for slot in slots}


def _has_graphs(node: fx.Node) -> bool:
    """Whether an operation runs graphs of its own (``while_loop``, ``scan``)."""
    module = node.graph.owning_module
    return isinstance(node.target, HigherOrderOperator) and any(
        read.op == "get_attr"
        and isinstance(getattr(module, str(read.target), None), fx.GraphModule)
        for read in node.all_input_nodes
    )


def graph_device(gm: fx.GraphModule) -> torch.device:
    """The device that most of the graph's values live on."""
    devices = devices_of(gm)
    return max(set(devices), key=devices.count) if devices else torch.device("cpu")


def is_on_cpu(gm: fx.GraphModule) -> bool:
    """Whether none of the graph's values lives elsewhere."""
    return all(device.type == "cpu" for device in devices_of(gm))


def devices_of(gm: fx.GraphModule) -> list[torch.device]:
    """Of AOTAutograd's graphs, and of Dynamo's, which keep their values elsewhere."""
    values = (n.meta.get("val", n.meta.get("example_value")) for n in gm.graph.nodes)
    return [value.device for value in values if isinstance(value, torch.Tensor)]


def _output_names(module: fx.GraphModule) -> tuple[str | None, ...]:
    node = next(iter(module.graph.find_nodes(op="output")))
    return tuple(v.name if isinstance(v, fx.Node) else None for v in node.args[0])


def _text_without_operations(module: fx.GraphModule) -> str | None:
    """A wrapper for a graph that returns inputs of its own; None for any other graph."""
    nodes = module.graph.nodes
    if any(node.op not in ("placeholder", "output") for node in nodes):
        return None
    inputs = "".join(f"{node.name}, " for node in nodes if node.op == "placeholder")
    results = "".join(f"{name}, " for name in _output_names(module))
    taken = f"    {inputs}= args\n" if inputs else ""
    return f"def call(args):\n{taken}    args.clear()\n    return ({results})\n"


def _spec(value: Any, name: str) -> Any:
    """A graph's input as the walk wants it; symbolic sizes stay symbolic."""
    if isinstance(value, torch.Tensor):
        shape = tuple(symbols.size_expression(s) for s in value.shape)
        strides = tuple(symbols.size_expression(s) for s in value.stride())
        hints = tuple(map(symbols.size_hint, (*value.shape, *value.stride())))
        return TensorSpec(name, shape, strides, value.dtype, hints)
    if isinstance(value, symbols.SymTypes):
        return ScalarSpec(symbols.size_expression(value), symbols.size_hint(value))
    return value
