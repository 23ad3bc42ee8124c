"""Programs compiled by the whole backend, on both sides of a budget, and measured."""

from __future__ import annotations

import re
from typing import Any

import torch

import satcompile
from satcompile.errors import BudgetError, SatcompileError, UnsupportedError
from satcompile.runtime import registry
from tests.programs.failures import Failure, failure, general, unwrapped
from tests.programs.program import Program, Results, Trial, eager

# Generated code rounds differently from eager; the largest entry of each value is what counts.
TOLERANCE = {"float64": 1e-8, "float32": 2e-3}
AUTOCAST = 0.15
# The compiler of C++ optimises nothing: its time is most of it, and no part of what is tested.
CHEAP = {"compile_threads": 1, "aot_inductor.debug_compile": True}


def check(program: Program) -> str:
    """What was found: "right", or why there was nothing to compare.

    Raises:
        Failure: it is wrong, crashed, exceeded its budget, or its floor was none.
    """
    try:
        trial = Trial(program)
        wanted = eager(program, trial)
    except Exception as error:
        return f"eager refuses: {type(error).__name__}"
    if not wanted.are_finite:
        return "eager overflows"
    try:
        _check_compiled(program, trial, wanted)
    except Exception as raised:
        error = unwrapped(raised)
        if isinstance(error, Failure):
            raise error from None
        if isinstance(error, UnsupportedError):
            return f"refused: {str(error)[:60]}"
        if isinstance(error, SatcompileError):
            raise failure(type(error).__name__, str(error)) from error
        theirs = _torch_refuses(program, trial)
        if theirs is not None:
            return theirs
        raise failure(f"crash, {type(error).__name__}", str(error)) from error
    return "right"


def _check_compiled(program: Program, trial: Trial, wanted: Results) -> None:
    if not program.draws_as_eager:
        # Torch's own gradients are wrong where a buffer is written that the backward reads.
        trusted = "sat" if program.writes_buffers else "inductor"
        wanted = trial.run(_compiled(program, None, backend=trusted))
    _compare(program, "without a budget", wanted, trial.run(_compiled(program, None)))
    graph = satcompile.report(trial.model).graphs[-1]
    floor_bytes = _floor(program, trial)
    if floor_bytes > graph.default_peak_bytes:
        raise failure("floor", f"floor {floor_bytes}, default's peak {graph.default_peak_bytes}")
    between_bytes = (floor_bytes + graph.default_peak_bytes) // 2
    for what, budget_bytes in (("at the floor", floor_bytes), ("between", between_bytes)):
        run = _compiled(program, budget_bytes)
        try:
            found = trial.run(run)
        except BudgetError as error:
            raise failure(
                f"floor, {what}",
                f"the floor {floor_bytes} was named, {budget_bytes} is refused with "
                f"{error.floor_bytes}",
            ) from error
        _compare(program, what, wanted, found)
        _check_peak(program, trial, run, budget_bytes, what)


def _compiled(program: Program, budget: int | None, backend: str = "sat") -> Any:
    torch._dynamo.reset()
    registry.forget_all()
    inductor: dict[str, Any] = dict(CHEAP)
    if program.fallback_random:
        inductor["fallback_random"] = True
    options: dict[str, Any] = inductor
    if backend == "sat":
        options = {"inductor": inductor}
        if budget is not None:
            options["memory_budget"] = budget
    return torch.compile(
        program.namespace["Model"].forward,
        backend=backend, options=options, fullgraph=True, dynamic=False,
    )  # fmt: skip


def _floor(program: Program, trial: Trial) -> int:
    try:
        trial.run(_compiled(program, 1))
    except BudgetError as error:
        return error.floor_bytes
    raise failure("floor", "a budget of one byte was accepted")


def _compare(program: Program, what: str, wanted: Results, found: Results) -> None:
    tolerance = AUTOCAST if program.is_rounded else TOLERANCE[program.dtype]
    differences = wanted.differences(found, tolerance)
    if differences:
        raise failure(f"wrong, {what}", "; ".join(differences[:4]))


def _check_peak(program: Program, trial: Trial, run: Any, budget_bytes: int, what: str) -> None:
    inputs = trial.inputs(0)
    trial.clear_gradients()
    pairs: list[Any] = []
    coefficients = program.coefficients

    def step() -> Any:
        outputs = run(trial.model, *inputs)
        if not pairs:
            pairs.extend(
                torch.full_like(o, c) for o, c in zip(outputs, coefficients, strict=True) if c
            )
        trained = [o for o, c in zip(outputs, coefficients, strict=True) if c]
        torch.autograd.backward(trained, pairs)
        return outputs

    step()
    trial.clear_gradients()
    inputs = trial.inputs(0)  # anew: a program may write into them, and then they have a history
    peak_bytes = satcompile.measure_peak(step)
    trial.clear_gradients()
    resident = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in [*trial.model.parameters(), *trial.model.buffers(), *_read(program, inputs)]
    }
    total_bytes = sum(resident.values()) + peak_bytes
    if total_bytes > budget_bytes:
        raise failure(
            f"budget exceeded {what}", f"{total_bytes} bytes measured, {budget_bytes} allowed"
        )


def _read(program: Program, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Inputs that the graph gets: Dynamo leaves out what nothing reads, and what is only returned."""
    text = "\n".join(line for i in program.instructions for line in i.lines)
    pairs = zip(program.inputs, inputs, strict=True)
    return [value for tensor, value in pairs if re.search(rf"\b{tensor.name}\b", text)]


def _torch_refuses(program: Program, trial: Trial) -> str | None:
    try:
        trial.run(_compiled(program, None, backend="inductor"))
    except Exception as raised:
        error = unwrapped(raised)
        return f"torch refuses: {type(error).__name__}: {general(str(error))}"[:150]
    return None
