"""Dynamo: the frame and the graph that it hands over, and the context of a backend's call."""

from __future__ import annotations

import contextlib
import copy
import re
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import sympy
import torch
from torch import fx

# Public: marks a size as a symbol; errors that Dynamo raises where it makes no graph. 2.11, 2.13.
from torch._dynamo import mark_dynamic  # noqa: F401

# If a backend raises a subclass of ShortenTraceback, the error reaches the user as itself and not
# inside BackendCompilerFailed. 2.11, 2.13.
from torch._dynamo.exc import (  # noqa: F401
    ShortenTraceback,
    TorchDynamoException,
    Unsupported,
)

# Errors by which a backend leaves the graph to eager, with a warning. 2.11, 2.13, 2.14.
from torch._dynamo.exc import exceptions_allowed_to_be_fallback as LEFT_TO_EAGER  # noqa: F401

from satcompile.torch_compat.tensors import is_fake


def compiled_autograd_enabled() -> bool:
    """Whether compiled autograd is on: it would trace our backward and drop what we put there."""
    from torch._dynamo import compiled_autograd, config

    if config.compiled_autograd:
        return True
    return bool(
        compiled_autograd.compiled_autograd_enabled
        or getattr(compiled_autograd, "in_compiled_autograd_region", False)
    )


def suppress_errors_enabled() -> bool:
    """Whether Dynamo turns any error of ours, ``BudgetError`` too, into an eager run."""
    from torch._dynamo import config

    return bool(config.suppress_errors)


def is_part_of_call(gm: fx.GraphModule) -> bool:
    """Whether Dynamo's graph is one of several of a call, as far as that is known while it is
    compiled. It is if it ends at a graph break, or if a broken frame runs in eager between
    ``torch.compile``'s entry and the compiled frame. ``compile_subgraph_reason``,
    ``eval_frame.compile_wrapper``: 2.11, 2.13."""
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


def is_of_streams(node: fx.Node) -> bool:
    """Whether Dynamo traced a node from a CUDA stream or event. Such operators are in the namespace
    ``streams``, defined in ``torch._dynamo.variables.streams``: 2.11, 2.13, 2.15. AOTAutograd wraps
    them into ``control_deps``: 2.15."""
    name = str(node.target)
    return node.op == "call_function" and (name.startswith("streams.") or name == "control_deps")


def copy_of_captured(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of Dynamo's graph, to be compiled again: nodes are copied, tensors are shared.

    ``copy.deepcopy`` would copy constants. It would also lose attributes of the module and of its
    placeholders, which tell AOTAutograd which inputs are parameters and where each comes from.
    Torch's own partitioner would then save other values. ``_param_name_to_source``,
    ``_dynamo_source``: 2.11, 2.13.
    """
    copied = fx.GraphModule(gm, copy.deepcopy(gm.graph), class_name=type(gm).__name__)
    for name, body in gm.named_children():  # bodies of checkpoint regions and the like
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
    """The context of a backend's call in Dynamo, kept to compile the same graph again.

    It holds fake tensors, symbolic sizes and their guards. ``TracingContext``,
    ``CompileContext``, ``ShapeEnv.frozen``, ``ShapeEnv.guards``, ``ShapeEnv.replacements``,
    ``TensorifyState.force_specializations``: 2.11, 2.13, 2.14.
    """

    def __init__(self) -> None:
        from torch._dynamo.symbolic_convert import TensorifyState
        from torch._guards import CompileContext, TracingContext

        self._tracing, self._compile = TracingContext.try_get(), CompileContext.try_get()
        self._constant_floats = frozenset(TensorifyState.force_specializations)
        # Autocast affects the trace. Dynamo guards on it, but users ask for a report anywhere.
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in ("cpu", "cuda")
        ]

    @contextlib.contextmanager
    def _modes(self) -> Iterator[None]:
        """Inside, gradients and autocast are as they were in Dynamo's call."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self._floats_known())
            for kind, dtype, enabled in self._autocast:
                if enabled != torch.is_autocast_enabled(kind) or enabled:
                    stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield

    @contextlib.contextmanager
    def _floats_known(self) -> Iterator[None]:
        """Inside, AOTAutograd knows which Python floats have become constants. For a float that it
        does not know, it asks Dynamo to start again, and Dynamo forgets them when it is done."""
        from torch._dynamo.symbolic_convert import TensorifyState

        before = set(TensorifyState.force_specializations)
        TensorifyState.force_specializations |= self._constant_floats
        try:
            yield
        finally:
            TensorifyState.force_specializations &= before

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Inside, torch's logs and traces carry the id of Dynamo's compilation.
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
        """Compile inside. Dynamo has installed its guards and does not look for new ones. On
        exit, the yielded list has the new conditions on symbols."""
        from torch._guards import tracing

        assert self._tracing is not None
        conditions: list[Any] = []
        env = getattr(self._tracing.fake_mode, "shape_env", None)
        if env is None:
            with self._modes(), self.named(), tracing(self._tracing):
                yield conditions
            return
        frozen, num_guards, replaced = env.frozen, len(env.guards), dict(env.replacements)
        env.frozen = False  # if frozen, it would drop new guards and only log a line
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


@contextlib.contextmanager
def without_memory_of_sizes() -> Iterator[None]:
    """Keep compilations inside out of Dynamo's memory of sizes, by which it turns sizes that varied
    into symbols from then on. ``pgo.get_code_state``: 2.11, 2.13."""
    from torch._dynamo import pgo

    before = copy.deepcopy(dict(pgo.get_code_state()))
    try:
        yield
    finally:
        state = pgo.get_code_state()
        state.clear()
        state.update(before)


def original_callable(compiled: Any) -> Any:
    """The function that ``torch.compile`` was given, from the one it returned. 2.11, 2.13."""
    return getattr(compiled, "_torchdynamo_orig_callable", compiled)


def compiled_graphs() -> int:
    """The number of graphs that Dynamo has compiled in this process. 2.11, 2.13."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def parameter_name(placeholder: fx.Node) -> str:
    """The module path of the parameter behind an input of Dynamo's graph; the node's own name where
    Dynamo knows no path. ``Source.name``: a method in 2.11, a property in 2.13."""
    source = getattr(placeholder, "_dynamo_source", None)
    name = getattr(source, "name", "")
    text = name() if callable(name) else str(name)
    parts = re.findall(r"_(?:modules|parameters)\['([^']+)'\]", text)
    return ".".join(parts) or text or placeholder.name
