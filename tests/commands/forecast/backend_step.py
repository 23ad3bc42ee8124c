"""What the backend itself decides for a step, seen before any code is generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from satcompile.compile import generation, rounds
from satcompile.compile.generation import Generated
from satcompile.planner import problem
from satcompile.runtime import bound_graph
from satcompile.runtime.residency import Residency, measure_residency


class _Decided(BaseException):
    """Ends the compilation; torch wraps every Exception."""

    def __init__(self, made: Generated) -> None:
        super().__init__()
        self.made = made


def _only_decide(*args: Any) -> Generated:
    made = generation.generate(*args)
    if made.is_training:
        raise _Decided(made)
    return made


def _stop(*args: Any) -> None:
    raise generation._Stopped


@dataclass(frozen=True)
class BackendStep:
    """What the backend's first request for a step came to, and what it counted as alive before it."""

    made: Generated
    residency: Residency

    @property
    def resident(self) -> dict[str, int]:
        return self.residency.by_kind


def decided(model: torch.nn.Module, inputs: Mapping[str, Any], budget_bytes: int) -> BackendStep:
    """Compile ``model`` with ``backend="sat"`` and call it, up to its first plan; but for the memory
    that operators take inside, which the backend alone finds out by calling them."""
    counted: list[Residency] = []

    def count(*args: Any) -> Residency:
        counted.append(measure_residency(*args))
        return counted[-1]

    torch.compiler.reset()
    compiled = torch.compile(model, backend="sat", options={"memory_budget": budget_bytes})
    with (
        mock.patch.object(rounds, "generate", _only_decide),
        mock.patch.object(generation._Generation, "_stop_where_known", _stop),
        mock.patch.object(bound_graph, "measure_residency", count),
        mock.patch.object(problem, "workspace_of", return_value=None),
    ):
        try:
            compiled(**inputs)
        except _Decided as found:
            return BackendStep(found.made, counted[0])
        finally:
            torch.compiler.reset()
    raise AssertionError("the backend planned no training step")
