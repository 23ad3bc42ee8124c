"""The planned graphs of a program, run operator by operator: no code is generated.

Everything up to Inductor's code is the backend's own: the capture, AOTAutograd, the plans, the
partitions, and their verification. Torch's own plan then runs in an interpreter, under
AOTAutograd's runtime, and is compared with eager. In its backward, the joint graph and the plans
under limits run on what it was given, and must give what it gave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from satcompile.compile.partition import Partition
from satcompile.compile.planning import PlannedGraphs, plan_graphs
from satcompile.errors import SatcompileError, UnsupportedError
from satcompile.graph.training_graph import TrainingGraph
from satcompile.options import Options, parse
from satcompile.planner.request import Request, Subject
from satcompile.torch_compat.dynamo import copy_of_captured
from satcompile.torch_compat.inductor import compile_fx
from satcompile.torch_compat.partitioner import default_partition
from tests.partitions import uncompiled
from tests.programs.failures import Failure, failure, general, unwrapped
from tests.programs.program import Program, Results, Trial, eager

EXACT = 1e-9  # of graphs that compute the same by the same operators
BESIDE_EAGER = {"float64": 1e-8, "float32": 1e-3}
AUTOCAST = 0.15  # bf16 where eager rounds in other places


class Interpreter(fx.Interpreter):
    """Runs a graph as it goes to Inductor."""

    def compute(self, inputs: Sequence[Any]) -> list[Any]:
        """The graph's results, flat, as its inputs are."""
        results = self.run(*inputs, enable_io_processing=False)
        return pytree.tree_leaves(results, is_leaf=lambda value: value is None)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        name = str(target)
        if "inductor_random" in name:
            return _drawn(*args)
        if "inductor_randint" in name:
            return _drawn_integers(*args)
        if target is torch.ops.aten.view.default:
            target = torch.ops.aten.reshape.default  # strides may differ from the traced ones
        return super().call_function(target, args, kwargs)


def _drawn(size: Sequence[int], seed: torch.Tensor, mode: str) -> torch.Tensor:
    """A function of its seed, as in Inductor's code: torch's own stand-in is none."""
    generator = torch.Generator().manual_seed(int(seed))
    return getattr(torch, mode)(size, generator=generator)


def _drawn_integers(low: int, high: int, size: Sequence[int], seed: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(seed))
    return torch.randint(low, high, size, generator=generator)


@dataclass
class _Call:
    """A forward of torch's own plan: what it was given, and gave.

    Attributes:
        names: of its inputs.
        given: its inputs themselves, which may be overwritten behind it.
        before: copies of them.
        random_state: of torch's generator.
    """

    names: list[str]
    given: list[Any]
    before: list[Any]
    random_state: torch.Tensor
    results: list[Any]

    def inputs_again(self) -> dict[str, Any]:
        return {n: _copied(value) for n, value in zip(self.names, self.before, strict=True)}

    def overwrite(self, inputs: dict[str, Any]) -> None:
        """What was written into the inputs since."""
        for name, value, before in zip(self.names, self.given, self.before, strict=True):
            if isinstance(value, torch.Tensor) and not torch.equal(value, before):
                inputs[name].copy_(value)


class Plans:
    """Several plans of one graph. Torch's own runs, the others beside it."""

    joint: fx.GraphModule
    others: dict[str, Partition]
    call: _Call

    def __init__(self, options: Options) -> None:
        self._options = options
        self._own: PlannedGraphs | None = None

    def compile(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        self._request = Request(self._options, Subject(len(example_inputs)))
        return uncompiled(gm, example_inputs, self._request, self._partition, self._run_graph)

    def _partition(
        self, gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        self.joint = copy_of_captured(gm)
        copies = [copy_of_captured(gm) for _ in range(2)]
        graph = _training_graph(gm, kwargs)
        if not graph.has_backward:
            return default_partition(
                graph.module, joint_inputs, num_fwd_outputs=graph.num_forward_outputs,
                static_lifetime_input_indices=graph.static_inputs,
                static_lifetime_input_nodes=graph.roles.static_lifetime_input_nodes,
            )  # fmt: skip
        self._own = own = plan_graphs(graph, self._request)
        self.others = {}
        highest = own.plan.profile.peak_bytes
        least = self._other("lowest", copies[0], kwargs, lowest_peak=True, limit_bytes=0)
        if least > highest:
            raise failure("floor", f"lowest plan {least} bytes, torch's own {highest}")
        self._other("between", copies[1], kwargs, limit_bytes=(highest + least) // 2)
        return own.parts.forward, own.parts.backward

    def _other(self, name: str, gm: fx.GraphModule, kwargs: Any, **settings: Any) -> int:
        made = plan_graphs(_training_graph(gm, kwargs), replace(self._request, **settings))
        self.others[name] = made.parts
        return made.plan.profile.peak_bytes

    def _run_graph(self, gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
        interpreter = Interpreter(gm)

        def run(args: list[Any]) -> Any:
            given = list(args)
            args.clear()
            if self._own is None:
                return interpreter.compute(given)
            if kwargs.get("is_backward"):
                return self._run_backward(interpreter, given)
            before = [_copied(value) for value in given]
            state = torch.get_rng_state()
            results = interpreter.compute(given)
            kept = [_copied(value) for value in results[: self._own.parts.num_outputs]]
            self.call = _Call(_names_of_inputs(gm), given, before, state, kept)
            return results

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def _run_backward(self, interpreter: Interpreter, given: list[Any]) -> Any:
        names = _names_of_inputs(interpreter.module)
        tangents = {n: v for n, v in zip(names, given, strict=True) if "tangents" in n}
        gradients = interpreter.compute(given)
        if _has_tokens(self.joint):
            return gradients  # the runtime takes tokens of effects out of torch's own plan
        state = torch.get_rng_state()
        wanted = [*self.call.results, *(_copied(value) for value in gradients)]
        for name, run in {
            "joint graph": self._run_joint,
            **{name: _runner(parts) for name, parts in self.others.items()},
        }.items():
            torch.set_rng_state(self.call.random_state)
            _compare_values(f"{name} beside torch's own plan", wanted, run(self.call, tangents))
        torch.set_rng_state(state)
        return gradients

    def _run_joint(self, call: _Call, tangents: dict[str, Any]) -> list[Any]:
        known = call.inputs_again() | tangents
        # A tangent that the backward does not read makes no difference.
        given = [
            known[n.name] if n.name in known else _zeros(n.meta["val"])
            for n in self.joint.graph.find_nodes(op="placeholder")
        ]
        return Interpreter(self.joint).compute(given)


def _training_graph(gm: fx.GraphModule, kwargs: Any) -> TrainingGraph:
    static = kwargs.get("static_lifetime_input_indices") or []
    return TrainingGraph(gm, kwargs["num_fwd_outputs"], static)


def _runner(parts: Partition) -> Callable[[_Call, dict[str, Any]], list[Any]]:
    def run(call: _Call, tangents: dict[str, Any]) -> list[Any]:
        inputs = call.inputs_again()
        names = _names_of_inputs(parts.forward)
        results = Interpreter(parts.forward).compute([inputs[name] for name in names])
        saved = results[parts.num_outputs :]
        kept = [_copied(value) for value in results[: parts.num_outputs]]
        call.overwrite(inputs)
        given = [tangents[n] for n in _names_of_inputs(parts.backward) if "tangents" in n]
        return [*kept, *Interpreter(parts.backward).compute([*saved, *given])]

    return run


def _has_tokens(module: fx.GraphModule) -> bool:
    return any("with_effects" in str(node.target) for node in module.graph.nodes)


def _names_of_inputs(module: Any) -> list[str]:
    return [node.name for node in module.graph.find_nodes(op="placeholder")]


def _zeros(value: torch.Tensor) -> torch.Tensor:
    return torch.zeros(value.shape, dtype=value.dtype)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _compare_values(what: str, wanted: Sequence[Any], found: Sequence[Any]) -> None:
    def named(values: Sequence[Any]) -> Results:
        tensors = [v if isinstance(v, torch.Tensor) else None for v in values]
        return Results({f"result {i}": v for i, v in enumerate(tensors)})

    if len(wanted) != len(found):
        raise failure(f"wrong, {what}", f"{len(found)} results instead of {len(wanted)}")
    _compare(what, named(wanted), named(found), EXACT)


def _compare(what: str, wanted: Results, found: Results, tolerance: float) -> None:
    differences = wanted.differences(found, tolerance)
    if differences:
        raise failure(f"wrong, {what}", "; ".join(differences[:4]))


def check(program: Program) -> str:
    """What was found: "right", or why there was nothing to compare.

    Raises:
        Failure: it is wrong, or crashed.
    """
    try:
        trial = Trial(program)
        wanted = eager(program, trial)
    except Exception as error:
        return f"eager refuses: {type(error).__name__}"
    if not wanted.are_finite:
        return "eager overflows"
    inductor = {"fallback_random": True} if program.fallback_random else {}
    plans = Plans(parse({"inductor": inductor}))
    torch._dynamo.reset()
    compiled = torch.compile(
        program.namespace["Model"].forward, backend=plans.compile, fullgraph=True, dynamic=False
    )
    try:
        found = trial.run(compiled)
        if program.draws_as_eager:
            tolerance = AUTOCAST if program.is_rounded else BESIDE_EAGER[program.dtype]
            _compare("torch's own plan beside eager", wanted, found, tolerance)
    except Exception as raised:
        error = unwrapped(raised)
        if isinstance(error, Failure):
            raise error from None
        if isinstance(error, UnsupportedError):
            return f"refused: {str(error)[:60]}"
        if isinstance(error, SatcompileError):
            raise failure(type(error).__name__, str(error)) from error
        torch._dynamo.reset()
        try:
            trial.run(_compiled_by_torch(program))
        except Exception as also:
            theirs = unwrapped(also)
            return f"torch refuses: {type(theirs).__name__}: {general(str(theirs))}"[:150]
        raise failure(f"crash, {type(error).__name__}", str(error)) from error
    return "right"


def _compiled_by_torch(program: Program) -> Callable[..., Any]:
    """The same graphs as torch's own partitioner makes them."""
    settings = {"fallback_random": True} if program.fallback_random else {}

    def inner(gm: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Any:
        interpreter = Interpreter(gm)

        def run(args: list[Any]) -> Any:
            return interpreter.compute(args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        return compile_fx(gm, inputs, inner_compile=inner, config_patches=settings)

    return torch.compile(
        program.namespace["Model"].forward, backend=backend, fullgraph=True, dynamic=False
    )
