"""Training steps to be compared: variants of one model, each compiled, measured and timed alike."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch

import satcompile
from satcompile.torch_compat.dynamo import compiled_graphs

_numbers = itertools.count()


@dataclass
class Variant:
    """A way to run the step, and what was measured of it."""

    name: str
    run: Callable[[], Any]
    model: torch.nn.Module
    peak_bytes: int = 0
    predicted_bytes: int | None = None
    times_s: list[float] = field(default_factory=list)
    note: str = ""


def function_of(model: torch.nn.Module, inputs: dict[str, Any]) -> Callable[[], Any]:
    """``lambda: model(**inputs)`` with a code object of its own: Dynamo caches by code.

    And with a file name of its own: a report finds a function's graphs by where its code is.
    """
    namespace: dict[str, Any] = {"model": model, "inputs": inputs}
    source = "def forward():\n    return model(**inputs)\n"
    exec(compile(source, f"<variant {next(_numbers)}>", "exec"), namespace)
    return namespace["forward"]


def step(forward: Callable[[], Any]) -> Any:
    """Forward and backward; the output is returned so that it stays alive to the end."""
    output = forward()
    output.loss.backward()
    return output


def clear_gradients(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def prepare(variant: Variant, compiled: bool = True) -> int:
    """First step (``compile_time`` measures it), its check, and the peak of a later one.

    Returns:
        How many graphs were compiled.
    """
    graphs_before = compiled_graphs()
    step(variant.run)
    graphs = compiled_graphs() - graphs_before
    if compiled and not graphs:
        raise RuntimeError(f"{variant.name}: nothing was compiled")
    clear_gradients(variant.model)
    variant.peak_bytes = satcompile.measure_peak(
        lambda: step(variant.run), device_of(variant.model)
    )
    clear_gradients(variant.model)
    return graphs


def measure_times(made: Sequence[Variant], rounds: int) -> None:
    """Seconds of every variant's step, round by round, so that a slow moment hits all alike."""
    graphs_before = compiled_graphs()
    for _ in range(rounds):
        for variant in made:
            clear_gradients(variant.model)
            variant.times_s.append(seconds(partial(step, variant.run), device_of(variant.model)))
    if compiled_graphs() != graphs_before:
        raise RuntimeError("something was compiled while times were taken")


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """How long one call takes, everything that it starts on the device included."""
    _synchronize(device)
    started = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - started


class Done:
    """What a variant returns whose ``run`` is a whole step with its own backward: ``step`` calls
    this one's, which does nothing."""

    class loss:
        @staticmethod
        def backward() -> None:
            return None


def time_ratio(variant: Variant, default: Variant) -> float:
    """The median of the rounds' ratios: what slows a whole round down cancels out."""
    return median(a / b for a, b in zip(variant.times_s, default.times_s, strict=True))


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
