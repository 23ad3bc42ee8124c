"""A training program as data, and as the script that it prints."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

ROWS, COLUMNS = 6, 8  # of most values

PROLOGUE = '''\
import functools

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)


def save_products(ctx, operator, *args, **kwargs):
    products = ("mm", "bmm", "addmm", "_scaled_dot_product_flash_attention_for_cpu", "topk")
    if operator.__name__.split(".")[0] in products:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


selective = functools.partial(create_selective_checkpoint_contexts, save_products)


class Cube(torch.autograd.Function):
    """Saves its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x / 3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x * x


class Squash(torch.autograd.Function):
    """Saves its result."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class SignAndSize(torch.autograd.Function):
    """Two results, one without a gradient."""

    @staticmethod
    def forward(ctx, x):
        sign, size = torch.sign(x), torch.sqrt(x * x + 1)
        ctx.mark_non_differentiable(sign)
        ctx.save_for_backward(x, size)
        return sign, size

    @staticmethod
    def backward(ctx, _, gradient):
        x, size = ctx.saved_tensors
        return gradient * x / size


class StraightThrough(torch.autograd.Function):
    """A gradient that is not its function's."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 4) / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone()
'''

EPILOGUE = '''\
def step(run, inputs, number):
    """One step: what the model returns, and the gradients of its parameters and inputs."""
    leaves = [*model.parameters(), *(x for x in inputs if x.requires_grad)]
    for leaf in leaves:
        leaf.grad = None
    torch.manual_seed(number)
    outputs = run(*inputs)
    trained = [o for o, coefficient in zip(outputs, COEFFICIENTS) if coefficient]
    scales = [torch.full_like(o, c) for o, c in zip(outputs, COEFFICIENTS) if c]
    torch.autograd.backward(trained, scales)
    return [*(o.detach().clone() for o in outputs), *(leaf.grad for leaf in leaves)]


found = []
for run in (
    lambda *inputs: model(*inputs),
    torch.compile(Model.forward, backend="sat", options=OPTIONS),
):
    model, results = make_model(), []
    bound = run if not found else functools.partial(run, model)
    for number in range(2):
        results += step(bound, make_inputs(number), number)
    found.append([*results, *model.buffers()])
for position, (wanted, got) in enumerate(zip(*found)):
    if wanted is None or got is None:
        assert wanted is got, position
        continue
    error = (wanted.double() - got.double()).abs().max().item()
    print(f"{position}: off by {error:.1e}" + (" WRONG" if error > 1e-6 else ""))
'''


@dataclass(frozen=True)
class Instruction:
    """Some lines of the forward.

    Attributes:
        operator: its name among the operators of the builder.
        depth: of the blocks it stands in.
    """

    operator: str
    lines: tuple[str, ...]
    depth: int = 0


@dataclass(frozen=True)
class Tensor:
    """What a model or its caller makes before the first step: ``value`` is an expression."""

    name: str
    value: str


@dataclass(frozen=True)
class Program:
    """A model, its inputs, and the order in which its forward computes.

    Attributes:
        outputs: names of what the forward returns, its loss first.
        coefficients: what the gradients of the outputs are filled with; 0 for an output that
            has none.
        dtype: of parameters, buffers and inputs.
        fallback_random: whether random numbers are to be drawn as eager draws them.
    """

    parameters: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[str, ...]
    coefficients: tuple[float, ...]
    dtype: str = "float64"
    fallback_random: bool = True

    @property
    def operators(self) -> tuple[str, ...]:
        return tuple(instruction.operator for instruction in self.instructions)

    @property
    def is_random(self) -> bool:
        return any(name.startswith("random") for name in self.operators)

    @property
    def writes_buffers(self) -> bool:
        return any(name.startswith("buffer") for name in self.operators)

    @property
    def draws_as_eager(self) -> bool:
        """Whether eager draws the same numbers. Torch's compiler writes ``bernoulli`` as a comparison
        of uniform numbers, and draws others even with ``fallback_random``."""
        own = any(name.startswith("random own") for name in self.operators)
        return not self.is_random or (self.fallback_random and not own)

    @property
    def is_rounded(self) -> bool:
        """Whether some of it is computed in less than its dtype."""
        return "autocast" in self.operators

    def script(self, options: dict[str, Any] | None = None) -> str:
        """A script that compares the program, compiled with ``options``, with eager."""
        chosen = {"inductor": {"fallback_random": True}} if self.fallback_random else {}
        chosen |= options or {}
        return "\n\n".join([self.source(), f"OPTIONS = {chosen!r}\n\n", EPILOGUE])

    def source(self) -> str:
        """The model and its inputs as a module."""
        model = ["class Model(torch.nn.Module):", "    def __init__(self):"]
        model += ["        super().__init__()"]
        model += [f"        self.{t.name} = torch.nn.Parameter({t.value})" for t in self.parameters]
        model += [f'        self.register_buffer("{t.name}", {t.value})' for t in self.buffers]
        names = ", ".join(t.name for t in self.inputs)
        model += ["", f"    def forward(self, {names}):"]
        for instruction in self.instructions:
            indent = "    " * (instruction.depth + 2)
            model += [indent + line for line in instruction.lines]
        model += [f"        return {', '.join(self.outputs)},"]
        inputs = ["def make_inputs(number):", "    torch.manual_seed(100 + number)"]
        inputs += [f"    {t.name} = {t.value}" for t in self.inputs]
        inputs += [f"    return {names},"]
        make = ["def make_model():", "    torch.manual_seed(0)", "    return Model()"]
        constants = [f"DTYPE = torch.{self.dtype}", f"COEFFICIENTS = {self.coefficients!r}"]
        parts = [[PROLOGUE], model, inputs, make, constants]
        return "\n\n\n".join("\n".join(lines) for lines in parts)

    @cached_property
    def namespace(self) -> dict[str, Any]:
        """The module of ``source``, run."""
        return run_source(self.source())


_sources = 0


def run_source(source: str) -> dict[str, Any]:
    """Run a module under a name of its own, which tracebacks and Dynamo find."""
    global _sources
    _sources += 1
    name = f"<program {_sources}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    namespace: dict[str, Any] = {"__name__": "program"}
    exec(compile(source, name, "exec"), namespace)
    return namespace


@dataclass(frozen=True)
class Results:
    """What a program gave over its steps, by name: outputs, gradients, and buffers at the end."""

    values: dict[str, torch.Tensor | None]

    def differences(
        self, other: Results, relative: float, names: Sequence[str] | None = None
    ) -> list[str]:
        """What is not the same within a tolerance of the largest entry of each value."""
        found = []
        for name, wanted in self.values.items():
            if names is None or name in names:
                found += _difference(name, wanted, other.values[name], relative)
        return found

    @property
    def are_finite(self) -> bool:
        """Whether all can be compared."""
        return all(
            bool(torch.isfinite(value).all()) and float(value.abs().max()) < 1e6
            for value in self.values.values()
            if value is not None and value.is_floating_point() and value.numel()
        )


def _difference(
    name: str, wanted: torch.Tensor | None, got: torch.Tensor | None, relative: float
) -> list[str]:
    if wanted is None or got is None:
        # A gradient that is zero may be left out by either.
        given = got if wanted is None else wanted
        same = given is None or not bool(given.any())
        return [] if same else [f"{name} is {'given' if wanted is None else 'missing'}"]
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return [f"{name} is {got.dtype} {tuple(got.shape)}, not {wanted.dtype} {wanted.shape}"]
    if not wanted.numel():
        return []
    scale = max(1.0, float(wanted.double().abs().max()))
    error = float((wanted.double() - got.double()).abs().max()) / scale
    return [f"{name} is off by {error:.1e}"] if not error <= relative else []


class Trial:
    """A model and its inputs, made again for each run."""

    def __init__(self, program: Program, steps: int = 2) -> None:
        self.program, self.steps = program, steps
        self.model: torch.nn.Module = program.namespace["make_model"]()
        self._state = {k: v.clone() for k, v in self.model.state_dict().items()}

    def run(self, forward: Callable[..., Any]) -> Results:
        """Some steps of ``forward(model, *inputs)``."""
        self.model.load_state_dict(self._state)
        values: dict[str, torch.Tensor | None] = {}
        for number in range(self.steps):
            inputs = self.inputs(number)
            outputs = self.step(forward, inputs, number)
            for name, output in zip(self.program.outputs, outputs, strict=True):
                values[f"output {name} of step {number}"] = output.detach().clone()
            for name, leaf in self._leaves(inputs):
                values[f"gradient of {name} in step {number}"] = leaf.grad
            for tensor, value in zip(self.program.inputs, inputs, strict=True):
                values[f"input {tensor.name} after step {number}"] = value.detach().clone()
        for name, buffer in self.model.named_buffers():
            values[f"buffer {name}"] = buffer.clone()
        self.clear_gradients()
        return Results(values)

    def inputs(self, number: int) -> tuple[torch.Tensor, ...]:
        return self.program.namespace["make_inputs"](number)

    def step(
        self, forward: Callable[..., Any], inputs: tuple[torch.Tensor, ...], number: int
    ) -> tuple[torch.Tensor, ...]:
        self.clear_gradients()
        torch.manual_seed(number)
        outputs = forward(self.model, *inputs)
        self.backward(outputs)
        return outputs

    def backward(self, outputs: tuple[torch.Tensor, ...]) -> None:
        pairs = list(zip(outputs, self.program.coefficients, strict=True))
        trained = [output for output, coefficient in pairs if coefficient]
        torch.autograd.backward(trained, [torch.full_like(o, c) for o, c in pairs if c])

    def clear_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def _leaves(self, inputs: Sequence[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        pairs = zip(self.program.inputs, inputs, strict=True)
        given = [(tensor.name, value) for tensor, value in pairs if value.requires_grad]
        return [*self.model.named_parameters(), *given]


def eager(program: Program, trial: Trial) -> Results:
    """What the program means: its regions run plainly, and what was saved for the backward is
    kept from being overwritten.

    A checkpoint changes no value, but its forward runs twice in eager, and so do its writes.
    """
    namespace = program.namespace
    kept = namespace["checkpoint"]
    namespace["checkpoint"] = lambda region, *args, **_: region(*args)
    forward = namespace["Model"].forward
    try:
        return trial.run(forward)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            return trial.run(forward)
    finally:
        namespace["checkpoint"] = kept
