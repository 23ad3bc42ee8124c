"""The invariants, checked after every pass on every graph, before anything runs.

The check of a partition is a translation validation by value numbering (Alpern, Wegman and
Zadeck, POPL 1988): every operation of the joint graph gets a number made of its operator and
the numbers of its arguments, so that equal numbers mean equal values. The two emitted graphs are
numbered the same way; a value that the forward hands over keeps its number. They must

1. compute nothing but values of the joint graph (no edge dropped or swapped, no argument,
   shape or dtype changed),
2. return exactly the joint graph's forward outputs and gradients,
3. read across the boundary only what the other side provides, in the same order,
4. draw no random number twice: a random operator has its node's identity in its number, and
   is in only one of the graphs,
5. carry the metadata (shape, strides, dtype, device) of the values they compute,
6. stay within the peak that the plan promised, when simulated.

A value may be computed several times: copies have the same number. Only operations that draw random
numbers or write into an input run exactly as often as in the joint graph.

The check cannot see a joint graph that was wrong to begin with, or what Inductor does afterwards.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from satcompile.compile.partition import Partition
from satcompile.errors import VerificationError
from satcompile.graph.aliases import storage_owners
from satcompile.graph.emission import COPY_OF
from satcompile.graph.nodes import is_mutation, is_random
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.retention import RetentionPlan
from satcompile.solver.training.step import StepProfile, simulate_orders
from satcompile.torch_compat.operators import OpOverload, schema_of
from satcompile.torch_compat.partitioner import is_rng_replay, is_rng_save, recompute_tag
from satcompile.updates.sparsity.operators import dense_form

Number = int


@dataclass
class Numbering:
    """Numbers of values; one table serves the joint graph and the graphs made from it."""

    table: dict[Any, Number] = field(default_factory=dict)

    def of(self, key: Any) -> Number:
        return self.table.setdefault(key, len(self.table))

    def argument(self, value: Any, numbers: dict[fx.Node, Any]) -> Any:
        if isinstance(value, fx.Node):
            return ("value", numbers[value])
        if isinstance(value, (tuple, list)):
            # By kind, not by class: FX has its own list class for a node's arguments.
            kind = "tuple" if isinstance(value, tuple) else "list"
            return (kind, *(self.argument(v, numbers) for v in value))
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return ("slice", *(self.argument(v, numbers) for v in parts))
        if isinstance(value, dict):
            return ("dict", *((k, self.argument(v, numbers)) for k, v in value.items()))
        return (type(value).__name__, repr(value))


def _key(node: fx.Node, numbering: Numbering, numbers: dict[fx.Node, Any]) -> Any:
    """The key of ``node``'s value: its operator and the numbers of its arguments."""
    args = numbering.argument(node.args, numbers)
    kwargs = numbering.argument(dict(sorted(node.kwargs.items())), numbers)
    if node.op == "get_attr":
        return ("attribute", node.target)
    return (str(node.target), args, kwargs)


@dataclass(frozen=True)
class Reference:
    """The joint graph as it was before any pass of ours touched it.

    Attributes:
        numbering: the table of numbers.
        inputs: number of each placeholder, by name.
        signatures: metadata of each numbered value.
        outputs: numbers of the outputs, forward first; None for outputs that are not values.
        random: names of random nodes that must not run twice.
        replays: for random nodes in checkpoint regions, by name, the key and how many nodes with it
            there are up to this one; the node's number is that of ("replayed", key, count).
        effects: how often each mutation runs.
    """

    numbering: Numbering
    inputs: dict[str, Number]
    signatures: dict[Number, str]
    outputs: list[Number | None]
    random: frozenset[str]
    replays: dict[str, tuple[Any, int]]
    effects: Counter[Number]


def _dense_key(node: fx.Node, numbering: Numbering, numbers: dict[fx.Node, Any]) -> Any:
    """The key of a node's value with all tiles active. The key of each of a convolution's three
    gradients does not depend on which others are wanted."""
    form = dense_form(node)
    if form is None:
        if node.target is not torch.ops.aten.convolution_backward.default:
            return _key(node, numbering, numbers)
        form = (node.target, (*node.args[:3], *node.args[4:10]), None)
    target, arguments, result = form
    nothing = numbering.argument({}, numbers)
    key = (str(target), numbering.argument(tuple(arguments), numbers), nothing)
    if result is None:
        return key
    parts = ("tuple", ("value", numbering.of(key)), ("int", repr(result)))
    return (str(operator.getitem), parts, nothing)


def reference(
    module: fx.GraphModule, dense: bool = False, numbering: Numbering | None = None
) -> Reference:
    """Number a joint graph. With ``dense``, sparse operators count as what they were before. With
    ``numbering``, the table has numbers already."""
    key_of = _dense_key if dense else _key
    numbering = numbering or Numbering()
    numbers: dict[fx.Node, Any] = {}
    inputs: dict[str, Number] = {}
    signatures: dict[Number, str] = {}
    replayed: Counter[Any] = Counter()
    replays: dict[str, tuple[Any, int]] = {}
    random = set()
    effects: Counter[Number] = Counter()
    owners = storage_owners(module.graph)
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        if node.op == "placeholder":
            numbers[node] = inputs[node.name] = numbering.of(("input", node.name))
        elif node.op == "call_function" and is_random(node):
            key = key_of(node, numbering, numbers)
            if recompute_tag(node) == "recompute":
                replayed[key] += 1
                replays[node.name] = (key, replayed[key])
                numbers[node] = numbering.of(("replayed", key, replayed[key]))
            else:
                random.add(node.name)
                numbers[node] = numbering.of(("random", key, node.name))
        else:
            numbers[node] = numbering.of(key_of(node, numbering, numbers))
        signatures.setdefault(numbers[node], signature(node))
        if is_mutation(node):
            effects[numbers[node]] += 1
            _overwrite(node, numbers, owners, numbering)
    outputs = [numbers.get(value) for value in _outputs(module)]
    return Reference(numbering, inputs, signatures, outputs, frozenset(random), replays, effects)


def _overwrite(
    node: fx.Node,
    numbers: dict[fx.Node, Any],
    owners: dict[fx.Node, fx.Node],
    numbering: Numbering,
) -> None:
    """Renumber after a mutation: what it writes into has the mutation's value from here on, and
    earlier views of that have other values than before."""
    assert isinstance(node.target, OpOverload)
    for position, argument in enumerate(schema_of(node.target).arguments):
        written = argument.alias_info is not None and argument.alias_info.is_write
        target = node.args[position] if position < len(node.args) else None
        if written and isinstance(target, fx.Node):
            for view in [n for n in numbers if owners[n] is owners[target] and n is not node]:
                numbers[view] = numbering.of(("overwritten", numbers[view], numbers[node]))
            numbers[target] = numbers[node]


def signature(node: fx.Node) -> str:
    """Metadata as text: comparing symbolic sizes themselves would add guards."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return f"{tuple(map(str, value.shape))} {tuple(map(str, value.stride()))} {value.dtype} {value.device}"
    if isinstance(value, (tuple, list)):
        return f"{len(value)} results"
    return type(value).__name__


def _outputs(module: fx.GraphModule) -> list[Any]:
    """The output node's leaves, None for those that are not nodes, as keys must be hashable."""
    from satcompile.torch_compat.trees import pytree

    node = next(iter(module.graph.find_nodes(op="output")))
    return [v if isinstance(v, fx.Node) else None for v in pytree.arg_tree_leaves(*node.args)]


def check_rewritten(module: fx.GraphModule, before: Reference, passed: Iterable[str]) -> None:
    """Check a pass that computes the same in another way. The graph must take and return as many
    values as before, of the same shapes, dtypes and devices, under the same names."""
    _lint(module, "joint", passed)
    after = reference(module)
    if list(after.inputs) != list(before.inputs):
        _fail("the joint graph's inputs changed", passed)
    if len(after.outputs) != len(before.outputs):
        _fail("the joint graph's number of outputs changed", passed)
    for position, (new, old) in enumerate(zip(after.outputs, before.outputs, strict=True)):
        found = None if new is None else after.signatures[new]
        wanted = None if old is None else before.signatures[old]
        if found != wanted:
            _fail(f"output {position} of the joint graph is {found} instead of {wanted}", passed)


def check_joint(
    module: fx.GraphModule, before: Reference, passed: Iterable[str], dense: bool = False
) -> None:
    """Check that a pass left the joint graph's meaning alone; with ``dense``, its meaning with all
    tiles active. ``before`` must be numbered in the same way."""
    _lint(module, "joint", passed)
    # In one table, equal numbers mean equal values. The table is a copy, because later checks must
    # not know the values that a wrong pass adds.
    after = reference(module, dense, Numbering(dict(before.numbering.table)))
    if list(after.inputs) != list(before.inputs):
        _fail("the joint graph's inputs changed", passed)
    if len(after.outputs) != len(before.outputs):
        _fail("the joint graph's number of outputs changed", passed)
    for position, (new, old) in enumerate(zip(after.outputs, before.outputs, strict=True)):
        if new != old:
            _fail(f"output {position} of the joint graph is another value than before", passed)


def check_partition(
    joint: Reference,
    parts: Partition,
    plan: RetentionPlan,
    problem: PlanningProblem | None,
    passed: Iterable[str] = (),
) -> None:
    """Check that the two graphs compute what the joint graph does; see the module's list.

    Raises:
        VerificationError: naming the first violation and the passes that ran.
    """
    passed = tuple(passed)
    _lint(parts.forward, "forward", passed)
    _lint(parts.backward, "backward", passed)
    _check_inputs(parts, joint, passed)
    effects: Counter[Number] = Counter()
    forward = _number_emitted(parts.forward, joint, joint.inputs.get, "forward", effects, passed)
    outputs = [forward.get(node) for node in _outputs(parts.forward)]
    wanted = joint.outputs[: parts.num_outputs]
    _compare_outputs(outputs[: parts.num_outputs], wanted, "forward", passed)
    lookup = _handed_over(parts, joint, outputs, passed)
    backward = _number_emitted(parts.backward, joint, lookup, "backward", effects, passed)
    gradients = [backward.get(node) for node in _outputs(parts.backward)]
    _compare_outputs(gradients, joint.outputs[parts.num_outputs :], "backward", passed)
    if effects != joint.effects:
        _fail("a mutation of an input is missing, or runs more than once", passed)
    _check_random(parts, joint, passed)
    if problem is not None:
        _check_peak(parts, plan, problem, passed)


def _check_inputs(parts: Partition, joint: Reference, passed: Iterable[str]) -> None:
    """Check that the inputs of both graphs keep the joint graph's order: calls are by position."""
    order = list(joint.inputs)
    for which, module in (("forward", parts.forward), ("backward", parts.backward)):
        names = [node.name for node in module.graph.find_nodes(op="placeholder")]
        known = [name for name in names if name in joint.inputs]
        if which == "backward":  # saved values have an order of their own, checked by number
            known = [name for name in known if not name.startswith("primals")]
        if known != [name for name in order if name in set(known)]:
            _fail(f"the {which} takes its inputs in another order than the joint graph", passed)


def _handed_over(
    parts: Partition, joint: Reference, outputs: list[Any], passed: Iterable[str]
) -> Callable[[str], Any]:
    """Numbers of the backward's placeholders. In AOTAutograd's order, the backward takes symbolic
    sizes first, then tensors; the forward returns tensors first, then symbolic sizes."""
    saved = list(zip(_outputs(parts.forward), outputs, strict=True))[parts.num_outputs :]
    scalars = [n for node, n in saved if node is not None and _is_scalar(node)]
    tensors = [n for node, n in saved if node is None or not _is_scalar(node)]
    own = {name for name in joint.inputs if not name.startswith("primals")}
    placeholders = parts.backward.graph.find_nodes(op="placeholder")
    given = [p for p in placeholders if p.name not in own]
    numbers = [*scalars, *tensors]
    if len(given) != len(numbers):
        _fail(
            f"the forward hands over {len(numbers)} values and the backward takes {len(given)}",
            passed,
        )
    by_name = dict(zip((p.name for p in given), numbers, strict=True))
    return lambda name: by_name[name] if name in by_name else joint.inputs.get(name)


def _is_scalar(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, int))


def _number_emitted(
    module: fx.GraphModule,
    joint: Reference,
    input_number: Callable[[str], Any],
    which: str,
    effects: Counter[Number],
    passed: Iterable[str],
) -> dict[fx.Node, Any]:
    numbers: dict[fx.Node, Any] = {}
    replayed = _replays_in_order(module, joint)
    known = joint.signatures
    owners = storage_owners(module.graph)
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        if node.op == "placeholder":
            numbers[node] = input_number(node.name)
            if numbers[node] is None:
                _fail(f"the {which} has an input {node.name!r} that nothing provides", passed)
        elif is_rng_save(node) or is_rng_replay(node) or _parts_of_rng(node, numbers) is not None:
            numbers[node] = _number_rng(node, joint, numbers, replayed)
            continue
        elif node.name in joint.replays and node.op == "call_function":
            # Torch replays draws that both graphs need; a draw that only one needs is made there.
            key = _key(node, joint.numbering, numbers)
            count = joint.replays[node.name][1]
            numbers[node] = joint.numbering.table.get(("replayed", key, count))
        elif node.name in joint.random:
            key = ("random", _key(node, joint.numbering, numbers), node.name)
            numbers[node] = joint.numbering.table.get(key)
        else:
            numbers[node] = joint.numbering.table.get(_key(node, joint.numbering, numbers))
        if isinstance(numbers[node], tuple):
            continue  # random state, which the joint graph does not have
        if numbers[node] is None or numbers[node] not in known:
            _fail(
                f"{node.name} in the {which} ({node.target}) computes a value that the joint "
                "graph does not have",
                passed,
            )
        if signature(node) != known[numbers[node]]:
            _fail(
                f"{node.name} in the {which} claims to be {signature(node)}, but its value is "
                f"{known[numbers[node]]}",
                passed,
            )
        if is_mutation(node):
            effects[numbers[node]] += 1
            _overwrite(node, numbers, owners, joint.numbering)
    return numbers


def _replays_in_order(module: fx.GraphModule, joint: Reference) -> dict[Any, Iterator[int]]:
    """Counts, by key, of the random operators that torch has wrapped to draw again: those that are
    not in ``module`` under their own names."""
    plain = {node.name for node in module.graph.nodes}
    waiting: dict[Any, list[int]] = {}
    for name, (key, count) in joint.replays.items():
        if name not in plain:
            waiting.setdefault(key, []).append(count)
    return {key: iter(counts) for key, counts in waiting.items()}


def _number_rng(
    node: fx.Node,
    joint: Reference,
    numbers: dict[fx.Node, Any],
    replayed: dict[Any, Iterator[int]],
) -> Any:
    """The number of a random operator of a checkpoint region. The forward runs it and keeps the
    generator's state; the backward runs it again from there. Both have the joint node's number."""
    part = _parts_of_rng(node, numbers)
    if part is not None:
        return part[node.args[1]]
    if is_rng_save(node):
        key = _rng_key(node, 0, joint, numbers)
        count = next(replayed.get(key, iter(())), None)
        number = joint.numbering.table.get(("replayed", key, count))
        return (("state", key, number), number)
    source = node.args[0]
    state = numbers.get(source) if isinstance(source, fx.Node) else None
    key = _rng_key(node, 1, joint, numbers)
    return state[2] if isinstance(state, tuple) and state[1] == key else None


def _rng_key(node: fx.Node, skip: int, joint: Reference, numbers: dict[fx.Node, Any]) -> Any:
    op, *args = node.args[skip:]
    table = joint.numbering
    return (
        str(op),
        table.argument(tuple(args), numbers),
        table.argument(dict(sorted(node.kwargs.items())), numbers),
    )


def _parts_of_rng(node: fx.Node, numbers: dict[fx.Node, Any]) -> Any:
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    return numbers.get(node.args[0]) if is_rng_save(node.args[0]) else None


def _compare_outputs(
    found: list[Any], wanted: list[Any], which: str, passed: Iterable[str]
) -> None:
    if len(found) != len(wanted):
        _fail(f"the {which} returns {len(found)} values instead of {len(wanted)}", passed)
    for position, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if one != other:
            _fail(f"output {position} of the {which} is not the joint graph's", passed)


def _check_random(parts: Partition, joint: Reference, passed: Iterable[str]) -> None:
    drawn: set[str] = set()
    for module in (parts.forward, parts.backward):
        for node in module.graph.nodes:
            if node.op != "call_function" or not is_random(node):
                continue
            name = _original_name(node)
            if name in drawn:
                _fail(f"{name} draws random numbers twice", passed)
            drawn.add(name)


def _check_peak(
    parts: Partition, plan: RetentionPlan, problem: PlanningProblem, passed: Iterable[str]
) -> None:
    found = simulate_emitted(parts, plan, problem)
    promised = plan.profile.peak_bytes
    if plan.limit_bytes is not None:
        promised = max(promised, plan.limit_bytes if not plan.is_default else promised)
    if found.peak_bytes > promised:
        _fail(
            f"the emitted graphs peak at {found.peak_bytes} bytes, simulated, where the plan "
            f"promised {promised}",
            passed,
        )


def simulate_emitted(
    parts: Partition, plan: RetentionPlan, problem: PlanningProblem
) -> StepProfile:
    """Memory of the emitted graphs, in their own order and with all copies."""
    number = {node.name: index for index, node in enumerate(problem.operations)}
    orders = [
        [number[name] for name in map(_original_name, module.graph.nodes) if name in number]
        for module in (parts.forward, parts.backward)
    ]
    return simulate_orders(problem.step_of(plan.is_default), orders[0], orders[1], plan.saved)


def _original_name(node: fx.Node) -> str:
    """The name of the joint graph's node; "" for a placeholder, which computes nothing."""
    return "" if node.op == "placeholder" else str(node.meta.get(COPY_OF, node.name))


def _lint(module: fx.GraphModule, which: str, passed: Iterable[str]) -> None:
    try:
        module.graph.lint()
    except RuntimeError as error:
        _fail(f"the {which} graph is malformed: {error}", passed)


def _fail(what: str, passed: Iterable[str]) -> None:
    raise VerificationError(
        f"A pass broke the graph, and nothing was run: {what}. Passes so far: "
        f"{', '.join(passed) or 'none'}. This is a defect of satcompile; please report it with "
        "the model. To train meanwhile, compile with torch.compile's default backend."
    )
