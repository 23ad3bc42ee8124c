"""Inductor: its entries, its settings, its fusions and lowerings, and the kernels that it calls."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx


def compile_fx(*args: Any, **kwargs: Any) -> Any:
    """Inductor's entry: AOTAutograd with Inductor behind it. 2.11, 2.13."""
    from torch._inductor.compile_fx import compile_fx as inductor_compile_fx

    return inductor_compile_fx(*args, **kwargs)


def compile_fx_inner(*args: Any, **kwargs: Any) -> Any:
    """Inductor's compilation of one graph; takes the keyword ``is_backward``. 2.11, 2.13."""
    from torch._inductor.compile_fx import compile_fx_inner as inductor_compile_fx_inner

    return inductor_compile_fx_inner(*args, **kwargs)


def inductor_config() -> Any:
    """Inductor's configuration module: its keys are what the option ``inductor`` may name."""
    from torch._inductor import config

    return config


def uses_cuda_graphs(patches: Mapping[str, Any]) -> bool:
    """Whether Inductor records CUDA graphs with these patches of its settings.
    ``config.triton.cudagraphs``: 2.11, 2.13, 2.14."""
    return bool(patches.get("triton.cudagraphs", inductor_config().triton.cudagraphs))


def inductor_config_keys() -> frozenset[str]:
    """Names that ``inductor_config.patch`` accepts. 2.11, 2.13."""
    return frozenset(inductor_config().get_config_copy())


def spell_out_scaled_sums(graph: fx.Graph) -> None:
    """Write ``add(x, mm, alpha=a)`` as ``add(x, mul(mm, a))``: Inductor's pattern for ``addmm``
    takes the sum and drops its factor (2.11 and 2.13), as in a moving average:
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


@contextlib.contextmanager
def _replaced(owner: type, name: str, method: Any) -> Iterator[None]:
    """Replace a method of torch's inside, where torch has no hook."""
    original = vars(owner)[name]  # as it is stored: a class method or a static method, too
    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def fusing_in_order() -> Iterator[None]:
    """In graphs compiled inside, Inductor makes no fusion that undoes a plan's order.

    Inductor does not fuse two kernels that merely read the same values. One of the two would move
    to the other's place, and with it every value that one of them makes or keeps alive;
    recomputation planned for late would run early. Nor does Inductor fuse a reduction with a reader
    that waits for a later value, as a sum of two passes' gradients does. The reduction's input,
    which is larger than its result, would be kept until then. Other fusions of a producer with its
    reader stay, and so do fusions of a row with a column reduction of the same values (GPU). The
    caller's cache key must reflect this policy.

    Inductor's other choices stay with their earlier source: a user's ``inductor_choices_class``, or
    the object that ``register_inductor_choices`` (2.15) composes. In that object the first
    contributor that overrides a method decides, for the whole process. Here both must agree, for
    one compilation. ``InductorChoices``, names of the scheduler: 2.11, 2.13, 2.15.
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
    """In graphs compiled inside, each convolution copies graph inputs to its layout for itself.

    Inductor otherwise puts the copy in the input's place, and the graph saves the copy for the
    backward: for example, copies of all convolution weights. The caller's cache key must reflect
    this. ``GraphLowering.find_nodes_prefer_channels_last``: 2.11, 2.13, 2.14.
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
    """In graphs compiled inside, a buffer is freed after its last reader, as a plan counts it.

    Inductor otherwise keeps a buffer of the size that a later kernel needs, if by its own estimate
    the peak is not higher. Reuse by the next kernel stays. The caller's cache key must reflect
    this. ``AllocateLine.should_reuse_buffer``: 2.11, 2.13, 2.14.
    """
    from torch._inductor.codegen.wrapper import AllocateLine

    def should_reuse_buffer(self: Any, free_line: Any, size: int) -> bool:
        is_next = free_line.scheduler_node_index + 1 == self.scheduler_node_index
        return bool(self.comm_buffer or is_next)

    with _replaced(AllocateLine, "should_reuse_buffer", should_reuse_buffer):
        yield


def _waits_beyond(scheduler: Any, producer: Any, reader: Any) -> bool:
    """Whether a reader of ``producer`` also waits for a value that is made after it."""
    for dependency in reader.unmet_dependencies:
        buffer = scheduler.name_to_buf.get(dependency.name)
        if buffer is None or buffer.defining_op is None:  # an input of the graph
            continue
        made_by = scheduler.name_to_fused_node[buffer.defining_op.get_name()]
        if made_by is not producer and made_by.min_order > producer.max_order:
            return True
    return False


def _key_of_pass(theirs: Any) -> Any:
    """The cache key of a user's pass. A pass without a key may do anything, so a random key keeps
    caches from finding its code again; torch itself does not cache such passes."""
    key = theirs.uuid() if hasattr(theirs, "uuid") else None
    return os.urandom(16).hex() if key is None else key


@contextlib.contextmanager
def rewriting_last(rewrite: Callable[[fx.Graph], Any], key: str) -> Iterator[None]:
    """Hand graphs compiled inside to ``rewrite`` after Inductor's own rewriting, which may move
    readers, and after a pass that the user set there. ``key`` tells caches what ``rewrite`` does.
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
    """Have Inductor call ``op`` after all readers of the tensors that it writes into, which are
    those of its argument at ``written``.

    Inductor computes a pointwise value where it is used, which may be after the writer. It does
    compute such values when it meets a writer, but by itself only after it has placed the writer
    (``FallbackKernel``: 2.11, 2.13). ``mark_buffer_mutated``: 2.11, 2.13.
    """
    from torch._inductor.lowering import fallback_handler, register_lowering
    from torch._inductor.virtualized import V

    call = fallback_handler(op, add_to_fallback_set=False)

    @register_lowering(op, type_promotion_kind=None)
    def lowered(*args: Any) -> Any:
        for tensor in args[written]:
            V.graph.mark_buffer_mutated(tensor.get_name())
        return call(*args)


def extern_kernels() -> Any:
    """The namespace of kernels that generated code calls by name. 2.11, 2.13."""
    from torch._inductor.select_algorithm import extern_kernels as namespace

    return namespace


def load_cpp(source: str) -> Any:
    """A library for this machine's CPU, built by Inductor's compiler with its flags and kept in
    its cache. ``CppCodeCache``: 2.11 (always for the whole instruction set), 2.13 (if asked)."""
    from torch._inductor.codecache import CppCodeCache

    asks = "needs_vec_isa" in inspect.signature(CppCodeCache.load_async).parameters
    # Inductor writes vector code itself and leaves loops as they are. A square root that sets errno
    # cannot be vectorised.
    flags = ("-ftree-loop-vectorize", "-fno-math-errno")
    return CppCodeCache.load(source, extra_flags=flags, **({"needs_vec_isa": True} if asks else {}))
