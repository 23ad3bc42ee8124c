"""The optimizer's update inside the backward: gradients are consumed where they appear.

What the pass rewrites, in a backward graph:

1. A gradient for an update goes to ``satcompile::update_``. The call stands after the node that
   computes the gradient, and after the last node that reads the parameter's memory under any name
   (a saved parameter, a saved view of one, a view of either).
2. The operator declares that it writes into those inputs, so that Inductor schedules no reader
   after it. Inductor's rewriting of the graph would still move one there (it joins a product that
   reads the weight with a sum further down). So the pass runs after that rewriting, and
   ``check_order`` checks the generated code. The gradient's memory is free after the operator.
3. The graph returns None in the gradient's place.
4. Small gradients wait for the next ones until together they are worth a call.

What it leaves alone: gradients of inputs that are not parameters of such an optimizer. At run time,
autograd's own graph tells which parameter a gradient belongs to, and the call decides whether the
gradient may be applied at all (``satcompile.updates.optimizers.in_backward``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from satcompile.passes.contract import Ensures, Result, Stage
from satcompile.passes.facts import Facts
from torch import fx

from satcompile.errors import UnsupportedError, VerificationError
from satcompile.graph.aliases import storage_owners
from satcompile.graph.training_graph import storage_bytes
from satcompile.torch_compat.inductor import lower_as_writer
from satcompile.updates.optimizers.in_backward import take_gradients

_WORTH_A_CALL = 1 << 20  # bytes of gradients that are worth a call,
_SHARE_OF_ALL = 64  # or all gradients' bytes divided by this, if that is less

# Patterns for a line of generated code.
_CALL = re.compile(
    r"torch\.ops\.satcompile\.update_\.default\(.*, \[(?P<read>[^\[\]]*)\], \[(?P<slots>[\d, ]*)\]\)$"
)
_ALIAS = re.compile(r"(?P<name>\w+) = (?:reinterpret_tensor\()?(?P<base>\w+)(?:[,;]|$)")
_NAME, _NUMBER = re.compile(r"[A-Za-z_]\w*\b(?!\()"), re.compile(r"\d+")

_library = torch.library.Library("satcompile", "FRAGMENT")
# A replayed CUDA graph would not ask again which gradients to apply, so Inductor leaves this out of
# its graphs.
_library.define(
    "update_(Tensor[] gradients, Tensor(a!)[] read, int[] slots) -> ()",
    tags=(torch.Tag.cudagraph_unsafe,),
)


@torch.library.impl(_library, "update_", "CompositeExplicitAutograd")
def _update(
    gradients: Sequence[torch.Tensor], read: Sequence[torch.Tensor], slots: Sequence[int]
) -> None:
    take_gradients(gradients, slots)


@torch.library.register_fake("satcompile::update_", lib=_library)
def _update_fake(
    gradients: Sequence[torch.Tensor], read: Sequence[torch.Tensor], slots: Sequence[int]
) -> None:
    return None


_UPDATE = torch.ops.satcompile.update_.default
lower_as_writer(_UPDATE, written=1)


@dataclass(frozen=True)
class _Ready:
    """A gradient, and the position after which its parameter may be written."""

    position: int
    slot: int
    gradient: fx.Node
    read: tuple[fx.Node, ...]


@dataclass(frozen=True)
class FusedUpdate:
    """Hand gradients to the optimizer inside the backward.

    Attributes:
        parameters: names of the backward's inputs that share memory with the parameter, by the
            gradient's position among the backward's results.
        num_bytes: of these gradients.
    """

    parameters: Mapping[int, tuple[str, ...]]
    num_bytes: int

    name = "fused_update"
    stage = Stage.BACKWARD
    requires = ()
    ensures = Ensures.PLACE_IN_CODE

    @property
    def description(self) -> str:
        """What changed, in words."""
        mebibytes = self.num_bytes / 2**20
        count = len(self.parameters)
        return f"{count} gradients ({mebibytes:.2f} MiB) go to their optimizer as they appear"

    def run(self, graph: fx.Graph, facts: Facts) -> Result[fx.Graph]:
        """Rewrite a backward graph in place."""
        output = next(iter(graph.find_nodes(op="output")))
        results = list(output.args[0])
        ready = sorted(self._ready(graph, results), key=lambda r: (r.position, r.slot))
        nodes = list(graph.nodes)
        for group in _groups(ready):
            read = tuple(dict.fromkeys(node for each in group for node in each.read))
            arguments = ([r.gradient for r in group], list(read), [r.slot for r in group])
            with graph.inserting_after(nodes[group[-1].position]):
                call = graph.call_function(_UPDATE, arguments)
            call.meta["val"] = None
        for each in ready:
            results[each.slot] = None
        output.args = (type(output.args[0])(results),)
        visible = output.meta.get("user_visible_output_idxs")
        if visible is not None:  # Inductor keeps the layouts of these; a None has none
            output.meta["user_visible_output_idxs"] = [i for i in visible if results[i] is not None]
        return Result(graph, self.description, facts)

    def _ready(self, graph: fx.Graph, results: Sequence[object]) -> Iterator[_Ready]:
        owners = storage_owners(graph)
        position = {node: i for i, node in enumerate(graph.nodes)}
        inputs = {node.name: node for node in graph.find_nodes(op="placeholder")}
        last_reader: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if node.op != "output":
                for read in node.all_input_nodes:
                    last_reader[owners[read]] = position[node]
        first = max((position[node] for node in inputs.values()), default=0)
        for slot, names in self.parameters.items():
            gradient = results[slot] if slot < len(results) else None
            if not isinstance(gradient, fx.Node):
                continue  # no gradient flows to this parameter
            read = tuple(inputs[name] for name in names if name in inputs)
            behind = max([first, position[gradient], *(last_reader.get(n, 0) for n in read)])
            yield _Ready(behind, slot, gradient, read)


def check_order(source: str, num_slots: int) -> None:
    """Refuse generated code that reads a parameter's memory after its update.

    Raises:
        UnsupportedError: not all updates are found, so the order cannot be checked.
        VerificationError: a reader stands after an update.
    """
    written: set[str] = set()
    aliases: dict[str, set[str]] = {}
    found = 0
    for line in source.splitlines():
        line = line.strip()
        call = _CALL.match(line)
        alias = _ALIAS.match(line)
        if alias is not None and call is None:
            aliases.setdefault(alias["base"], set()).add(alias["name"])
        if call is None:
            late = written.intersection(_NAME.findall(line)) if written else ()
            if late and not line.startswith(("del ", "#")):
                raise VerificationError(
                    f"Generated code reads {', '.join(sorted(late))} behind its update: {line}. "
                    "This is a defect of satcompile; please report it with the model. To train "
                    "meanwhile, use fuse_optimizer(optimizer, in_backward=False)."
                )
        if call is not None:
            found += len(_NUMBER.findall(call["slots"]))
            read = _NAME.findall(call["read"])
            written.update(read, *(aliases.get(name, ()) for name in read))
        if line.startswith("return "):
            written.clear()  # the end of the function
            aliases.clear()
    if found != num_slots:
        raise UnsupportedError(
            f"{found} of {num_slots} updates were found in the code that Inductor generated, "
            "so their order cannot be checked (with cpp_wrapper the code is C++). Use "
            "fuse_optimizer(optimizer, in_backward=False)."
        )


def _groups(ready: Sequence[_Ready]) -> Iterator[list[_Ready]]:
    sizes = [storage_bytes(each.gradient.meta["val"]) for each in ready]
    worth = min(_WORTH_A_CALL, sum(sizes) // _SHARE_OF_ALL)
    group: list[_Ready] = []
    waiting = 0
    for each, size in zip(ready, sizes, strict=True):
        group.append(each)
        waiting += size
        if waiting >= worth:
            yield group
            group, waiting = [], 0
    if group:
        yield group
