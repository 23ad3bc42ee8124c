"""AOTAutograd: its settings, and what it does around a compiled graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import fx
from torch._functorch import config as functorch_config

from satcompile.torch_compat.versions import version


@contextlib.contextmanager
def aot_settings() -> Iterator[None]:
    """Set AOTAutograd up as our graphs need it, for the duration of one compilation.

    ``force_non_lazy_backward_lowering``: both graphs compile together, so that the allocation
    check can still change the plan, and torch does not swallow the backward's errors.
    ``enable_autograd_cache``: a hit would call neither our partitioner nor our wrapper of the
    inner compile, and reports and checks would be lost. The FX graph cache still hits.
    Both 2.11, 2.13.
    """
    with functorch_config.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False):
        yield


def activation_budget() -> float:
    """Torch's own budget, a fraction of activation bytes; 1 is off. 2.11, 2.13."""
    return float(functorch_config.activation_memory_budget)


def may_overwrite_saved() -> bool:
    """Whether a backward may reuse the memory of saved tensors (``donated_buffer``). 2.11, 2.13."""
    return bool(functorch_config.donated_buffer)


def take_donated_positions() -> tuple[int, ...]:
    """Positions, among the arguments of the backward just compiled, of saved tensors whose memory
    it reuses. This empties torch's list, so that torch does not refuse to run a retained graph. The
    caller makes sure that such a graph keeps them. ``fw_metadata.bw_donated_idxs``: 2.11, 2.13."""
    from torch._guards import TracingContext

    tracing = TracingContext.try_get()
    donated = getattr(getattr(tracing, "fw_metadata", None), "bw_donated_idxs", None)
    if not donated:
        return ()
    positions = tuple(donated)
    donated.clear()  # in place: torch has the list in several places
    return positions


def updated_inputs(joint: fx.GraphModule, num_forward_outputs: int) -> list[fx.Node]:
    """Inputs into which AOTAutograd's runtime copies a result after the forward has returned: those
    that the forward updates and that need a gradient. ``InputMutationAOTOutput``: 2.11, 2.13."""
    from torch.utils import _pytree as pytree

    (output,) = joint.graph.find_nodes(op="output")
    described = pytree.arg_tree_leaves(output.meta.get("desc") or ())[:num_forward_outputs]
    updated = [d.mutated_input for d in described if hasattr(d, "mutated_input")]
    placeholders = joint.graph.find_nodes(op="placeholder")
    return [p for p in placeholders if p.meta.get("desc") in updated]


def own_budget(share: float) -> contextlib.AbstractContextManager[Any]:
    """Set torch's own budget for graphs compiled inside. 2.11, 2.13."""
    return functorch_config.patch(activation_memory_budget=share)


def budget_solver() -> str:
    """Which knapsack solver torch's own budget uses; "dp" by default. 2.11, 2.13."""
    return str(functorch_config.activation_memory_budget_solver)


def incoming_gradients_stay() -> bool:
    """Whether incoming gradients of a compiled backward stay alive until it returns. Up to 2.11
    AOTAutograd's runtime holds them; from 2.13 on generated code frees them. 2.11, 2.13, 2.14."""
    return version() < (2, 13)  # 2.12 was not checked: assumed to hold them, to be safe
