"""The hand-off to Inductor: code for one plan of a graph.

Inductor gets our partitioner and our wrapper around its compile of each graph. Once the backward's
code exists, we add up the allocations of both wrappers, before Inductor compiles any kernel of the
backward. If they are over what the request accepts, generation ends there and says by how much.

Torch calls back from inside its compiler, and gives callbacks no way to stop it. ``_Stopped``
unwinds the compiler, and never leaves this module.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from satcompile.compile.allocation import (
    Figures,
    GeneratedGraph,
    ScalarSpec,
    StepWalk,
    TensorSpec,
    UnreadableCode,
    walk_step,
)
from satcompile.compile.code import (
    BY_CODE,
    BY_SIMULATION,
    UNREADABLE_MARGIN,
    Code,
    simulated_figures,
)
from satcompile.compile.fingerprint import digest, source_digest
from satcompile.compile.pipeline import Decision, PassRecord, decide, run_backward
from satcompile.compile.planning import (
    PlannedGraphs,
    has_own_positions,
    may_chunk,
    noted_texts,
    plan_graphs,
    recompute_of,
)
from satcompile.compile.products import keep_products_apart
from satcompile.errors import SatcompileError, UnsupportedError
from satcompile.graph.devices import is_on_cpu
from satcompile.graph.emission import COPY_OF
from satcompile.graph.training_graph import TrainingGraph
from satcompile.passes.chunked_loss import is_chunked
from satcompile.passes.fused_update import check_order
from satcompile.passes.sparse_forward import SparseForward
from satcompile.planner.request import Request
from satcompile.planner.searches import Searches, default_saved_nodes
from satcompile.solver.training.search import BudgetSearch
from satcompile.torch_compat import aot, autograd, codegen, inductor, partitioner, symbols, tensors
from satcompile.torch_compat.operators import HigherOrderOperator

log = logging.getLogger("satcompile")

_BUDGET_OF_REGION = (
    "The model is annotated with torch.autograd.graph.region_activation_memory_budget: torch's own "
    "budget and backend='sat' would both decide what is saved. Take the annotation off, and use "
    "options={'memory_budget': ...} where one is wanted."
)


@dataclass
class Known:
    """Results of earlier requests for a graph. They save time; no answer depends on them.

    Attributes:
        searches: searches for plans, begun for the same numbers.
        codes: generated code by the key of its plan.
        default_saved: names of the nodes that torch's own plan saves, for the sizes of the first
            call. Empty until planning has found them.
    """

    searches: Searches = field(default_factory=Searches)
    codes: dict[Hashable, Code] = field(default_factory=dict)
    default_saved: tuple[str, ...] = ()


class Backward:
    """A compiled backward as AOTAutograd calls it. The code that runs a step sets ``run``, which adds
    masks, updates and the step's accounts around the backward. Until then a call is an error: without
    masks, sparse operators would compute all tiles and say nothing."""

    def __init__(self, compiled: Callable[[list[Any]], Any]) -> None:
        self._boxed_call = True  # it may empty the list that it is given
        self.compiled = compiled
        self.run: Callable[[list[Any]], Any] = self._refuse

    def _refuse(self, args: list[Any]) -> Any:
        raise AssertionError("a compiled backward ran that no plan in use has taken over")

    def __call__(self, args: list[Any]) -> Any:
        return self.run(args)


@dataclass
class Generated:
    """The result of a request.

    Attributes:
        planned: the two graphs; None for a graph without a backward, which needs no plan.
        code: the generated code; None where there is nothing to plan, or where the simulated peak
            is already above the limit.
        compiled: the function that runs the step; None if the request was for code only, or did not
            accept the code.
        backward: the compiled backward.
        masked: in a graph without a backward, positions of parameters with a sparse forward.
    """

    request: Request
    known: Known = field(repr=False)
    planned: PlannedGraphs | None = None
    code: Code | None = None
    compiled: Callable[..., Any] | None = None
    backward: Backward | None = None
    masked: frozenset[int] = frozenset()

    @property
    def is_training(self) -> bool:
        return self.planned is not None

    @property
    def graphs(self) -> PlannedGraphs:
        """The planned graphs; only for a graph that has a backward."""
        assert self.planned is not None
        return self.planned

    @functools.cached_property
    def figures(self) -> Figures:
        """The step's figures, from the generated code; where that cannot be followed, from the
        simulation and a margin."""
        return simulated_figures(self.graphs) if self.code is None else self.code.figures

    @property
    def step_peak_bytes(self) -> int:
        """Bytes that the step allocates at its peak, from ``figures``."""
        return self.figures.peak_bytes

    def is_within(self, accept_bytes: int) -> bool:
        """Whether the step allocates at most ``accept_bytes``; always true without a backward."""
        return not self.is_training or self.step_peak_bytes <= accept_bytes

    @property
    def walk(self) -> StepWalk | None:
        """The step's allocations; None where its code cannot be followed."""
        return None if self.code is None else self.code.walk

    @property
    def unreadable(self) -> str | None:
        """Why the code cannot be followed."""
        return None if self.code is None else self.code.unreadable

    @property
    def prediction(self) -> str:
        """How the step's bytes are known, in words."""
        return BY_SIMULATION if self.walk is None else BY_CODE

    @property
    def relative_time(self) -> float:
        """Time that the plan adds, as a share of the forward's."""
        return 0.0 if self.planned is None else self.planned.relative_time

    @property
    def passes(self) -> tuple[PassRecord, ...]:
        """The record of each pass, those of the joint graph first."""
        planned = self.graphs
        ran = () if self.code is None else self.code.backward_passes
        if not ran and planned.updates is not None:  # its code was cached, or not asked for
            ran = (PassRecord(planned.updates.name, 0.0, planned.updates.description),)
        return (*planned.outcome.passes, *ran)

    @property
    def texts(self) -> dict[str, str]:
        """The texts of the graphs, where torch writes a trace."""
        of_code = {} if self.code is None else self.code.texts
        return {**self.graphs.texts, **of_code}

    @functools.cached_property
    def search(self) -> BudgetSearch:
        """The search for other plans of the graph."""
        problem = self.graphs.problem
        saved = default_saved_nodes(problem, self.graphs.plan.default_saved)
        return self.known.searches.of(problem, self.request.options.solver_effort, saved)

    def decided(self, request: Request) -> Decision:
        """The decision that another request would get on the same graph."""
        recompute = recompute_of(request, self.known.searches, self.graphs.plan.default_saved)
        return decide(self.graphs.outcome.whole, recompute, may_chunk=may_chunk(request))


def generate(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    request: Request,
    known: Known,
    code_only: bool = False,
) -> Generated:
    """Plan one of Dynamo's graphs, generate code, and compile the code if the request accepts it.

    Args:
        gm: the graph, which is used up.
        known: results of earlier requests; this one adds its own.
        code_only: compile nothing.

    Raises:
        UnsupportedError, VerificationError: the code must not run.
    """
    return _Generation(request, known, code_only).run(gm, example_inputs)


class _Stopped(codegen.GenerationStopped):
    """The generation has all that the request asked for."""


class _Refused(codegen.GenerationStopped):
    """Carries an error about the graph or its code through torch, which would wrap the error."""

    def __init__(self, error: SatcompileError) -> None:
        super().__init__()
        self.error = error


class _Generation:
    """One run of Inductor, which calls back the methods of this class."""

    def __init__(self, request: Request, known: Known, code_only: bool) -> None:
        self._request, self._known, self._code_only = request, known, code_only
        self._made = Generated(request, known)
        self._later = codegen.LaterModules()
        self._compiled_forward: Any = None
        # By graph (True for the backward), filled in as Inductor generates the wrappers.
        self._wrappers: dict[bool, GeneratedGraph] = {}
        self._origins: dict[bool, dict[str, str]] = {False: {}, True: {}}
        self._outputs: tuple[str | None, ...] = ()
        self._num_tokens = 0  # among the results of the forward as partitioned
        self._transient_outputs: tuple[int, ...] = ()
        self._backward_records: tuple[PassRecord, ...] = ()
        self._texts: dict[str, str] = {}

    def run(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Generated:
        patches = {
            **self._request.options.inductor,
            "custom_partitioner_fn": Partitioner(self._request, self._code_only, self._partition),
        }
        if self._code_only:
            patches["fx_graph_cache"] = False  # a stub must not be stored as the graph's code
        with aot.aot_settings():
            try:
                self._made.compiled = inductor.compile_fx(
                    gm, example_inputs, inner_compile=self._compile_graph, config_patches=patches
                )
            except _Refused as refused:
                raise refused.error from None
            except _Stopped:
                pass
        return self._made

    # -- the joint graph -------------------------------------------------------------------

    def _partition(
        self, gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        static = kwargs.get("static_lifetime_input_indices") or []
        if partitioner.budget_of_region(gm) is not None:
            raise _Refused(UnsupportedError(_BUDGET_OF_REGION))
        is_advice, forgotten = self._request.takes_regions_as_advice, 0
        if is_advice:
            forgotten = partitioner.forget_checkpoint_regions(gm)
        graph = TrainingGraph(gm, kwargs["num_fwd_outputs"], static)
        if not graph.has_backward:
            return partitioner.default_partition(
                graph.module, joint_inputs, num_fwd_outputs=graph.num_forward_outputs,
                static_lifetime_input_indices=static,
                static_lifetime_input_nodes=graph.roles.static_lifetime_input_nodes,
            )  # fmt: skip
        # The known names are from torch's own plan for the graph with its regions.
        default_saved = () if is_advice else self._known.default_saved
        try:
            planned = plan_graphs(
                graph, self._request, self._known.searches, default_saved,
                regions_forgotten=forgotten,
            )  # fmt: skip
        except UnsupportedError as error:
            raise _Refused(error) from None
        if not is_advice:
            self._known.default_saved = planned.plan.default_saved
        self._made.planned = planned
        self._outputs = _output_names(planned.parts.forward)
        self._transient_outputs = planned.transient_outputs
        self._stop_where_known(planned)
        return planned.parts.forward, planned.parts.backward

    def _stop_where_known(self, planned: PlannedGraphs) -> None:
        """Stop if the answer needs no code, or if its code was generated before."""
        code = self._known.codes.get(planned.key)
        if code is not None and (self._code_only or self._is_over(code)):
            self._made.code = code
            raise _Stopped
        if self._request.accept_bytes is not None and not planned.is_within_request:
            raise _Stopped  # the lowest known plan; a caller that tightens asks for its code

    def _is_over(self, code: Code) -> bool:
        accept_bytes = self._request.accept_bytes
        return accept_bytes is not None and code.figures.peak_bytes > accept_bytes

    # -- each of the two graphs ------------------------------------------------------------

    def _compile_graph(
        self, gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any
    ) -> Any:
        planned = self._made.planned
        inductor.spell_out_scaled_sums(gm.graph)
        if planned is not None and not planned.plan.is_default:
            keep_products_apart(gm.graph)
        gm.recompile()
        if planned is None or kwargs.get("is_inference"):
            self._mask_inference(gm)
            return inductor.compile_fx_inner(gm, example_inputs, **kwargs)
        is_backward = bool(kwargs.get("is_backward"))
        if not is_backward:
            self._leave_out_tokens(planned, _output_names(gm))
        names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
        specs = [_spec(value, name) for value, name in zip(example_inputs, names, strict=True)]
        copies = {n.name: n.meta[COPY_OF] for n in gm.graph.nodes if COPY_OF in n.meta}
        # Inductor returns a graph without operations as it is, and writes no code for it.
        own_text = None
        if not (is_backward and planned.consumed):  # updates are inserted later
            own_text = _text_without_operations(gm)

        def generated(source: str, origins: dict[str, str]) -> None:
            self._origins[is_backward] = {b: copies.get(n, n) for b, n in origins.items()}
            outputs = () if is_backward else self._outputs
            self._wrappers[is_backward] = GeneratedGraph(source, specs, outputs)
            if is_backward:
                self._check_updates(planned, source)
                self._finish_code(planned, None)

        with (
            _as_planned(planned, is_backward),
            self._backward_passes(planned) if is_backward else nullcontext(),
            codegen.watching_generated_code(generated, stub=self._code_only and not is_backward),
            self._may_be_for_nothing(gm, is_backward),
        ):
            compiled = inductor.compile_fx_inner(gm, example_inputs, **kwargs)
        source = getattr(compiled, "source_code", None) or own_text
        if source and is_backward not in self._wrappers:
            generated(source, {})  # from the cache: nothing was generated, but the text is there
        elif not source and is_backward and self._made.code is None:
            self._finish_code(planned, "Inductor kept no source")
        if not is_backward:
            self._compiled_forward = compiled
            return compiled
        self._later.load(self._compiled_forward)
        self._made.backward = Backward(_retainable(compiled))
        return self._made.backward

    def _may_be_for_nothing(
        self, gm: fx.GraphModule, is_backward: bool
    ) -> AbstractContextManager[None]:
        """Put off compiling the forward's kernels until the backward's code is within the limit."""
        if is_backward or self._request.accept_bytes is None or not is_on_cpu(gm):
            return nullcontext()
        return self._later.put_off()

    def _leave_out_tokens(self, planned: PlannedGraphs, outputs: tuple[str | None, ...]) -> None:
        """Leave out tokens that order effects (checks of linear algebra, prints). AOTAutograd takes
        them out of the forward's results after the partition."""
        if len(outputs) == len(self._outputs):
            return
        left = Counter(outputs)
        kept = []
        for position, name in enumerate(self._outputs):
            if left[name] > 0:
                left[name] -= 1
                kept.append(position)
        self._num_tokens = sum(p not in set(kept) for p in range(planned.parts.num_outputs))
        places = {position: number for number, position in enumerate(kept)}
        self._transient_outputs = tuple(places[p] for p in planned.transient_outputs if p in places)
        self._outputs = outputs

    def _mask_inference(self, gm: fx.GraphModule) -> None:
        """Make a graph without a backward sparse, so that evaluation runs the model as trained."""
        sparsity = self._request.options.sparsity
        if sparsity is None or not sparsity.is_forward_sparse or self._made.planned is not None:
            return
        inputs = gm.graph.find_nodes(op="placeholder")
        if has_own_positions(inputs, self._request):
            trained = self._request.subject.trained
            self._made.masked = SparseForward().run_on_inference(gm.graph, inputs, trained)
            gm.recompile()

    # -- the backward stage ----------------------------------------------------------------

    def _backward_passes(self, planned: PlannedGraphs) -> AbstractContextManager[None]:
        """A context in which the backward stage runs after all of Inductor's own rewriting."""
        passes = planned.backward_passes
        if not passes:
            return nullcontext()

        def rewrite(graph: fx.Graph) -> None:
            self._backward_records = run_backward(graph, passes)
            assert graph.owning_module is not None
            self._texts = noted_texts(updated_backward_graph=graph.owning_module)

        return inductor.rewriting_last(rewrite, digest(source_digest(), repr(passes)))

    def _check_updates(self, planned: PlannedGraphs, source: str) -> None:
        if planned.updates is None:
            return
        try:
            check_order(source, len(planned.consumed))
        except SatcompileError as error:
            raise _Refused(error) from None

    # -- what it allocates -----------------------------------------------------------------

    def _finish_code(self, planned: PlannedGraphs, unreadable: str | None) -> None:
        """Make the ``Code``, once both wrappers exist.

        Args:
            unreadable: why the code cannot be followed, if that is known already.
        """
        num_outputs = planned.parts.num_outputs - self._num_tokens
        leaves = planned.request.subject.leaves
        forward, backward = self._wrappers.get(False), self._wrappers.get(True)
        walk = None
        if unreadable is None:
            try:
                walk = self._walked(forward, backward, num_outputs)
            except UnreadableCode as error:
                unreadable = str(error)
        if unreadable is not None:
            self._check_margin(planned, unreadable)
        code = Code(
            forward, backward, walk, unreadable,
            simulated_figures(planned) if walk is None else walk.figures,
            num_outputs, self._transient_outputs, leaves,
            self._origins, self._backward_records, self._texts,
        )  # fmt: skip
        self._made.code = code
        # Code from a cache does not say which operation each of its buffers comes from.
        if self._origins[True]:
            self._known.codes[planned.key] = code
        if self._code_only or self._is_over(code):
            raise _Stopped

    def _walked(
        self, forward: GeneratedGraph | None, backward: GeneratedGraph | None, num_outputs: int
    ) -> StepWalk:
        if forward is None or backward is None:
            raise UnreadableCode("one of the two graphs came without source")
        return walk_step(
            forward.at_hints(),
            backward.at_hints(),
            num_outputs,
            self._transient_outputs,
            self._request.subject.leaves,
        )

    def _check_margin(self, planned: PlannedGraphs, why: str) -> None:
        """Check that the plan's simulated peak and a margin can replace the code's figures. The
        simulation does not know what graphs within the graph allocate.

        Raises:
            _Refused: there are such graphs, and a budget.
        """
        budget = self._request.options.memory_budget
        if budget is None:
            return
        inner = sorted({str(n.target) for n in planned.problem.graph.graph.nodes if _has_graphs(n)})
        if inner:
            raise _Refused(
                UnsupportedError(
                    f"memory_budget {budget.text!r} cannot be held: the generated "
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


class Partitioner(partitioner.CustomPartitionerFn):
    """The partitioner that Inductor calls with the joint graph. Its ``uuid`` tells Inductor's cache
    when the same graph may get different code."""

    def __init__(
        self,
        request: Request,
        code_only: bool,
        partition: Callable[..., tuple[fx.GraphModule, fx.GraphModule]],
    ) -> None:
        self._partition = partition
        self._uuid = digest(
            source_digest(),
            torch.__version__,
            # Code that may overwrite saved tensors is wrong where a graph is retained. Inductor's
            # code cache does not tell the two apart by itself.
            repr(aot.may_overwrite_saved()),
            request.key,
            repr(code_only),
        )

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        return self._partition(gm, joint_inputs, **kwargs)

    def uuid(self) -> str:
        return self._uuid

    # Inductor copies and pickles its configuration for cache keys; graphs stay out of them.
    def __deepcopy__(self, memo: Any) -> Partitioner:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"_uuid": self._uuid}


@contextmanager
def _as_planned(planned: PlannedGraphs, is_backward: bool) -> Iterator[None]:
    """Make Inductor follow a plan of ours; for torch's own plan, Inductor decides for itself.

    Buffers are freed once they are no longer read, and no copies are saved of values that exist
    anyway. The backward keeps its order, and chunks stay apart in the forward, too.

    These settings follow from the graph and the request, as the plan does. The partitioner's uuid
    covers both.
    """
    with ExitStack() as stack:
        if not planned.plan.is_default:
            stack.enter_context(inductor.freeing_at_once())
            stack.enter_context(inductor.turning_where_used())
            if is_backward or is_chunked(planned.problem.graph):
                stack.enter_context(inductor.fusing_in_order())
        yield


def _retainable(compiled: Any) -> Callable[[list[Any]], Any]:
    """The compiled backward, which may run again where the graph is retained. It then gets copies
    of the saved tensors that it would overwrite."""
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


def _has_graphs(node: fx.Node) -> bool:
    """Whether an operation runs graphs of its own (``while_loop``, ``scan``)."""
    module = node.graph.owning_module
    return isinstance(node.target, HigherOrderOperator) and any(
        read.op == "get_attr"
        and isinstance(getattr(module, str(read.target), None), fx.GraphModule)
        for read in node.all_input_nodes
    )


def _output_names(module: fx.GraphModule) -> tuple[str | None, ...]:
    node = next(iter(module.graph.find_nodes(op="output")))
    return tuple(v.name if isinstance(v, fx.Node) else None for v in node.args[0])


def _text_without_operations(module: fx.GraphModule) -> str | None:
    """A wrapper for a graph that only returns its inputs; None for any other graph."""
    nodes = module.graph.nodes
    if any(node.op not in ("placeholder", "output") for node in nodes):
        return None
    inputs = "".join(f"{node.name}, " for node in nodes if node.op == "placeholder")
    results = "".join(f"{name}, " for name in _output_names(module))
    taken = f"    {inputs}= args\n" if inputs else ""
    return f"def call(args):\n{taken}    args.clear()\n    return ({results})\n"


def _spec(value: Any, name: str) -> Any:
    """A graph's input as the walk takes it; symbolic sizes stay symbolic."""
    if isinstance(value, torch.Tensor):
        shape = tuple(symbols.size_expression(s) for s in value.shape)
        strides = tuple(symbols.size_expression(s) for s in value.stride())
        hints = tuple(map(symbols.size_hint, (*value.shape, *value.stride())))
        return TensorSpec(name, shape, strides, value.dtype, hints)
    if isinstance(value, symbols.SymTypes):
        return ScalarSpec(symbols.size_expression(value), symbols.size_hint(value))
    return value
