"""Every private name of torch that satcompile touches, in one place.

Each stands here with the reason and the versions on which it was checked. Nothing else in
the project imports a name of torch that starts with an underscore, apart from types in
annotations and ``torch._ops.OpOverload``, which is what FX nodes are made of.

Checked on torch 2.13.0 (Python 3.11), 2.11.0 (Python 3.11 and 3.12), 2.14.1 (Python 3.11 and 3.13)
and 2.15.0 (Python 3.13 and 3.14), where ``tests/torch_compat/test_torch_names.py`` found every name and the fast
tests passed. Beside each name stand the versions on which its code was read.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import gc
import hashlib
import inspect
import math
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import Any

import sympy
import torch
import torch.utils._python_dispatch
from torch import fx

# Raised from a backend, a class that inherits ShortenTraceback reaches the user as itself and
# not inside BackendCompilerFailed. 2.11, 2.13.
from torch._dynamo.exc import ShortenTraceback  # noqa: F401

# What a backend may raise to have the graph left to eager, with a warning. 2.11, 2.13, 2.14.
from torch._dynamo.exc import exceptions_allowed_to_be_fallback as LEFT_TO_EAGER  # noqa: F401
from torch._functorch import config as functorch_config

# The partitioner's own helpers: which nodes belong to the forward and the backward, what must
# be saved (collectives, effects, mutations, checkpoint regions), and the extraction of the
# two modules, whose calling convention is AOTAutograd's business. 2.11, 2.13.
from torch._functorch import partitioners
from torch._inductor.custom_graph_pass import CustomPartitionerFn  # noqa: F401

SymTypes = (torch.SymInt, torch.SymFloat, torch.SymBool)


_sizes: ContextVar[Mapping[Any, int] | None] = ContextVar("sizes", default=None)


@contextlib.contextmanager
def planning_for(sizes: Mapping[Any, int]) -> Iterator[None]:
    """Inside, ``size_hint`` knows symbols by these values, not by those of the first call."""
    token = _sizes.set(sizes or None)
    try:
        yield
    finally:
        _sizes.reset(token)


def size_hint(value: Any, fallback: int = 4096) -> int:
    """The concrete value behind a size that may be symbolic, without adding a guard."""
    if isinstance(value, int):
        return value
    if not isinstance(value, torch.SymInt):
        return int(value)
    sizes = _sizes.get()
    if sizes is not None:
        found = value.node.expr.subs(sizes)
        if found.is_number:
            return int(found)
    try:
        from torch.fx.experimental.symbolic_shapes import optimization_hint  # 2.13
    except ImportError:
        from torch.fx.experimental.symbolic_shapes import (  # type: ignore[attr-defined]
            size_hint as hint_of,  # 2.11
        )

        return int(hint_of(value, fallback=fallback))
    return int(optimization_hint(value, fallback=fallback))


def meta_strides(value: torch.Tensor) -> tuple[int, ...]:
    return tuple(size_hint(stride) for stride in value.stride())


@contextlib.contextmanager
def aot_settings() -> Iterator[None]:
    """AOTAutograd as our graphs need it, for the duration of one compilation.

    ``force_non_lazy_backward_lowering``: both graphs compile together, so that the allocation
    check can still change the plan, and the backward's errors are not swallowed.
    ``enable_autograd_cache``: a hit would call neither our partitioner nor our wrapper of the
    inner compile, and reports and checks would be lost. The FX graph cache still hits.
    Both 2.11, 2.13.
    """
    with functorch_config.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False):
        yield


def compile_fx(*args: Any, **kwargs: Any) -> Any:
    """Inductor's entry: AOTAutograd with Inductor behind it. 2.11, 2.13."""
    from torch._inductor.compile_fx import compile_fx as inductor_compile_fx

    return inductor_compile_fx(*args, **kwargs)


def compile_fx_inner(*args: Any, **kwargs: Any) -> Any:
    """Inductor's compile of one graph; ``is_backward`` among its keywords. 2.11, 2.13."""
    from torch._inductor.compile_fx import compile_fx_inner as inductor_compile_fx_inner

    return inductor_compile_fx_inner(*args, **kwargs)


def inductor_config() -> Any:
    """Inductor's configuration module: its keys are what the option ``inductor`` may name."""
    from torch._inductor import config

    return config


def uses_cuda_graphs(patches: Mapping[str, Any]) -> bool:
    """Whether Inductor, with its settings patched so, records CUDA graphs.
    ``config.triton.cudagraphs``: 2.11, 2.13, 2.14."""
    return bool(patches.get("triton.cudagraphs", inductor_config().triton.cudagraphs))


def inductor_config_keys() -> frozenset[str]:
    """Names that ``inductor_config.patch`` accepts. 2.11, 2.13."""
    return frozenset(inductor_config().get_config_copy())


def compiled_autograd_enabled() -> bool:
    """Compiled autograd would trace through our backward and drop what we put there."""
    from torch._dynamo import compiled_autograd, config

    if config.compiled_autograd:
        return True
    return bool(
        compiled_autograd.compiled_autograd_enabled
        or getattr(compiled_autograd, "in_compiled_autograd_region", False)
    )


def suppress_errors_enabled() -> bool:
    """Dynamo would turn any error of ours, ``BudgetError`` too, into an eager run."""
    from torch._dynamo import config

    return bool(config.suppress_errors)


@contextlib.contextmanager
def quiet_profiler() -> Iterator[None]:
    """Kineto's own log lines off, unless the user set their level. 2.13 prints two per run."""
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "6"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def profiler_is_active() -> bool:
    """Kineto records for one profiler at a time. 2.11, 2.13."""
    return bool(torch.autograd._profiler_enabled())


@contextlib.contextmanager
def without_tracing() -> Iterator[None]:
    """Real tensors for a while, inside a compilation that traces with fake ones. 2.11, 2.13."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily(), torch.utils._python_dispatch._disable_current_modes():
        yield


def activation_budget() -> float:
    """Torch's own budget, a fraction of activation bytes; 1 is off. 2.11, 2.13."""
    return float(functorch_config.activation_memory_budget)


def may_overwrite_saved() -> bool:
    """Whether a backward may use the memory of saved tensors again (``donated_buffer``).
    2.11, 2.13."""
    return bool(functorch_config.donated_buffer)


def take_donated_positions() -> tuple[int, ...]:
    """Positions among the arguments of the backward that was just compiled of saved tensors whose
    memory it uses again. The caller sees to it that a retained graph keeps them; torch, told of
    none, then does not refuse to run it. ``fw_metadata.bw_donated_idxs``: 2.11, 2.13."""
    from torch._guards import TracingContext

    tracing = TracingContext.try_get()
    donated = getattr(getattr(tracing, "fw_metadata", None), "bw_donated_idxs", None)
    if not donated:
        return ()
    positions = tuple(donated)
    donated.clear()  # in place: torch has the list in several places
    return positions


def is_part_of_call(gm: fx.GraphModule) -> bool:
    """Whether the graph that Dynamo has handed over is one of several of a call, for all that is
    known while it is compiled: it ends at a graph break, or code of a broken frame around it runs
    in eager between ``torch.compile``'s entry and the frame that is compiled.
    ``compile_subgraph_reason``, ``eval_frame.compile_wrapper``: 2.11, 2.13."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    if getattr(reason, "graph_break", False):
        return True
    frame: FrameType | None = sys._getframe()
    is_around = False
    while frame is not None:
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if module == "torch._dynamo.eval_frame" and name == "compile_wrapper":
            return is_around
        if module == "torch._dynamo.convert_frame":
            is_around = False  # what came before is the compiler itself
        elif not module.startswith("torch._dynamo") and module != "torch.nn.modules.module":
            is_around = True
        frame = frame.f_back
    return False


def current_frame_code() -> Any | None:
    """The code object that Dynamo is compiling now, None outside Dynamo. 2.11, 2.13."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        return InstructionTranslator.current_tx().f_code
    except AttributeError:
        return None


def current_compile_id() -> tuple[str, int, int] | None:
    """(text, compilations of this frame so far, Dynamo's limit on them), None outside Dynamo."""
    from torch._dynamo import config
    from torch._guards import CompileContext

    compile_id = CompileContext.current_compile_id()
    if compile_id is None or compile_id.frame_compile_id is None:
        return None
    return str(compile_id), int(compile_id.frame_compile_id), int(config.recompile_limit)


def is_tracing() -> bool:
    """Whether torch writes its structured trace (``TORCH_TRACE``). ``trace_log`` loses its handler
    with the first thing that is traced where nobody asked for it. 2.11, 2.13."""
    from torch._logging._internal import trace_log

    return bool(trace_log.handlers)


def trace_artifact(name: str, encoding: str, payload: Callable[[], Any]) -> None:
    """Add a file to the structured trace, under the id of the compilation that is under way.

    Args:
        name: of the file.
        encoding: "string", or "json" for plain data.
        payload: called if there is a trace.

    ``torch._logging.trace_structured``: 2.11, 2.13.
    """
    torch._logging.trace_structured(
        "artifact", metadata_fn=lambda: {"name": name, "encoding": encoding}, payload_fn=payload
    )


def readable(gm: fx.GraphModule) -> str:
    """A graph as torch's own traces print it: with dtypes, sizes, strides and devices, and the
    source lines of its nodes. ``GraphModule.print_readable``: 2.11, 2.13."""
    return gm.print_readable(print_output=False, include_stride=True, include_device=True)


def is_symbolic(value: Any) -> bool:
    return isinstance(value, SymTypes)


def is_of_streams(node: fx.Node) -> bool:
    """Whether Dynamo traced it from a CUDA stream or an event: operators of the namespace ``streams``,
    defined in ``torch._dynamo.variables.streams``. 2.11, 2.13, 2.15. AOTAutograd wraps them into
    ``control_deps``. 2.15."""
    name = str(node.target)
    return node.op == "call_function" and (name.startswith("streams.") or name == "control_deps")


def default_op_types() -> Any:
    """Which operators Inductor fuses, which are views, random, or heavy. 2.11, 2.13."""
    return partitioners.get_default_op_list()


def prepare_joint_graph(joint: fx.GraphModule, num_forward_outputs: int) -> fx.GraphModule:
    """What torch's own partitioner does before it decides: dead code, common subexpressions,
    the tags of checkpoint regions, and marks on what must be saved (collectives, operators
    with effects, sources of mutations). 2.11, 2.13, 2.14.
    """
    joint.graph.eliminate_dead_code()
    joint.recompile()
    if functorch_config.cse:
        joint.graph = _without_duplicates(joint, num_forward_outputs)
    if partitioners.has_recomputable_ops(joint):
        joint = partitioners.cleanup_recompute_tags(joint, is_default_partition=False)
    if not functorch_config.unsafe_allow_optimization_of_collectives:
        partitioners.force_save_collectives(joint)
    partitioners.force_save_effectful_ops(joint)
    partitioners.force_save_bw_mutation_src(joint)
    return joint


def _without_duplicates(joint: fx.GraphModule, num_forward_outputs: int) -> fx.Graph:
    """From 2.14 on torch keeps what the forward alone needs apart from an equal value that the
    backward needs; with one value for both the default plan would be another than torch's.
    ``fx_graph_cse``: 2.11, 2.13; its ``extra_node_key``: 2.14."""
    from torch._functorch.compile_utils import fx_graph_cse

    merged: Callable[..., fx.Graph] = fx_graph_cse
    if "extra_node_key" not in inspect.signature(merged).parameters:
        return merged(joint.graph)
    _, outputs = forward_backward_outputs(joint, num_forward_outputs)
    needed: set[fx.Node] = set()
    waiting = [output for output in outputs if isinstance(output, fx.Node)]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    return merged(joint.graph, extra_node_key=lambda node: node in needed)


def budget_of_region(joint: fx.GraphModule) -> float | None:
    """What ``torch.autograd.graph.region_activation_memory_budget`` (2.14), or the mark before it,
    asks of torch's own partitioner. ``node.meta["memory_budget"]``: 2.11, 2.13;
    ``_get_memory_budget_annotation``: 2.14."""
    asked_of = getattr(partitioners, "_get_memory_budget_annotation", lambda node: None)
    for node in joint.graph.nodes:
        budget = asked_of(node)
        if budget is None:
            budget = node.meta.get("memory_budget")
        if isinstance(budget, float):
            return budget
    return None


def forget_checkpoint_regions(joint: fx.GraphModule) -> int:
    """Take the tags of ``torch.utils.checkpoint`` off a joint graph; how many there were. What a
    policy says must be saved stays. ``must_recompute``: 2.11, 2.13."""
    tagged = [node for node in joint.graph.nodes if partitioners.must_recompute(node)]
    for node in tagged:
        del node.meta["recompute"]
        node.meta.pop("ac_graph_id", None)
    return len(tagged)


def must_be_saved(node: fx.Node) -> None:
    """Tag ``node`` as torch's partitioner knows it: not to be computed again. 2.11, 2.13."""
    from torch.utils.checkpoint import CheckpointPolicy

    node.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def spell_out_scaled_sums(graph: fx.Graph) -> None:
    """``add(x, mm, alpha=a)`` becomes ``add(x, mul(mm, a))``: Inductor's pattern for ``addmm`` takes
    the sum and forgets its factor (2.11 and 2.13), as in a moving average's
    ``average.mul_(0.9).add_(a @ b, alpha=0.1)``."""
    aten = torch.ops.aten
    products = set(graph.find_nodes(op="call_function", target=aten.mm.default))
    for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        factor = node.kwargs.get("alpha", 1)
        if factor == 1 or products.isdisjoint(node.all_input_nodes):
            continue
        base, added = node.args
        assert isinstance(added, fx.Node)  # a number has no factor of its own
        with graph.inserting_before(node):
            scaled = graph.call_function(aten.mul.Tensor, (added, factor))
        scaled.meta = dict(added.meta)
        node.args, node.kwargs = (base, scaled), {}


def updated_inputs(joint: fx.GraphModule, num_forward_outputs: int) -> list[fx.Node]:
    """Inputs into which AOTAutograd's runtime copies a result once the forward has returned: those
    that the forward updates and that need a gradient. ``InputMutationAOTOutput``: 2.11, 2.13."""
    from torch.utils import _pytree as pytree

    (output,) = joint.graph.find_nodes(op="output")
    described = pytree.arg_tree_leaves(output.meta.get("desc") or ())[:num_forward_outputs]
    updated = [d.mutated_input for d in described if hasattr(d, "mutated_input")]
    placeholders = joint.graph.find_nodes(op="placeholder")
    return [p for p in placeholders if p.meta.get("desc") in updated]


def classify_nodes(joint: fx.GraphModule, static_inputs: list[int], num_outputs: int) -> Any:
    """Torch's ``NodeInfo``: required in the forward, in the backward, or unclaimed. 2.11, 2.13."""
    return partitioners.classify_nodes(joint, static_inputs, num_outputs)


def forward_backward_outputs(
    joint: fx.GraphModule, num_forward_outputs: int
) -> tuple[list[Any], list[Any]]:
    outputs = partitioners._extract_fwd_bwd_outputs(joint, num_fwd_outputs=num_forward_outputs)
    return outputs[0], outputs[1]


def set_backward_distances(joint: fx.GraphModule, roles: Any) -> None:
    """The attribute that torch's minimum cut weighs values with: steps to the backward."""
    for node in reversed(joint.graph.nodes):
        if node.op == "output":
            node.dist_from_bw = int(1e9)
        elif not roles.is_required_fw(node):
            node.dist_from_bw = 0
        else:
            distances = [user.dist_from_bw + 1 for user in node.users]
            node.dist_from_bw = min([int(1e9), *distances])


def default_saved_values(joint: fx.GraphModule, roles: Any, memory_budget: float) -> list[fx.Node]:
    """What torch's own partitioner would save at a fraction of activation bytes (1: default)."""
    set_backward_distances(joint, roles)
    return list(
        partitioners.choose_saved_values_set(joint.graph, roles, memory_budget=memory_budget)
    )


def default_partition(joint: fx.GraphModule, inputs: Any, **kwargs: Any) -> Any:
    """Torch's partition of graphs without any backward node, which a cut cannot handle."""
    return partitioners.default_partition(joint, inputs, **kwargs)


def recompute_tag(node: fx.Node) -> str | None:
    """ "save" or "recompute" where the user or torch decided; None where we may. 2.11, 2.13."""
    from torch.utils.checkpoint import CheckpointPolicy

    tag = node.meta.get("recompute")
    if tag == CheckpointPolicy.MUST_SAVE:
        return "save"
    return "recompute" if partitioners.must_recompute(node) else None


def is_backward_state(node: fx.Node) -> bool:
    return bool(partitioners._is_backward_state(node))


def is_opaque(node: fx.Node) -> bool:
    """Script objects and the like; 2.13 only, older versions have no such nodes."""
    check = getattr(partitioners, "is_opaque_node", None)
    return bool(check(node)) if check is not None else False


def is_rng_save(node: fx.Node) -> bool:
    """``run_and_save_rng_state``: a random operator that also returns the generator's state."""
    return "run_and_save_rng_state" in str(node.target)


def is_rng_replay(node: fx.Node) -> bool:
    """``run_with_rng_state``: a random operator run again from a state."""
    return "run_with_rng_state" in str(node.target)


def replays_random_state(joint: fx.GraphModule, draws: Callable[[fx.Node], bool]) -> bool:
    """Whether a checkpoint region draws random numbers: torch then saves the generator's state
    in the forward and draws again from it in the backward, one to one.

    Args:
        draws: whether a node does. Torch goes by tags, and attention has the tag even where it
            drops nothing.

    2.11, 2.13.
    """
    with _replaying_no_more_than(joint, draws):
        return bool(partitioners.has_recomputable_rng_ops(joint))


@contextlib.contextmanager
def _replaying_no_more_than(
    joint: fx.GraphModule, draws: Callable[[fx.Node], bool]
) -> Iterator[None]:
    """Inside, torch replays from a saved state what draws random numbers, and nothing else. To replay
    attention without dropout would gain nothing, and tie the backward to torch's order.
    ``must_recompute``, which looks at a node's tag: 2.11, 2.13."""
    hidden = {
        node: node.meta["recompute"]
        for node in joint.graph.nodes
        if partitioners.must_recompute(node) and not draws(node)
    }
    for node in hidden:
        del node.meta["recompute"]
    try:
        yield
    finally:
        for node, tag in hidden.items():
            node.meta["recompute"] = tag


def has_side_effect(node: fx.Node) -> bool:
    """Whether an operation does more than compute its result; drawing random numbers does not
    count. 2.11, 2.13."""
    if node.op != "call_function":
        return False
    if any(part in str(node.target) for part in ("with_effects", "wrapper_mutation")):
        return True
    return bool(node.is_impure(impure_random=False))


def finish_modules(
    joint: fx.GraphModule,
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    num_scalars: int,
    draws: Callable[[fx.Node], bool],
    reorder: Callable[[fx.GraphModule], fx.GraphModule] | None = None,
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """What torch's partitioner does after it split: random state shared by the two copies of
    operators in checkpoint regions, recomputation as late as its readers allow (or the order
    that ``reorder`` gives the backward), early ``getitem``, random state of nested graphs.
    2.11, 2.13.
    """
    from torch._functorch.compile_utils import raise_getitems

    with _replaying_no_more_than(joint, draws):
        if partitioners.has_recomputable_rng_ops(joint):
            forward, backward = partitioners.functionalize_rng_ops(
                joint, forward, backward, num_scalars
            )
    backward = (reorder or partitioners.reordering_to_mimic_autograd_engine)(backward)
    forward, backward = raise_getitems(forward), raise_getitems(backward)
    return (
        partitioners.thread_graphsafe_rng_from_hops(forward, is_backward=False),
        partitioners.thread_graphsafe_rng_from_hops(backward, is_backward=True),
    )


@contextlib.contextmanager
def _replaced(owner: type, name: str, method: Any) -> Iterator[None]:
    """A method of torch's is another one inside: where torch has no hook."""
    original = vars(owner)[name]  # as it stands there: a class's or a static method, too
    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def fusing_in_order() -> Iterator[None]:
    """Inductor fuses nothing that moves what a plan has put in order, in any graph compiled inside.

    Two kernels that merely read the same are not fused: one of the two would move to where the
    other stands, and with it every value that one of them makes or keeps alive; recomputation
    planned for late would run early. Nor is a reduction with a reader that waits for something
    made later, as a sum of two passes' gradients does: what it reduces, which is larger than its
    result, would be kept until then. Other fusions of a producer with its reader, and of a row
    with a column reduction of the same values (GPU), stay. The caller's cache key must tell this
    policy.

    What else Inductor chooses stays with whom it asked before: a user's ``inductor_choices_class``, or
    what ``register_inductor_choices`` (2.15) has put together. That composes contributors by the first
    that overrides a method, for the whole process; here both must agree, for one compilation.
    ``InductorChoices``, names of the scheduler: 2.11, 2.13, 2.15.
    """
    from torch._inductor.scheduler import MixOrderReduction
    from torch._inductor.virtualized import V

    class InOrder:
        def __init__(self, others: Any) -> None:
            self._others = others

        def __getattr__(self, name: str) -> Any:
            return getattr(self._others, name)

        def can_fuse_horizontal(self, scheduler: Any, node1: Any, node2: Any, score: int) -> bool:
            is_allowed = MixOrderReduction.can_fuse(node1, node2)
            return is_allowed and self._others.can_fuse_horizontal(scheduler, node1, node2, score)

        def can_fuse_vertical(self, scheduler: Any, node1: Any, node2: Any, score: int) -> bool:
            waits = node1.is_reduction() and _waits_beyond(scheduler, node1, node2)
            return not waits and self._others.can_fuse_vertical(scheduler, node1, node2, score)

    with V.set_choices_handler(InOrder(V.choices)):
        yield


@contextlib.contextmanager
def turning_where_used() -> Iterator[None]:
    """In graphs compiled inside, what a graph is given is brought into a convolution's layout by the
    convolution, for itself.

    Inductor else makes the copy in place of the input, and what is saved for the backward is the copy:
    of all weights that convolve, say. The caller's cache key must tell this.
    ``GraphLowering.find_nodes_prefer_channels_last``: 2.11, 2.13, 2.14.
    """
    from torch._inductor.graph import GraphLowering

    original = GraphLowering.find_nodes_prefer_channels_last

    def of_computed(self: Any) -> Any:
        found = original(self)
        for node in self.module.graph.find_nodes(op="placeholder"):
            found.discard(node)
        return found

    with _replaced(GraphLowering, "find_nodes_prefer_channels_last", of_computed):
        yield


@contextlib.contextmanager
def freeing_at_once() -> Iterator[None]:
    """In graphs compiled inside, a buffer is freed behind its last reader, as a plan counts it.

    Inductor else keeps one of the size that a later kernel wants, where by its own estimate the peak
    is not higher for it. Where the next kernel wants it, that stays. The caller's cache key must tell
    this. ``AllocateLine.should_reuse_buffer``: 2.11, 2.13, 2.14.
    """
    from torch._inductor.codegen.wrapper import AllocateLine

    def should_reuse_buffer(self: Any, free_line: Any, size: int) -> bool:
        is_next = free_line.scheduler_node_index + 1 == self.scheduler_node_index
        return bool(self.comm_buffer or is_next)

    with _replaced(AllocateLine, "should_reuse_buffer", should_reuse_buffer):
        yield


def _waits_beyond(scheduler: Any, producer: Any, reader: Any) -> bool:
    """Whether a reader of ``producer`` waits for something that is made behind it, too."""
    for dependency in reader.unmet_dependencies:
        buffer = scheduler.name_to_buf.get(dependency.name)
        if buffer is None or buffer.defining_op is None:  # an input of the graph
            continue
        made_by = scheduler.name_to_fused_node[buffer.defining_op.get_name()]
        if made_by is not producer and made_by.min_order > producer.max_order:
            return True
    return False


def _key_of_pass(theirs: Any) -> Any:
    """A user's pass as caches know it. What one without a key does is not known, so its code is
    not to be found again; torch by itself keeps such passes from its cache."""
    key = theirs.uuid() if hasattr(theirs, "uuid") else None
    return os.urandom(16).hex() if key is None else key


@contextlib.contextmanager
def rewriting_last(rewrite: Callable[[fx.Graph], Any], key: str) -> Iterator[None]:
    """Graphs compiled inside are handed to ``rewrite`` behind Inductor's own rewriting, which may
    move readers, and behind a pass that the user set there. ``key`` tells caches what it does.
    ``post_grad_custom_post_pass``: 2.11 (one pass), 2.13 (one or several)."""
    from torch._inductor import config
    from torch._inductor.custom_graph_pass import CustomGraphPass

    theirs = config.post_grad_custom_post_pass
    earlier: list[Any] = (
        list(theirs) if isinstance(theirs, (list, tuple)) else [theirs] if theirs else []
    )

    class Last(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            for each in earlier:
                each(graph)
            rewrite(graph)

        def uuid(self) -> Any:
            return (key, *map(_key_of_pass, earlier))

    with config.patch(post_grad_custom_post_pass=Last()):
        yield


def lower_as_writer(op: Any, written: int) -> None:
    """Have Inductor call ``op``, which writes into the tensors of its argument at ``written``,
    behind all that reads them.

    Inductor computes a pointwise value where it is used, which may be behind the writer. It knows
    and computes such values when it meets a writer, but by itself only after it has given the
    writer its place (``FallbackKernel``: 2.11, 2.13). ``mark_buffer_mutated``: 2.11, 2.13.
    """
    from torch._inductor.lowering import fallback_handler, register_lowering
    from torch._inductor.virtualized import V

    call = fallback_handler(op, add_to_fallback_set=False)

    @register_lowering(op, type_promotion_kind=None)
    def lowered(*args: Any) -> Any:
        for tensor in args[written]:
            V.graph.mark_buffer_mutated(tensor.get_name())
        return call(*args)


class GenerationStopped(BaseException):
    """Unwinds Inductor after it generated code and before that code is compiled.

    A BaseException because Inductor wraps every Exception in one of its own.
    """


@contextlib.contextmanager
def watching_generated_code(
    check: Callable[[str, dict[str, str]], None], stub: bool = False
) -> Iterator[None]:
    """Call ``check(source, origins)`` with each wrapper's text before its kernels are compiled.

    ``origins`` names for each buffer the node that it comes from. ``check`` may raise
    ``GenerationStopped``. With ``stub`` nothing is compiled: the module is one that must not be called.
    A hit in the FX graph cache calls nothing.
    ``GraphLowering._compile_to_module_lines``: 2.11, 2.13.
    """
    from torch._inductor.graph import GraphLowering

    original = GraphLowering._compile_to_module_lines

    def checked(self: Any, wrapper_code: Any) -> Any:
        check(wrapper_code.value, _origins(self))
        return _StubModule() if stub else original(self, wrapper_code)

    with _replaced(GraphLowering, "_compile_to_module_lines", checked):
        yield


class LaterModules:
    """Modules of generated code that are loaded, and their kernels compiled, when they are asked for.

    A module compiles its kernels where it is imported. A plan that is given up once both wrappers
    have been read needs none of its forward's.
    """

    def __init__(self) -> None:
        self._waiting: list[_LaterModule] = []

    @contextlib.contextmanager
    def put_off(self) -> Iterator[None]:
        """Graphs compiled inside, or found in the FX graph cache, get modules of this kind. On the CPU
        only: for a GPU Inductor takes kernels out of a module at once, to bundle or record them.
        ``PyCodeCache.load_by_key_path``, given attributes for the module of a graph: 2.13."""
        from torch._inductor.codecache import PyCodeCache

        load_at_once = PyCodeCache.load_by_key_path

        def later(key: str, path: str, *args: Any, **kwargs: Any) -> Any:
            load = functools.partial(load_at_once, key, path, *args, **kwargs)
            if len(args) < 2 and "attrs" not in kwargs:  # of something else
                return load()
            module = _LaterModule(path, load)
            self._waiting.append(module)
            return module

        with _replaced(PyCodeCache, "load_by_key_path", later):
            yield

    def load(self, compiled: Any) -> None:
        """Load what waits; the compiled graph then calls it without a detour. ``current_callable``,
        ``compiled_fn_runner``, ``recursively_apply_fns``: 2.13."""
        for module in self._waiting:
            loaded = module.loaded
            if getattr(compiled, "current_callable", None) == module.call:
                compiled.current_callable = loaded.call
                runner = getattr(loaded, "runner", None)
                compiled.compiled_fn_runner = runner
                compiled.recursively_apply_fns = getattr(runner, "recursively_apply_fns", None)
        self._waiting.clear()


class _LaterModule:
    """Stands for a module that is not loaded yet; its first call would load it."""

    def __init__(self, path: str, load: Callable[[], Any]) -> None:
        self.__file__ = path
        self._load = load

    @functools.cached_property
    def loaded(self) -> Any:
        return self._load()

    def call(self, args: list[Any]) -> Any:
        return self.loaded.call(args)

    def __getattr__(self, name: str) -> Any:
        if name in (
            "runner",
            "recursively_apply_fns",
        ):  # asked for of every module; not all have them
            raise AttributeError(name)
        return getattr(self.loaded, name)


def _origins_of(buffer: Any) -> Any:
    """Of a buffer; what an operator writes into has none."""
    return buffer.get_origins() if hasattr(buffer, "get_origins") else ()


def _origins(lowering: Any) -> dict[str, str]:
    """For each buffer the name of the last node that went into it. 2.11, 2.13."""
    found = {}
    for name, buffer in lowering.name_to_buffer.items():
        node = buffer.get_origin_node() or next(reversed(list(_origins_of(buffer))), None)
        if node is not None:
            found[name] = node.name
    return found


class _StubModule:
    """Stands where a compiled module would, in an attempt whose result nobody calls."""

    __file__ = __file__
    key = ""

    @staticmethod
    def call(args: list[Any]) -> list[Any]:
        raise AssertionError("a dry compilation was called")


def copy_of_captured(gm: fx.GraphModule) -> fx.GraphModule:
    """Dynamo's graph once more, to be compiled: nodes are copied, tensors shared.

    ``copy.deepcopy`` would copy constants, and lose what Dynamo tells AOTAutograd by attributes
    of the module and of its placeholders: which inputs are parameters, and where each comes from.
    Torch's own partitioner would then save other values. ``_param_name_to_source``,
    ``_dynamo_source``: 2.11, 2.13.
    """
    copied = fx.GraphModule(gm, copy.deepcopy(gm.graph), class_name=type(gm).__name__)
    for name, body in gm.named_children():  # of checkpoint regions and the like
        if isinstance(body, fx.GraphModule) and hasattr(copied, name):
            setattr(copied, name, copy_of_captured(body))
    copied.meta = dict(gm.meta)
    for name, value in vars(gm).items():
        if name not in vars(copied):
            setattr(copied, name, value)
    placeholders = (module.graph.find_nodes(op="placeholder") for module in (gm, copied))
    for original, placeholder in zip(*placeholders, strict=True):
        if hasattr(original, "_dynamo_source"):
            placeholder._dynamo_source = original._dynamo_source
    return copied


class CompilationContext:
    """What surrounds a backend's call in Dynamo, kept to compile the same graph once more.

    Fake tensors, symbolic sizes and their guards live in it. ``TracingContext``,
    ``CompileContext``, ``ShapeEnv.frozen``, ``ShapeEnv.guards``, ``ShapeEnv.replacements``,
    ``TensorifyState.force_specializations``: 2.11, 2.13, 2.14.
    """

    def __init__(self) -> None:
        from torch._dynamo.symbolic_convert import TensorifyState
        from torch._guards import CompileContext, TracingContext

        self._tracing, self._compile = TracingContext.try_get(), CompileContext.try_get()
        self._constant_floats = frozenset(TensorifyState.force_specializations)
        # Autocast decides what is traced; Dynamo guards on it, but a report is asked for anywhere.
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in ("cpu", "cuda")
        ]

    @contextlib.contextmanager
    def _modes(self) -> Iterator[None]:
        """Gradients and autocast as they were in Dynamo's call."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self._floats_known())
            for kind, dtype, enabled in self._autocast:
                if enabled != torch.is_autocast_enabled(kind) or enabled:
                    stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield

    @contextlib.contextmanager
    def _floats_known(self) -> Iterator[None]:
        """Which of Python's floats have become constants. AOTAutograd asks Dynamo to begin again
        with each that it does not know for one, and Dynamo forgets them when it is done."""
        from torch._dynamo.symbolic_convert import TensorifyState

        before = set(TensorifyState.force_specializations)
        TensorifyState.force_specializations |= self._constant_floats
        try:
            yield
        finally:
            TensorifyState.force_specializations &= before

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """What torch logs and traces inside carries the id of Dynamo's compilation.
        ``compile_context``: 2.11, 2.13."""
        from torch._guards import compile_context

        with compile_context(self._compile):
            yield

    def fake_inputs(self, example_inputs: Sequence[Any]) -> list[Any] | None:
        """The inputs as AOTAutograd will trace them: fake, with the symbols that Dynamo gave them.
        None where they cannot be kept (outside Dynamo; tensors made of tensors).

        ``TracingContext.fake_mode``, ``tensor_to_context``, ``FakeTensorMode.from_tensor`` (which
        gives the same fake tensor for the same real one): 2.11, 2.13.
        """
        from torch.utils._python_dispatch import is_traceable_wrapper_subclass

        if self._tracing is None or self._tracing.fake_mode is None:
            return None
        if any(is_traceable_wrapper_subclass(value) for value in example_inputs):
            return None
        mode, contexts = self._tracing.fake_mode, self._tracing.tensor_to_context

        def convert(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or is_fake(value):
                return value
            context = contexts.get(value)
            source = None if context is None else context.tensor_source
            return mode.from_tensor(
                value, static_shapes=False, symbolic_context=context, source=source, trace=False
            )

        with mode:
            return [convert(value) for value in example_inputs]

    @contextlib.contextmanager
    def entered(self) -> Iterator[list[Any]]:
        """Compile inside. Dynamo has installed its guards and does not look for new ones: on
        exit, the yielded list has the conditions on symbols that have come up meanwhile."""
        from torch._guards import tracing

        assert self._tracing is not None
        conditions: list[Any] = []
        env = getattr(self._tracing.fake_mode, "shape_env", None)
        if env is None:
            with self._modes(), self.named(), tracing(self._tracing):
                yield conditions
            return
        frozen, num_guards, replaced = env.frozen, len(env.guards), dict(env.replacements)
        env.frozen = False  # frozen, it would drop new guards with no more than a log line
        try:
            with self._modes(), self.named(), tracing(self._tracing):
                yield conditions
        finally:
            env.frozen = frozen
            conditions.extend(guard.expr for guard in env.guards[num_guards:])
            conditions.extend(
                sympy.Eq(symbol, found)
                for symbol, found in env.replacements.items()
                if replaced.get(symbol) != found
            )


def is_of_compiled_graph(node: Any) -> bool:
    """Whether an autograd node is a compiled graph's: AOTAutograd names its class. 2.11, 2.13."""
    return "CompiledFunction" in type(node).__name__


@functools.cache
def _names_of_saved(kind: type[Any]) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def saved_by(node: Any) -> list[torch.Tensor]:
    """Tensors that an autograd node has saved for its backward. ``unpack`` is not called, which
    would run users' hooks (checkpointing computes again there): what these put in a tensor's place
    counts if it is one. ``_raw_saved_*``, ``SavedTensor.data``: 2.11, 2.13, 2.14."""
    found: list[Any] = []
    for name in _names_of_saved(type(node)):  # type: ignore[arg-type]
        try:
            raw = getattr(node, name)
        except RuntimeError:  # the backward has run and freed them
            continue
        found += [each.data for each in (raw if isinstance(raw, (tuple, list)) else (raw,))]
    found += getattr(node, "__dict__", {}).values()  # what a custom function keeps on its context
    return [value for value in found if isinstance(value, torch.Tensor)]


def backward_node(tensor: torch.Tensor) -> Any | None:
    """The autograd node of the compiled graph that made ``tensor``: it lives until nobody can
    call the backward any more. None where there is none. 2.11, 2.13."""
    node = tensor.grad_fn
    for _ in range(4):  # views of outputs have nodes of their own in front
        if node is None or is_of_compiled_graph(node):
            return node
        node = node.next_functions[0][0] if node.next_functions else None
    return None


class StorageReferences:
    """Refers to storages without keeping their memory; while it does, no other storage is where
    one of these was. ``UntypedStorage._weak_ref``, which returns what ``_cdata`` is, and
    ``_free_weak_ref``: 2.11, 2.13."""

    __slots__ = ("_addresses",)

    def __init__(self) -> None:
        self._addresses: set[int] = set()

    def add(self, storage: torch.UntypedStorage) -> bool:
        """Whether it was not referred to yet."""
        address = storage._cdata
        if address in self._addresses:
            return False
        self._addresses.add(address)
        storage._weak_ref()
        return True

    def addresses(self) -> frozenset[int]:
        """By which storages are told apart."""
        return frozenset(self._addresses)

    def __del__(self, free: Callable[[int], None] = torch.UntypedStorage._free_weak_ref) -> None:
        for address in self._addresses:
            free(address)


def size_expression(value: Any) -> Any:
    """An int, or the sympy expression behind a symbolic size. 2.11, 2.13."""
    return value.node.expr if isinstance(value, SymTypes) else int(value)


def extract_modules(
    joint: fx.GraphModule,
    saved_values: list[fx.Node],
    saved_sym_nodes: list[fx.Node],
    saved_opaque_nodes: list[fx.Node],
    num_fwd_outputs: int,
    static_inputs: Any,
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """``_extract_fwd_bwd_modules``; opaque nodes have a parameter of their own from 2.12 on."""
    import inspect

    extract = partitioners._extract_fwd_bwd_modules
    kwargs: dict[str, Any] = {
        "saved_sym_nodes": saved_sym_nodes,
        "num_fwd_outputs": num_fwd_outputs,
        "static_lifetime_input_nodes": static_inputs,
    }
    if "saved_opaque_nodes" in inspect.signature(extract).parameters:
        kwargs["saved_opaque_nodes"] = saved_opaque_nodes
    elif saved_opaque_nodes:
        raise NotImplementedError("opaque objects cross to the backward from torch 2.12 on only")
    return extract(joint, saved_values, **kwargs)


def digest(*parts: bytes | str) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part.encode() if isinstance(part, str) else part)
        hasher.update(b"\0")
    return hasher.hexdigest()


def fake_tensor_mode(**settings: Any) -> Any:
    """A context in which tensors have shapes, dtypes and devices, but no memory. 2.11, 2.13."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(**settings)


@contextlib.contextmanager
def without_memory_of_sizes() -> Iterator[None]:
    """What Dynamo compiles inside leaves no trace in its memory of sizes, by which it makes those that
    varied symbols from then on. ``pgo.get_code_state``: 2.11, 2.13."""
    from torch._dynamo import pgo

    before = copy.deepcopy(dict(pgo.get_code_state()))
    try:
        yield
    finally:
        state = pgo.get_code_state()
        state.clear()
        state.update(before)


def new_shape_environment() -> Any:
    """Where sizes that are symbols get their symbols. 2.11, 2.13."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return ShapeEnv()


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` has no memory of its own. 2.11, 2.13."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def fake_mode_of(tensor: torch.Tensor) -> Any:
    """The context in which a traced value was made. 2.11, 2.13."""
    return tensor.fake_mode  # type: ignore[attr-defined]


def is_static_input(tensor: torch.Tensor) -> bool:
    """Dynamo's mark on tensors whose memory outlives a call: parameters, buffers. 2.11, 2.13."""
    return bool(getattr(tensor, "_dynamo_static_input_type", None))


def extern_kernels() -> Any:
    """The namespace of kernels that generated code calls by name. 2.11, 2.13."""
    from torch._inductor.select_algorithm import extern_kernels as namespace

    return namespace


def original_callable(compiled: Any) -> Any:
    """What ``torch.compile`` was given, of what it returned for a function. 2.11, 2.13."""
    return getattr(compiled, "_torchdynamo_orig_callable", compiled)


def compiled_graphs() -> int:
    """Graphs that Dynamo has compiled in this process. 2.11, 2.13."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def budget_solver() -> str:
    """Which knapsack solver torch's own budget uses; "dp" by default. 2.11, 2.13."""
    return str(functorch_config.activation_memory_budget_solver)


__all__: Sequence[str] = ()


def load_cpp(source: str) -> Any:
    """A library for this machine's CPU, built by Inductor's compiler with its flags and kept in
    its cache. ``CppCodeCache``: 2.11 (always for the whole instruction set), 2.13 (if asked)."""
    from torch._inductor.codecache import CppCodeCache

    asks = "needs_vec_isa" in inspect.signature(CppCodeCache.load_async).parameters
    # Inductor writes vectors out and leaves loops as they are. A root that sets errno cannot be
    # taken of several numbers at once.
    flags = ("-ftree-loop-vectorize", "-fno-math-errno")
    return CppCodeCache.load(source, extra_flags=flags, **({"needs_vec_isa": True} if asks else {}))


def is_wrapper_tensor(tensor: torch.Tensor) -> bool:
    """Whether a tensor is made of other tensors (DTensor and the like). 2.11, 2.13."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return bool(is_traceable_wrapper_subclass(tensor))


def blas_workspace_bytes() -> int | None:
    """What torch takes for cuBLAS and cuBLASLt in each thread that multiplies on the current CUDA
    device, and keeps; where workspaces do not stay, the most that it takes for one product. Torch's own
    answer, the user's settings (CUBLAS_WORKSPACE_CONFIG and others) among its reasons. None where it
    cannot be asked.

    No Python name leads to these two functions; the library exports them. Where both libraries share
    one workspace, as from 2.12 on, the second is counted too many: 1 MiB. 2.11, 2.14 (CUDA builds).
    """
    library = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cuda.so")
    try:
        loaded = ctypes.CDLL(library)
        sizes = [getattr(loaded, name) for name in _BLAS_WORKSPACE_SIZES]
    except (OSError, AttributeError):
        return None
    for size in sizes:
        size.restype = ctypes.c_size_t
    chosen_bytes, lt_bytes = (int(size()) for size in sizes)
    if not blas_workspaces_stay():
        return max(chosen_bytes, lt_bytes)
    return chosen_bytes + (lt_bytes if chosen_bytes else 0)


def blas_workspaces_stay() -> bool:
    """Whether torch keeps what it has given cuBLAS and cuBLASLt. From 2.15 on (pull request 194311) it
    takes a workspace for each product and gives it back behind it, unless the user asks for the cache.
    2.11, 2.14, 2.15 (CUDA builds)."""
    return _version() < (2, 15) or os.environ.get("TORCH_CUBLAS_WORKSPACE_CACHE") == "1"


_BLAS_WORKSPACE_SIZES = (
    "_ZN2at4cuda22getChosenWorkspaceSizeEv",
    "_ZN2at4cuda26getCUDABlasLtWorkspaceSizeEv",
)


def same_strided_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the strides that generated code counts on."""
    copied = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copied.copy_(tensor)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements fill its memory without gaps, in any order. 2.11, 2.13."""
    return bool(torch.ops.aten.is_non_overlapping_and_dense.default(tensor))


def incoming_gradients_stay() -> bool:
    """Whether what comes into a compiled backward is alive until it returns. Up to 2.11 AOTAutograd's
    runtime holds it; from 2.13 on the generated code lets it go. 2.11, 2.13, 2.14."""
    return _version() < (2, 13)  # 2.12 was not looked at: counted, to be safe


NEWEST_TESTED = (2, 15)


@functools.cache
def _version() -> tuple[int, int]:
    major, minor, *_ = torch.__version__.split(".")
    return int(major), int(minor)


def is_untested() -> bool:
    """Whether this torch is newer than all that the private names here were checked on."""
    return _version() > NEWEST_TESTED


def current_backward_node() -> Any:
    """The autograd node whose backward runs in this thread. 2.11, 2.13."""
    return torch._C._current_autograd_node()


def leaves_behind(edges: Mapping[int, int]) -> dict[int, torch.Tensor | None]:
    """The leaves whose gradients the backward that runs computes, by what ``edges`` calls the
    positions of its node's edges. 2.11, 2.13."""
    functions = current_backward_node().next_functions
    return {name: getattr(functions[edge][0], "variable", None) for name, edge in edges.items()}


def current_backward_task() -> int:
    """A number for the ``backward()`` that runs in this thread. 2.11, 2.13."""
    return int(torch._C._current_graph_task_id())


def keeps_graph() -> bool:
    """Whether the backward that runs may run again (``retain_graph``). 2.11, 2.13."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def will_accumulate(accumulation: Any) -> bool:
    """Whether the backward that runs is to put a gradient into a leaf's ``.grad``, given the
    leaf's ``AccumulateGrad``; it is not under ``autograd.grad``, which the engine says by an
    exception, nor where ``inputs=`` leaves the leaf out. 2.11, 2.13."""
    try:
        return bool(torch._C._will_engine_execute_node(accumulation))
    except RuntimeError:
        return False


def has_gradient_hooks(tensor: torch.Tensor) -> bool:
    """Whether somebody is to be told of a leaf's gradient. 2.11, 2.13."""
    return bool(tensor._backward_hooks or tensor._post_accumulate_grad_hooks)


def inside_data_parallel() -> bool:
    """Whether a forward of DistributedDataParallel is under way: its hooks lie where Python
    cannot see them. 2.11, 2.13."""
    if not torch.distributed.is_available():
        return False
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel._get_active_ddp_module() is not None


def active_process_group() -> Any | None:
    """The processes among which the DistributedDataParallel whose forward is under way sums
    gradients; None outside one. 2.11, 2.13."""
    if not torch.distributed.is_available():
        return None
    from torch.nn.parallel import DistributedDataParallel

    module = DistributedDataParallel._get_active_ddp_module()
    return None if module is None else module.process_group


def sum_over(group: Any, values: torch.Tensor) -> None:
    """Sum in place over the processes of a group; all of them must call it."""
    torch.distributed.all_reduce(values, group=group)


def parameter_name(placeholder: fx.Node) -> str:
    """A parameter's path in its module as Dynamo knows it, of an input of Dynamo's graph; the node's
    own name where it does not. ``Source.name``: a method in 2.11, a property in 2.13."""
    source = getattr(placeholder, "_dynamo_source", None)
    name = getattr(source, "name", "")
    text = name() if callable(name) else str(name)
    parts = re.findall(r"_(?:modules|parameters)\['([^']+)'\]", text)
    return ".".join(parts) or text or placeholder.name


def watch_optimizers_given(told: Callable[[torch.optim.Optimizer], None]) -> None:
    """Call ``told`` with every optimizer that has been given parameters, as each is when it is made,
    or a state, as by ``load_state_dict``, a copy, and unpickling. Torch has public hooks for neither
    (``register_optimizer_step_post_hook`` comes with the first step only). Both are methods of the
    base class, which subclasses extend and call. 2.11, 2.13."""
    from torch.optim import Optimizer

    def watched(original: Any) -> Any:
        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            told(self)
            return result

        return method

    Optimizer.add_param_group = watched(Optimizer.add_param_group)  # type: ignore[method-assign]
    Optimizer.__setstate__ = watched(Optimizer.__setstate__)  # type: ignore[method-assign]


def watch_loss_scaling(scaled: Callable[[], None]) -> None:
    """Call ``scaled`` whenever a GradScaler, of whatever instance, scales a loss: the factor is
    not to be seen in the gradients. ``GradScaler._enabled``: 2.11, 2.13."""
    from torch.amp import GradScaler

    original = GradScaler.scale
    if hasattr(original, "_watched"):
        return

    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        if self._enabled:
            scaled()
        return original(self, outputs)

    scale._watched = True  # type: ignore[attr-defined]
    GradScaler.scale = scale  # type: ignore[method-assign]


def watch_clipping(about_to_clip: Callable[[Sequence[Any] | None, bool], None]) -> None:
    """Call ``about_to_clip`` before torch clips gradients: with the parameters (norm), or with
    None where not one gradient was found (values); and whether anything can be clipped at all, as
    a limit of infinity only asks for the norm. ``clip_grad_norm_`` and ``clip_grad_value_``,
    under whatever name they were imported, look these helpers up in their module. 2.11, 2.13."""
    from torch.nn.utils import clip_grad

    by_norm, by_value = (
        clip_grad._clip_grads_with_norm_,
        clip_grad._group_tensors_by_device_and_dtype,
    )
    if hasattr(by_norm, "_watched"):
        return

    @functools.wraps(by_norm)
    def watched_norm(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        about_to_clip(parameters, float(max_norm) != math.inf)
        return by_norm(parameters, max_norm, *args, **kwargs)

    @functools.wraps(by_value)
    def watched_value(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(tensors):
            about_to_clip(None, True)
        return by_value(tensors, *args, **kwargs)

    watched_norm._watched = True  # type: ignore[attr-defined]
    clip_grad._clip_grads_with_norm_ = watched_norm
    clip_grad._group_tensors_by_device_and_dtype = watched_value  # type: ignore[assignment]


def counts_for_schedulers(step: Any) -> bool:
    """Whether ``step`` is what a learning-rate scheduler put into an optimizer, to see whether it
    steps first. ``_wrapped_by_lr_sched``: 2.11, 2.13."""
    return hasattr(step, "_wrapped_by_lr_sched")


def take_over_step(optimizer: torch.optim.Optimizer, is_scheduled: bool) -> None:
    """After an optimizer's class has changed: let its new ``step`` run torch's hooks, count for
    schedulers that wrapped the old one, and get unscaled gradients from a GradScaler, which hands
    its scale to optimizers that say they know it. ``_patch_step_function``, ``_opt_called``,
    ``_step_supports_amp_scaling``: 2.11, 2.13."""
    optimizer._patch_step_function()
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    if not is_scheduled:
        return
    reference = weakref.ref(optimizer)

    def step(*args: Any, **kwargs: Any) -> Any:
        alive = reference()
        assert alive is not None
        alive._opt_called = True  # type: ignore[attr-defined]
        return type(alive).step(alive, *args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = step  # type: ignore[method-assign]


def gathered_by_fully_shard(parameters: Sequence[Any]) -> bool:
    """Whether some of these are what FSDP2 gathers for the time of a module's forward or backward.
    They are plain parameters with no mark on them; ``FSDPParam._unsharded_param`` refers to each.
    2.11, 2.13."""
    module = sys.modules.get("torch.distributed.fsdp._fully_shard._fsdp_param")
    if module is None or not parameters:
        return False
    looked_for = {id(parameter) for parameter in parameters}
    shards = [o for o in gc.get_objects() if type(o) is module.FSDPParam]
    return any(id(getattr(shard, "_unsharded_param", None)) in looked_for for shard in shards)
