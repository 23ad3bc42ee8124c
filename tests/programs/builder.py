"""From genes to a program.

A gene is a few small numbers: which operator, of which values. Each instruction is run as it is
chosen, on the values of the earlier ones, so that shapes are known; what torch refuses is left
out. Numbers count back from the latest value, and zero is the simplest choice: genes shrink to
short programs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from tests.programs.program import (
    COLUMNS,
    PROLOGUE,
    ROWS,
    Instruction,
    Program,
    Tensor,
    run_source,
)

Gene = Sequence[int]
Operator = Callable[["Builder"], Any]

_LARGEST = 1e3  # values beyond are left out: later ones would overflow
_prologue = run_source(PROLOGUE)


class NotPossible(Exception):
    """No value fits, or torch refuses the instruction."""


class Builder:
    """A program under construction.

    Attributes:
        values: names of tensors of floating point that an instruction may read.
        indices: names of integer tensors.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.module = torch.nn.Module()
        self.values: list[str] = []
        self.indices: list[str] = []
        self._environment: dict[str, Any] = {**_prologue, "DTYPE": dtype, "self": self.module}
        self._parameters: list[Tensor] = []
        self._buffers: list[Tensor] = []
        self._inputs: list[Tensor] = []
        self._instructions: list[Instruction] = []
        self._read: set[str] = set()
        self._blocks: list[_Block] = []
        self._names = 0
        self._gene: list[int] = []
        self._operator = ""
        self._take_inputs()

    # -- what operators ask ----------------------------------------------------------------

    def number(self, below: int) -> int:
        """The gene's next number."""
        return self._gene.pop(0) % below if self._gene else 0

    def value(self, fits: Callable[[torch.Tensor], bool] = lambda _: True) -> str:
        """A value that an instruction reads."""
        found = [name for name in self.values if fits(self.tensor(name))]
        if not found:
            raise NotPossible
        name = found[-1 - self.number(len(found))]
        self._read.add(name)
        return name

    def matrix(self) -> str:
        return self.value(lambda t: t.dim() == 2 and t.numel() > 0)

    def like(self, name: str) -> str:
        """A value of the same shape."""
        shape, dtype = self.tensor(name).shape, self.tensor(name).dtype
        return self.value(lambda t: t.shape == shape and t.dtype == dtype)

    def index(self, fits: Callable[[torch.Tensor], bool] = lambda _: True) -> str:
        found = [name for name in self.indices if fits(self.tensor(name))]
        if not found:
            raise NotPossible
        return found[-1 - self.number(len(found))]

    def tensor(self, name: str) -> torch.Tensor:
        return eval(name, self._environment)

    def size(self, name: str, dim: int) -> int:
        return self.tensor(name).shape[dim]

    def parameter(self, *shape: int) -> str:
        """A parameter, new or one of the same shape that is in use."""
        text = ", ".join(map(str, shape))
        value = f"torch.randn({text}, dtype=DTYPE) / {max(shape[-1], 1)} ** 0.5"
        known = [t.name for t in self._parameters if t.value == value]
        if known and self.number(3) == 1:
            return f"self.{known[-1]}"
        name = f"w{len(self._parameters)}"
        self._parameters.append(Tensor(name, value))
        setattr(self.module, name, torch.nn.Parameter(eval(value, self._environment)))
        return f"self.{name}"

    def buffer(self, value: str, new: bool = False) -> str:
        """A buffer that begins as the expression ``value``, new or one that is in use."""
        known = [t.name for t in self._buffers if t.value == value]
        if known and not new:
            return f"self.{known[-1 - self.number(len(known))]}"
        name = f"b{len(self._buffers)}"
        self._buffers.append(Tensor(name, value))
        self.module.register_buffer(name, eval(value, self._environment))
        return f"self.{name}"

    def emit(self, expression: str, results: int = 1) -> list[str]:
        """``v7 = expression``; floating values and indices among the results are known later."""
        names = [self._new_name() for _ in range(results)]
        self.do(f"{', '.join(names)} = {expression}")
        if not all(_is_moderate(self.tensor(name)) for name in names):
            self._instructions.pop()
            raise NotPossible
        for name in names:
            tensor = self.tensor(name)
            if tensor.is_floating_point():
                self.values.append(name)
            elif tensor.dtype == torch.int64:
                self.indices.append(name)
        return names

    def do(self, *statements: str) -> None:
        """Statements without a result."""
        for statement in statements:
            try:
                exec(statement, self._environment)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                raise NotPossible(str(error)) from error
        self._write(*statements)

    def _write(self, *lines: str) -> None:
        self._instructions.append(Instruction(self._operator, lines, len(self._blocks)))

    # -- blocks ----------------------------------------------------------------------------

    def open_region(self, length: int, arguments: str) -> None:
        """A checkpointed region around the next ``length`` genes."""
        name = self._new_name("region")
        block = _Block(length, list(self.values), list(self.indices), name, arguments)
        self._write(f"def {name}():")
        self._blocks.append(block)

    def open_context(self, length: int, expression: str) -> None:
        """A ``with`` around the next ``length`` genes."""
        block = _Block(length, list(self.values), list(self.indices))
        block.contexts.enter_context(eval(expression, self._environment))
        self._write(f"with {expression}:", "    pass")
        self._blocks.append(block)

    @property
    def depth(self) -> int:
        return len(self._blocks)

    @property
    def is_inside_region(self) -> bool:
        return any(block.region is not None for block in self._blocks)

    def _close(self) -> None:
        block = self._blocks[-1]
        block.contexts.close()
        if block.region is None:
            self._blocks.pop()
            return
        made = self.values[len(block.values) :][-2:]
        if not made:
            self._operator = "copy"
            try:
                made = self.emit(f"{self.values[-1]} * 1.0")
            except NotPossible:
                made = [self.values[-1]]
        self._operator = "checkpoint"
        self._write(f"return {', '.join(made)}")
        self._blocks.pop()
        self.values, self.indices = block.values, block.indices
        names = [self._new_name() for _ in made]
        self._write(f"{', '.join(names)} = checkpoint({block.region}, {block.arguments})")
        for name, inner in zip(names, made, strict=True):
            self._environment[name] = self.tensor(inner)
        self.values += names

    # -- the whole -------------------------------------------------------------------------

    def add(self, operator: str, build: Operator, gene: Iterable[int]) -> None:
        """One instruction, or none where it is not possible."""
        self._gene, self._operator = list(gene), operator
        kept = len(self._parameters), len(self._buffers)
        before = len(self._instructions)
        try:
            expression = build(self)
            if isinstance(expression, str):
                self.emit(expression)
            elif isinstance(expression, tuple):
                self.emit(*expression)
        except NotPossible:
            if len(self._instructions) == before:
                self._forget(*kept)
        for block in self._blocks:
            block.length -= 1
        while self._blocks and self._blocks[-1].length < 0:
            self._close()

    def _forget(self, parameters: int, buffers: int) -> None:
        """What an instruction asked for that there is none of."""
        for tensor in [*self._parameters[parameters:], *self._buffers[buffers:]]:
            delattr(self.module, tensor.name)
        del self._parameters[parameters:], self._buffers[buffers:]

    def finish(self, shown: int, fallback_random: bool) -> Program:
        """The program; bits of ``shown`` say which values it returns beside its loss."""
        while self._blocks:
            self._close()
        self._operator = "loss"
        trained = [n for n in self.values if self.tensor(n).requires_grad]
        if not trained:
            trained = self._fallback_value()
        trained = [n for n in trained if self._is_readable(n)] or self._fallback_value()
        ends = [n for n in trained if n not in self._read][-6:] or trained[-1:]
        terms = " + ".join(f"({name} * {0.5 + 0.25 * i}).mean()" for i, name in enumerate(ends))
        name = self._new_name("loss")
        self.do(f"{name} = {terms}")
        shown_values = [n for i, n in enumerate(reversed(self.values)) if shown >> i & 1]
        others = [n for n in shown_values if self._is_readable(n)][:4]
        return Program(
            tuple(self._parameters),
            tuple(self._buffers),
            tuple(self._inputs),
            tuple(self._instructions),
            (name, *others),
            (1.0, *(self._coefficient(n) for n in others)),
            str(self.dtype).removeprefix("torch."),
            fallback_random,
        )

    def _is_readable(self, name: str) -> bool:
        """Some views are not, once their base was written into."""
        try:
            self.tensor(name).mean()
        except RuntimeError:
            return False
        return True

    def _fallback_value(self) -> list[str]:
        weight = self.parameter(COLUMNS)
        return self.emit(f"torch.tanh(x0 * {weight})")

    def _coefficient(self, name: str) -> float:
        """Views of what exists before the step have no gradient of the graph's own."""
        tensor = self.tensor(name)
        outside = [*self.module.parameters(), *self.module.buffers()]
        outside += [self.tensor(t.name) for t in self._inputs]
        kept = {t.untyped_storage().data_ptr() for t in outside}
        is_own = tensor.untyped_storage().data_ptr() not in kept
        return 0.5 if tensor.requires_grad and is_own else 0.0

    def _take_inputs(self) -> None:
        shape = f"{ROWS}, {COLUMNS}"
        self._take("x1", f"torch.randn({shape}, dtype=DTYPE)", self.values)
        self._take("labels", f"torch.randint({COLUMNS}, ({ROWS},))", self.indices)
        self._take("x0", f"torch.randn({shape}, dtype=DTYPE, requires_grad=True)", self.values)

    def _take(self, name: str, value: str, names: list[str]) -> None:
        self._inputs.append(Tensor(name, value))
        self._environment[name] = eval(value, self._environment)
        names.append(name)

    def _new_name(self, kind: str = "v") -> str:
        self._names += 1
        return f"{kind}{self._names}"


class _Block:
    """A block that closes after some more genes; a region has a name and arguments."""

    def __init__(
        self,
        length: int,
        values: list[str],
        indices: list[str],
        region: str | None = None,
        arguments: str = "",
    ) -> None:
        self.length, self.values, self.indices = length, values, indices
        self.region, self.arguments = region, arguments
        self.contexts = contextlib.ExitStack()


def _is_moderate(tensor: Any) -> bool:
    if not isinstance(tensor, torch.Tensor):
        return False
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor.numel() > 0
    return tensor.numel() <= 4096 and bool((tensor.detach().abs() < _LARGEST).all())


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def build(
    genes: Iterable[Gene], settings: Gene, families: Sequence[Sequence[tuple[str, Operator]]]
) -> Program:
    """The program of some genes. ``settings``: its dtype, outputs, and random numbers."""
    rounded, shown, own_random = settings
    with _seeded():
        builder = Builder(torch.float32 if rounded else torch.float64)
        for kind, which, *numbers in genes:
            family = families[kind % len(families)]
            name, operator = family[which % len(family)]
            builder.add(name, operator, numbers)
        return builder.finish(shown, not own_random)
