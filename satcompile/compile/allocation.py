"""The allocation sequence of Inductor's generated code, found without running it.

Inductor's Python wrapper allocates each buffer, calls kernels, and deletes names. We execute
the same wrapper with stand-ins: allocations make a ``Block`` that only counts bytes, kernels
do nothing, views share their block, and operators without an ``out=`` run on fake tensors to
learn their results' sizes. Python's own reference counting then frees a block exactly where
the real run would free the real one.

``satcompile.planner.workspace`` calls an operator to measure the memory that it takes and returns
inside one call. Among operators with an ``out=``, only matrix products take any: on a CPU in half
precision, on CUDA from torch 2.15 on.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import CodeType
from typing import Any

import torch

from satcompile.planner.workspace import (
    Zeros,
    may_need_workspace,
    product_takes_workspace,
    workspace_bytes,
)
from satcompile.solver.base.simulator import Event, Profile, replay
from satcompile.torch_compat.aot import incoming_gradients_stay
from satcompile.torch_compat.inductor import extern_kernels
from satcompile.torch_compat.tensors import fake_tensor_mode, storage_address
from satcompile.torch_compat.trees import pytree
from satcompile.updates.kernels.table import ROW_BYTES

_GENERATED = "<generated>"  # the file name of the text that we execute
_LINES = "_lines_of_the_generated_text"
_PARTITION = "partition_"  # followed by a number; the runner has the partitions in this order


CUDA_UNIT_BYTES = 512  # what torch's caching allocator rounds to (kMinBlockSize)


class UnreadableCode(Exception):
    """The generated code has a form that this module does not know; the message says which."""


class Block:
    """A storage that only counts bytes; it logs its allocation and its end of life.

    ``kind`` says what the block holds: an output, a gradient, or a value saved for the backward.
    Until the walk finds out, the block counts as a temporary.
    """

    def __init__(self, num_bytes: int, label: str, log: list[BlockEvent]) -> None:
        self.num_bytes, self.label, self.kind, self._log = num_bytes, label, _Kind(), log
        log.append(BlockEvent(num_bytes, label, kind=self.kind))

    def __del__(self) -> None:
        self._log.append(BlockEvent(-self.num_bytes, self.label, kind=self.kind))


@dataclass(slots=True, eq=False)
class _Kind:
    """The kind of a block. Its events share the object, because they outlive the block."""

    name: str = "temporaries"


@dataclass(frozen=True, slots=True)
class BlockEvent(Event):
    """An event that knows the kind of its block."""

    kind: _Kind = field(default_factory=_Kind)


class _Path:
    """One path through code that branches on values (``torch.cond``). A walk has no values: its
    script answers each branch with yes or no, and ``next`` moves on to another script."""

    _MOST_DECISIONS = 6

    def __init__(self) -> None:
        self._script: list[bool] = []
        self._taken = 0

    def decide(self) -> bool:
        if self._taken == len(self._script):
            if len(self._script) == self._MOST_DECISIONS:  # or a loop whose end depends on a value
                raise UnreadableCode(f"over {self._MOST_DECISIONS} branches are taken by values")
            self._script.append(True)
        self._taken += 1
        return self._script[self._taken - 1]

    def next(self) -> bool:
        """Go on to the next path, in the order of binary numbers; False after the last one."""
        self._taken = 0
        while self._script and not self._script[-1]:
            self._script.pop()
        if self._script:
            self._script[-1] = False
        return bool(self._script)


_path: ContextVar[_Path] = ContextVar("path")


class _Unknown:
    """A number in a tensor. Its value is unknown, so code may only branch on it."""

    def __bool__(self) -> bool:
        return _path.get().decide()

    def __eq__(self, other: object) -> bool:
        """Torch 2.14 numbers the branches and compares. Both answers are walked. At most one such
        comparison is true, but the walk does not know that: it walks more paths than can run."""
        if isinstance(other, int):
            return _path.get().decide()
        # Python's own answer would be no, and only one of several paths would be walked.
        raise UnreadableCode("a value of a tensor is compared")


def _whole_number(value: Any) -> Any:
    """``int(value)``; an unknown number stays as it is, because Python's ``int`` cannot take it."""
    return value if isinstance(value, _Unknown) else int(value)


@dataclass(slots=True)
class Tensor:
    """A view of a block, with the attributes of a tensor that the wrapper's code may use."""

    block: Block | None
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    offset: int = 0
    on_cpu: bool = True

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def stride(self, dim: int | None = None) -> Any:
        return self.strides if dim is None else self.strides[dim]

    def item(self) -> _Unknown:
        return _Unknown()

    def __getitem__(self, index: Any) -> Any:
        return self._method(operator.getitem)(index)

    def __getattr__(self, name: str) -> Any:
        """Any other method of a tensor. Generated code clears parts of a workspace before a kernel
        starts, and sums them up after it."""
        if name.startswith("_") or not callable(getattr(torch.Tensor, name, None)):
            raise AttributeError(f"a stand-in for a tensor has no {name!r}")
        return self._method(getattr(torch.Tensor, name))

    def _method(self, method: Callable[..., Any]) -> Callable[..., Any]:
        assert self.block is not None
        log, on_cpu = self.block._log, self.on_cpu

        def call(*args: Any, **kwargs: Any) -> Any:
            result = _run_fake(method, (self, *args), kwargs, log, on_cpu)
            if isinstance(result, Tensor) and result.block is not self.block:
                _add_workspace(method, (self, *args), kwargs, log, on_cpu)
            return result

        return call

    def fake(self) -> torch.Tensor:
        span = storage_elements(self.shape, self.strides) + self.offset
        return torch.empty(span, dtype=self.dtype).as_strided(self.shape, self.strides, self.offset)


def storage_elements(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements that a strided tensor spans in memory; ``empty_strided`` allocates as many."""
    if any(extent == 0 for extent in shape):
        return 0
    return 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))


@dataclass(frozen=True)
class TensorSpec:
    """A tensor given to generated code; ``name`` is the name of its placeholder.

    Sizes and strides are ints or sympy expressions. ``hints`` has the concrete values of both,
    sizes first, for which the graph was compiled.
    """

    name: str
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    dtype: torch.dtype
    hints: tuple[int, ...]

    def at(self, sizes: Mapping[Any, int] | None) -> TensorSpec:
        if sizes is None:
            rank = len(self.shape)
            shape, strides = self.hints[:rank], self.hints[rank:]
        else:
            shape = tuple(_evaluate(extent, sizes) for extent in self.shape)
            strides = tuple(_evaluate(stride, sizes) for stride in self.strides)
        return TensorSpec(self.name, shape, strides, self.dtype, (*shape, *strides))


@dataclass(frozen=True)
class ScalarSpec:
    """A symbolic size given to generated code."""

    expression: Any
    hint: int


def _evaluate(expression: Any, sizes: Mapping[Any, int]) -> int:
    if isinstance(expression, int):
        return expression
    found = sizes.get(expression)  # most expressions are a single symbol
    return int(expression.subs(sizes)) if found is None else found


@dataclass(frozen=True)
class GeneratedGraph:
    """One compiled graph: the text of its wrapper, its arguments and its results.

    Attributes:
        source: text of the wrapper module.
        inputs: for each argument a ``TensorSpec``, a ``ScalarSpec``, or the number that is passed.
        outputs: for each result the name of its node (the backward's placeholders have the same).
    """

    source: str
    inputs: Sequence[Any]
    outputs: Sequence[str | None]

    def at_hints(self) -> GeneratedGraph:
        """The graph with the sizes that it was compiled for."""
        return self._at(None)

    def at_sizes(self, sizes: Mapping[Any, int]) -> GeneratedGraph:
        """The graph with concrete values for the symbols in its sizes."""
        return self._at(sizes)

    def _at(self, sizes: Mapping[Any, int] | None) -> GeneratedGraph:
        inputs = []
        for spec in self.inputs:
            if isinstance(spec, TensorSpec):
                spec = spec.at(sizes)
            elif isinstance(spec, ScalarSpec):
                spec = spec.hint if sizes is None else _evaluate(spec.expression, sizes)
            inputs.append(spec)
        return GeneratedGraph(self.source, inputs, self.outputs)


@dataclass(frozen=True)
class Figures:
    """The results of a walk, in bytes as the device's allocator gives them out.

    Attributes:
        forward_bytes: peak of the forward's allocations.
        backward_bytes: peak of the backward, including bytes that the forward left alive.
        held_bytes: alive between the two.
        output_bytes: the part of ``held_bytes`` that the caller may keep after the backward.
        gradient_bytes: gradients of leaves, alive after the backward.
    """

    forward_bytes: int
    backward_bytes: int
    held_bytes: int
    output_bytes: int
    gradient_bytes: int

    @property
    def peak_bytes(self) -> int:
        return max(self.forward_bytes, self.backward_bytes)


@dataclass(frozen=True)
class StepWalk:
    """Events of a step's two calls; sizes count only what the step allocates.

    Attributes:
        forward, backward: events in order. The backward's begin with allocations between the two
            calls (incoming gradients).
        saved_bytes: alive between forward and backward, without what the user holds.
        unit_bytes: the device's allocator gives out multiples of it. Events and ``peak_bytes``
            count the bytes that are asked for.
    """

    forward: list[BlockEvent]
    backward: list[BlockEvent]
    saved_bytes: int
    unit_bytes: int = 1

    def profiles(self) -> tuple[Profile, Profile]:
        forward = replay(self.forward)
        return forward, replay(self.backward, start_bytes=forward.end_bytes)

    @cached_property
    def figures(self) -> Figures:
        given = self if self.unit_bytes == 1 else self._as_given_out()
        forward, backward = given.profiles()
        return Figures(
            forward.peak_bytes,
            backward.peak_bytes,
            given.held_bytes,
            given.bytes_at_end("outputs"),
            given.bytes_at_end("gradients"),
        )

    def _as_given_out(self) -> StepWalk:
        unit = self.unit_bytes

        def rounded(events: list[BlockEvent]) -> list[BlockEvent]:
            return [
                BlockEvent((-(-abs(e.num_bytes) // unit) * unit) * (1 if e.num_bytes > 0 else -1),
                           e.label, kind=e.kind)
                for e in events
            ]  # fmt: skip

        return StepWalk(rounded(self.forward), rounded(self.backward), self.saved_bytes)

    @cached_property
    def peak_bytes(self) -> int:
        """The most bytes that the step asks for at any one time."""
        return max(profile.peak_bytes for profile in self.profiles())

    @property
    def held_bytes(self) -> int:
        """Bytes alive between forward and backward: saved values and outputs."""
        return sum(event.num_bytes for event in self.forward)

    def bytes_at_end(self, kind: str) -> int:
        """Bytes of one kind of block that are alive when the backward has returned."""
        events = (*self.forward, *self.backward)
        return sum(event.num_bytes for event in events if event.kind.name == kind)

    def at_peak(self) -> tuple[dict[str, int], str, bool]:
        """Bytes alive at the step's peak by kind, the label of the allocation that made the peak,
        and whether the peak is in the backward."""
        forward, backward = self.profiles()
        in_backward = backward.peak_bytes >= forward.peak_bytes
        profile = backward if in_backward else forward
        events = list(self.forward) if in_backward else []
        events += (self.backward if in_backward else self.forward)[: profile.peak_index + 1]
        by_kind: dict[str, int] = {}
        for event in events:
            by_kind[event.kind.name] = by_kind.get(event.kind.name, 0) + event.num_bytes
        return {k: v for k, v in by_kind.items() if v}, profile.peak_label, in_backward


def walk_step(
    forward: GeneratedGraph,
    backward: GeneratedGraph | None,
    num_outputs: int,
    transient_outputs: Iterable[int] = (),
    leaf_gradients: Iterable[int] = (),
) -> StepWalk:
    """The allocation events of a forward and the backward that follows it.

    If the code branches on values, these are the events of the path with the highest peak.

    Args:
        forward, backward: the generated graphs; ``backward`` None for a forward alone.
        num_outputs: how many of the forward's results go to its caller; the rest is saved.
        transient_outputs: results that the caller drops at once.
        leaf_gradients: results of the backward that become some leaf's ``.grad``.

    Raises:
        UnreadableCode: the generated text has a form that cannot be followed.
    """
    path = _Path()
    walks: list[StepWalk] = []
    token = _path.set(path)
    try:
        while not walks or path.next():
            walks.append(
                _walk_path(
                    forward, backward, num_outputs, set(transient_outputs), set(leaf_gradients)
                )
            )
    finally:
        _path.reset(token)
    return max(walks, key=lambda walk: (walk.figures.peak_bytes, walk.held_bytes))


def _walk_path(
    forward: GeneratedGraph,
    backward: GeneratedGraph | None,
    num_outputs: int,
    transient_outputs: set[int],
    leaf_gradients: set[int],
) -> StepWalk:
    log: list[BlockEvent] = []
    resident = [_resident_input(spec, log) for spec in forward.inputs]
    log.clear()
    results = _call(forward, list(resident), log)
    held = [r for i, r in enumerate(results[:num_outputs]) if i not in transient_outputs]
    held_blocks = {id(r.block) for r in (*held, *resident) if isinstance(r, Tensor)}
    _call_it("saved for backward", results[num_outputs:])
    _call_it("outputs", results[:num_outputs])
    saved_blocks = {
        id(r.block): r.block.num_bytes
        for r in results[num_outputs:]
        if isinstance(r, Tensor) and r.block is not None and id(r.block) not in held_blocks
    }
    walked_forward = list(log)
    log.clear()
    texts = [graph.source for graph in (forward, backward) if graph is not None]
    unit_bytes = 1 if all(map(runs_on_cpu, texts)) else CUDA_UNIT_BYTES
    if backward is None:
        return StepWalk(walked_forward, [], 0, unit_bytes)
    by_name = dict(zip(forward.outputs, results, strict=True))
    args: list[Any] = []
    roots: list[Tensor] = []  # held until the backward returns, by ``loss.backward()`` or by torch
    for spec in backward.inputs:
        if not isinstance(spec, TensorSpec):
            args.append(spec)
        elif spec.name in by_name:
            args.append(by_name[spec.name])
        else:
            args.append(_resident_input(spec, log, label="incoming gradient"))
            _call_it("incoming gradients", args[-1:])
            is_of_loss = spec.hints[: len(spec.shape)] == (1,) * len(spec.shape)
            if is_of_loss or incoming_gradients_stay():
                roots.append(args[-1])
    by_name.clear()
    results = []
    gradients = _call(backward, args, log)
    _call_it("input gradients", gradients)
    _accumulate(gradients, leaf_gradients, forward.inputs, log, unit_bytes == 1)
    walk = StepWalk(walked_forward, list(log), sum(saved_blocks.values()), unit_bytes)
    del gradients, held, resident, roots
    return walk


def _accumulate(
    gradients: list[Any],
    leaves: set[int],
    inputs: Sequence[Any],
    log: list[BlockEvent],
    on_cpu: bool,
) -> None:
    """Do what autograd does with gradients of leaves (``AccumulateGrad``). It keeps a gradient that
    has the layout of the leaf and no other reference, and a copy of any other."""
    for position in sorted(leaves & set(range(len(gradients)))):
        gradient, leaf = gradients[position], inputs[position]
        if not isinstance(gradient, Tensor) or gradient.block is None:
            continue
        wanted = leaf.strides if _is_dense(leaf.shape, leaf.strides) else _row_major(leaf.shape)
        is_shared = any(other is gradient for other in gradients[position + 1 :])
        kind = gradient.block.kind
        if is_shared or not _is_laid_out(gradient, wanted):
            gradients[position], kind = _copied(gradient, wanted, log, on_cpu)
        kind.name = "gradients"


def _copied(
    tensor: Tensor, strides: Sequence[int], log: list[BlockEvent], on_cpu: bool
) -> tuple[Tensor, _Kind]:
    """A copy in another layout, and the kind of its block."""
    block = Block(math.prod(tensor.shape) * tensor.dtype.itemsize, "gradient's copy", log)
    copy = replace(tensor, block=block, strides=tuple(strides), offset=0)
    if on_cpu:  # the copy transposes a matrix by way of a small square
        _add_workspace(torch.ops.aten.copy.default, (copy, tensor), {}, log, on_cpu)
    return copy, block.kind


def _is_laid_out(tensor: Tensor, strides: Sequence[int]) -> bool:
    """Whether the tensor has these strides; dimensions of size one do not count."""
    return all(
        extent == 1 or found == wanted
        for extent, found, wanted in zip(tensor.shape, tensor.strides, strides, strict=True)
    )


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements fill one piece of memory without gaps or overlaps."""
    filled = 1
    for stride, extent in sorted(zip(strides, shape, strict=True)):
        if extent != 1 and stride != filled:
            return False
        filled *= extent
    return True


def _row_major(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]


def _call_it(kind: str, results: Iterable[Any]) -> None:
    for result in results:
        if isinstance(result, Tensor) and result.block is not None:
            result.block.kind.name = kind


def _resident_input(spec: TensorSpec | Any, log: list[BlockEvent], label: str = "input") -> Any:
    if not isinstance(spec, TensorSpec):
        return spec
    num_bytes = storage_elements(spec.shape, spec.strides) * spec.dtype.itemsize
    return Tensor(Block(num_bytes, label, log), spec.shape, spec.strides, spec.dtype)


def _call(graph: GeneratedGraph, args: list[Any], log: list[BlockEvent]) -> list[Any]:
    """Results of the wrapper's ``call``, which takes over ``args``, as the real one does."""
    try:
        return list(_load_call(graph.source, log)(args))
    except UnreadableCode:
        raise
    except Exception as error:
        # The text is torch's and differs between versions. Any error here means a form that
        # we cannot follow; the caller says so in the report.
        raise UnreadableCode(f"{type(error).__name__}: {error}") from error


def runs_on_cpu(source: str) -> bool:
    return "empty_strided_cuda(" not in source


def _load_call(source: str, log: list[BlockEvent]) -> Callable[[list[Any]], Sequence[Any]]:
    """The module's ``call``, with kernels, allocations and operators replaced by stand-ins."""
    module = _read(source)
    namespace = dict(module.namespace)
    namespace.update(_stand_ins(log, runs_on_cpu(source)))
    for code in (*module.functions.values(), module.runner):
        exec(code, namespace)
    if not module.is_class:
        return namespace["call"]
    partitions = [name for name in module.functions if name.startswith(_PARTITION)]
    names = sorted(partitions, key=lambda name: int(name.removeprefix(_PARTITION)))
    return namespace["Runner"](partitions=[namespace[name] for name in names]).call


@dataclass(frozen=True)
class _Module:
    """The parts of a wrapper that are the same for all sizes.

    Attributes:
        namespace: names that the module's statements define.
        runner: the class ``Runner``, or the function ``call``.
        is_class: whether ``runner`` is the class.
        functions: functions that ``runner`` calls, by name: the partitions that Inductor makes for
            CUDA graphs, and graphs within the graph (branches of ``torch.cond``).
    """

    namespace: dict[str, Any]
    runner: CodeType
    is_class: bool
    functions: dict[str, CodeType]


@functools.lru_cache(maxsize=64)  # graphs whose sizes vary are walked again and again
def _read(source: str) -> _Module:
    module = ast.parse(source)
    namespace: dict[str, Any] = {_LINES: dict(enumerate(source.splitlines(), start=1))}
    runner: ast.ClassDef | ast.FunctionDef | None = None
    functions: dict[str, CodeType] = {}
    for statement in module.body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            if "async_compile" not in ast.unparse(statement):
                exec(_compiled(statement), namespace)
        elif isinstance(statement, ast.Assign):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            text = ast.unparse(statement.value)
            if text.startswith(("async_compile.", "AsyncCompile")):
                namespace.update(dict.fromkeys(names, _NOTHING))
            elif text.startswith(("runner", "Runner")):
                continue
            else:
                exec(_compiled(statement), namespace)
        elif isinstance(statement, ast.ClassDef) and statement.name == "Runner":
            runner = statement
        elif isinstance(statement, ast.FunctionDef):
            if statement.name == "call":
                runner = statement
            elif statement.name.startswith("cpp_") or statement.decorator_list:
                namespace[statement.name] = _NOTHING
            else:
                functions[statement.name] = _compiled(statement)
    if runner is None:
        raise UnreadableCode("no class Runner and no function call in the generated module")
    is_class = isinstance(runner, ast.ClassDef)
    return _Module(namespace, _compiled(runner), is_class, functions)


def _compiled(statement: ast.stmt) -> CodeType:
    return compile(ast.Module([statement], []), _GENERATED, "exec")


class _Nothing:
    """Stands in for a kernel, a stream or a device guard. No use of it has an effect."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __index__(self) -> int:
        return 0


_NOTHING = _Nothing()


class _Operators:
    """Attribute paths such as ``torch.ops.aten.x.default``; a call runs on fake tensors."""

    def __init__(self, real: Any, log: list[BlockEvent], on_cpu: bool) -> None:
        self._real, self._log, self._on_cpu = real, log, on_cpu

    def __getattr__(self, name: str) -> Any:
        return _Operators(getattr(self._real, name), self._log, self._on_cpu)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(key == "out" or key.startswith("out_") for key in kwargs):
            out = kwargs.get("out")
            device_type = "cpu" if self._on_cpu else "cuda"
            if isinstance(out, Tensor) and product_takes_workspace(out.dtype, device_type):
                self._add_workspace(args, kwargs)
            return out
        results = _run_fake(self._real, args, kwargs, self._log, self._on_cpu)
        if may_need_workspace(self._real):
            self._add_workspace(args, kwargs)
        elif str(self._real) == "satcompile.update_.default" and not self._on_cpu:
            gradients = args[0]  # a GPU reads about them in a table
            _log_workspace(len(gradients) * ROW_BYTES, "the update's table", self._log)
        return results

    def _add_workspace(self, args: Any, kwargs: dict[str, Any]) -> None:
        _add_workspace(self._real, args, kwargs, self._log, self._on_cpu)


def _add_workspace(
    op: Any, args: Any, kwargs: dict[str, Any], log: list[BlockEvent], on_cpu: bool
) -> None:
    """Log the memory that a call takes and gives back; for a GPU only if one is available."""
    if not on_cpu and not torch.cuda.is_available():
        return
    zeros, named = pytree.tree_map(_as_zeros, (args, dict(kwargs)), is_leaf=_is_tensor)
    num_bytes = workspace_bytes(op, zeros, named, "cpu" if on_cpu else "cuda")
    if num_bytes:
        _log_workspace(num_bytes, _assigned_name() or str(op), log)


def _log_workspace(num_bytes: int, label: str, log: list[BlockEvent]) -> None:
    kind = _Kind("workspaces of operators")
    log.append(BlockEvent(num_bytes, label, kind=kind))
    log.append(BlockEvent(-num_bytes, label, kind=kind))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _as_zeros(value: Any) -> Any:
    return Zeros(value.shape, value.strides, value.dtype) if _is_tensor(value) else value


# These copy the whole storage of the first argument, whatever part of it the argument is. On fake
# tensors they do not.
_OF_WHOLE_STORAGES = (
    torch.ops.aten.copy.default,
    torch.ops.aten.slice_scatter.default,
    torch.ops.aten.select_scatter.default,
    torch.ops.aten.diagonal_scatter.default,
    torch.ops.aten.as_strided_scatter.default,
)


def _run_fake(
    op: Any, args: Any, kwargs: Mapping[str, Any], log: list[BlockEvent], on_cpu: bool
) -> Any:
    """The results of ``op``. A result that shares storage with an argument shares its block."""
    owners: dict[int, Block | None] = {}
    label = _assigned_name() or str(op)
    first = args[0].block if op in _OF_WHOLE_STORAGES and _is_tensor(args[0]) else None
    least_bytes = 0 if first is None else first.num_bytes

    def to_fake(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        fake = value.fake()
        owners[storage_address(fake.untyped_storage())] = value.block
        return fake

    def from_fake(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        storage = value.untyped_storage()
        address = storage_address(storage)
        if address not in owners:
            owners[address] = Block(max(storage.nbytes(), least_bytes), label, log)
        return Tensor(
            owners[address],
            tuple(value.shape),
            tuple(value.stride()),
            value.dtype,
            int(value.storage_offset()),
            on_cpu,
        )

    with fake_tensor_mode(allow_non_fake_inputs=True), torch.no_grad():
        fake_args, fake_kwargs = pytree.tree_map(to_fake, (args, dict(kwargs)))
        result = op(*fake_args, **fake_kwargs)
        return pytree.tree_map(from_fake, result)


def _assigned_name() -> str:
    """The variable that the running line of generated code assigns to, "" if none. It is the name
    of a buffer, which Inductor can trace back to operations."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename != _GENERATED:
        frame = frame.f_back
    if frame is None:
        return ""
    line = frame.f_globals.get(_LINES, {}).get(frame.f_lineno, "")
    return line.partition(" = ")[0].strip() if " = " in line else ""


def _stand_ins(log: list[BlockEvent], on_cpu: bool) -> dict[str, Any]:
    def empty(shape: Any, strides: Any, dtype: torch.dtype, *rest: Any) -> Tensor:
        shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
        num_bytes = storage_elements(shape, strides) * dtype.itemsize
        block = Block(num_bytes, _assigned_name(), log)
        return Tensor(block, shape, strides, dtype, on_cpu=on_cpu)

    def empty_strided(shape: Any, strides: Any, *, dtype: torch.dtype, **rest: Any) -> Tensor:
        return empty(shape, strides, dtype)

    def reinterpret(base: Tensor, shape: Any, strides: Any, offset: int = 0) -> Tensor:
        return Tensor(
            base.block, tuple(shape), tuple(strides), base.dtype, int(offset), base.on_cpu
        )

    allocators = ("cpu", "cpu_pinned", "cuda", "xpu", "mtia")
    return {
        **{f"empty_strided_{device}": empty for device in allocators},
        "empty_strided": empty_strided,
        "reinterpret_tensor": reinterpret,
        "assert_size_stride": _NOTHING,
        "assert_size_stride_grouped": _NOTHING,
        "assert_alignment": _NOTHING,
        "assert_tensor_metadata": _NOTHING,
        "copy_if_misaligned": lambda tensor: tensor,  # torch's allocator aligns what it gives
        "run_intermediate_hooks": _NOTHING,
        "async_compile": _NOTHING,
        "get_raw_stream": _NOTHING,
        "extern_kernels": _Operators(extern_kernels(), log, on_cpu),
        "aten": _Operators(torch.ops.aten, log, on_cpu),
        "inductor_ops": _Operators(torch.ops.inductor, log, on_cpu),
        "torch": _Torch(log, on_cpu),
        "device": torch.device,
        "int": _whole_number,
    }


class _Torch:
    """The ``torch`` that generated code sees: operators and device guards replaced."""

    def __init__(self, log: list[BlockEvent], on_cpu: bool) -> None:
        self.ops = _Operators(torch.ops, log, on_cpu)
        self.cuda = _NOTHING

    def __getattr__(self, name: str) -> Any:
        return operator.attrgetter(name)(torch)
