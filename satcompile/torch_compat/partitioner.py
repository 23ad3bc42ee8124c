"""The partitioner of AOTAutograd: what must be saved, and how a joint graph becomes two modules."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch._functorch import config as functorch_config
from torch._functorch import partitioners
from torch._inductor.custom_graph_pass import CustomPartitionerFn  # noqa: F401

from satcompile.torch_compat.tensors import fake_mode_of, is_fake


def default_op_types() -> Any:
    """Which operators Inductor fuses, which are views, random, or heavy. 2.11, 2.13."""
    return partitioners.get_default_op_list()


def prepare_joint_graph(joint: fx.GraphModule, num_forward_outputs: int) -> fx.GraphModule:
    """Do what torch's own partitioner does before it decides: remove dead code and common
    subexpressions, clean the tags of checkpoint regions, and mark the values that must be saved
    (collectives, operators with effects, sources of mutations). 2.11, 2.13, 2.14.
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
    """From 2.14 on torch does not merge a value that the forward alone needs with an equal value
    that the backward needs. With one value for both, the default plan would differ from torch's.
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
    """The budget that ``torch.autograd.graph.region_activation_memory_budget`` (2.14), or the older
    mark, sets for torch's own partitioner. ``node.meta["memory_budget"]``: 2.11, 2.13;
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
    """Remove the tags of ``torch.utils.checkpoint`` from a joint graph; returns how many there
    were. Tags of values that a policy saves stay. ``must_recompute``: 2.11, 2.13."""
    tagged = [node for node in joint.graph.nodes if partitioners.must_recompute(node)]
    for node in tagged:
        del node.meta["recompute"]
        node.meta.pop("ac_graph_id", None)
    return len(tagged)


def must_be_saved(node: fx.Node) -> None:
    """Tag ``node`` for torch's partitioner: it must not be computed again. 2.11, 2.13."""
    from torch.utils.checkpoint import CheckpointPolicy

    node.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def classify_nodes(joint: fx.GraphModule, static_inputs: list[int], num_outputs: int) -> Any:
    """Torch's ``NodeInfo``: required in the forward, in the backward, or unclaimed. 2.11, 2.13."""
    return partitioners.classify_nodes(joint, static_inputs, num_outputs)


def forward_backward_outputs(
    joint: fx.GraphModule, num_forward_outputs: int
) -> tuple[list[Any], list[Any]]:
    outputs = partitioners._extract_fwd_bwd_outputs(joint, num_fwd_outputs=num_forward_outputs)
    return outputs[0], outputs[1]


def set_backward_distances(joint: fx.GraphModule, roles: Any) -> None:
    """Set the attribute by which torch's minimum cut weighs values: steps to the backward."""
    for node in reversed(joint.graph.nodes):
        if node.op == "output":
            node.dist_from_bw = int(1e9)
        elif not roles.is_required_fw(node):
            node.dist_from_bw = 0
        else:
            distances = [user.dist_from_bw + 1 for user in node.users]
            node.dist_from_bw = min([int(1e9), *distances])


def default_saved_values(joint: fx.GraphModule, roles: Any, memory_budget: float) -> list[fx.Node]:
    """Values that torch's own partitioner saves at a fraction of activation bytes (1: default)."""
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
    """Whether a node is a script object or the like; 2.13 only, older versions have none."""
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
        draws: whether a node draws. Torch goes by tags, and attention has the tag even where it
            drops nothing.

    2.11, 2.13.
    """
    with _replaying_no_more_than(joint, draws):
        return bool(partitioners.has_recomputable_rng_ops(joint))


@contextlib.contextmanager
def _replaying_no_more_than(
    joint: fx.GraphModule, draws: Callable[[fx.Node], bool]
) -> Iterator[None]:
    """Inside, torch replays from a saved state only the nodes that draw random numbers. Replaying
    attention without dropout would gain nothing and would tie the backward to torch's order.
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


@contextlib.contextmanager
def _traced_as(joint: fx.GraphModule) -> Iterator[None]:
    """Outside a compilation, enter the context in which the graph's values were made: random states
    that cross are traced in it. ``detect_fake_mode``, ``TracingContext``: 2.11, 2.13."""
    from torch._guards import TracingContext, detect_fake_mode, tracing

    values = (node.meta.get("val") for node in joint.graph.nodes)
    fake = next((v for v in values if isinstance(v, torch.Tensor) and is_fake(v)), None)
    if fake is None or detect_fake_mode() is not None:
        yield
        return
    with tracing(TracingContext(fake_mode_of(fake))):
        yield


def finish_modules(
    joint: fx.GraphModule,
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    num_scalars: int,
    draws: Callable[[fx.Node], bool],
    reorder: Callable[[fx.GraphModule], fx.GraphModule] | None = None,
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Do what torch's partitioner does after the split: share random state between the two copies
    of operators in checkpoint regions, recompute as late as the readers allow (or in the order that
    ``reorder`` gives the backward), move ``getitem`` early, and thread the random state of nested
    graphs. 2.11, 2.13.
    """
    from torch._functorch.compile_utils import raise_getitems

    with _traced_as(joint), _replaying_no_more_than(joint, draws):
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
