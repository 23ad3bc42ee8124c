"""Captures a joint forward+backward graph without running or compiling anything.

``capture`` calls a model or function under ``torch.compile``. Dynamo, AOTAutograd and
Inductor's joint-graph passes do what they do for ``backend="sat"``. The compilation ends where
Inductor would call the partitioner. No operation of the model runs, so its tensors may be fake:
inside ``fake_tensors()`` a model of any size is built and captured without memory for tensors.

    with fake_tensors():
        model = GPT2LMHeadModel(config)
        graph = capture(model, input_ids=torch.zeros(8, 512, dtype=torch.long), ...)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from satcompile.errors import UnsupportedError
from satcompile.graph.training_graph import TrainingGraph
from satcompile.torch_compat import aot, codegen, dynamo, inductor, partitioner, symbols, tensors


@dataclass(frozen=True)
class Capture:
    """The inputs that a backend would be given, and the graph made from them.

    Attributes:
        graph: the joint graph.
        inputs: inputs of Dynamo's graph: parameters, buffers and inputs as they are, sizes that are
            symbols. They need not match the inputs of the joint graph one to one.
    """

    graph: TrainingGraph
    inputs: Sequence[Any]


class _Captured(codegen.GenerationStopped):
    """Carries the graph out of the compilation."""

    def __init__(self, graph: TrainingGraph) -> None:
        super().__init__()
        self.graph = graph


class _NoBackward(codegen.GenerationStopped):
    """AOTAutograd found nothing to differentiate, and went on to compile an inference graph."""


def fake_tensors() -> contextlib.AbstractContextManager[Any]:
    """Tensors made inside have shapes, dtypes and devices, but no memory.

    Initializers that look at values (truncated normal ones) raise inside. With transformers,
    skip initialization with ``initialization.no_init_weights()``. This also skips
    ``model.tie_weights()``, so call that afterwards.
    """
    return tensors.fake_tensor_mode(shape_env=symbols.new_shape_environment())


def capture(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> TrainingGraph:
    """The training graph that ``backend="sat"`` would plan for ``fn(*args, **kwargs)``.

    Args:
        fn: a module or a function, whose output requires gradients. It is not executed. The
            tensors that it holds or is given may be real, or fake under ``fake_tensors()``, which
            must then be active around this call too.
        args, kwargs: arguments of the call. Their sizes are captured as constants unless
            ``torch._dynamo.mark_dynamic`` marked them.

    Raises:
        UnsupportedError: nothing in ``fn`` requires gradients, so there is no backward.
        torch._dynamo.exc.Unsupported: ``fn`` has graph breaks, so there is no one graph.
    """
    return capture_with_inputs(fn, args, kwargs).graph


def capture_with_inputs(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    prepare: Callable[[fx.GraphModule], None] | None = None,
    dynamic: bool = False,
) -> Capture:
    """``capture``, with the inputs that the backend was called with.

    Args:
        fn, args, kwargs: as for ``capture``.
        prepare: changes Dynamo's graph before it is differentiated.
        dynamic: whether sizes that ``mark_dynamic`` marked become symbols. (Otherwise, captures of
            one model at two batch sizes are two graphs.)
    """
    given: list[Any] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        given.extend(example_inputs)
        if prepare is not None:
            prepare(gm)
        return _capturing_backend(gm, example_inputs)

    compiled = torch.compile(
        fn, backend=backend, fullgraph=True, dynamic=None if dynamic else False
    )
    try:
        # Training that follows, with another batch size, must not find that the size has varied.
        with dynamo.without_memory_of_sizes():
            compiled(*args, **kwargs)
    except _Captured as captured:
        return Capture(captured.graph, tuple(given))
    except _NoBackward:
        pass
    raise UnsupportedError(
        "There is no training graph to capture: no output of the call requires gradients. Call "
        "it with gradients enabled, on parameters or inputs that require them."
    )


def _capturing_backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
    with aot.aot_settings():
        return inductor.compile_fx(
            gm,
            example_inputs,
            inner_compile=_refuse_to_compile,
            config_patches={"custom_partitioner_fn": _CapturingPartitioner()},
        )


def _refuse_to_compile(*args: Any, **kwargs: Any) -> Any:
    raise _NoBackward


class _CapturingPartitioner(partitioner.CustomPartitionerFn):
    """Runs where ``satcompile.compile.generation`` plans: after the joint-graph passes."""

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        static = kwargs.get("static_lifetime_input_indices") or []
        graph = TrainingGraph(gm, kwargs["num_fwd_outputs"], static)
        raise _Captured(graph) if graph.has_backward else _NoBackward

    def uuid(self) -> str:
        return "satcompile.graph.capture"  # nothing is compiled, so nothing is cached under it
