"""What the backend itself decides for a step, seen before any code is generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import fx

from satcompile.compile import rounds
from satcompile.compile.attempt import Attempt, OverLimit
from satcompile.planner import problem
from satcompile.runtime import bound_graph
from satcompile.runtime.residency import Residency, measure_residency


class _Decided(BaseException):
    """Ends the compilation; torch wraps every Exception."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__()
        self.attempt = attempt


class _OnlyDecides(Attempt):
    def partition(
        self, gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        try:
            parts = super().partition(gm, joint_inputs, **kwargs)
        except OverLimit:  # the lowest plan is over the limit, and no code is asked for
            raise _Decided(self) from None
        if self.is_training:
            raise _Decided(self)
        return parts


@dataclass(frozen=True)
class BackendStep:
    """The backend's first attempt at a step, and what it counted as alive before it."""

    attempt: Attempt
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
        mock.patch.object(rounds, "Attempt", _OnlyDecides),
        mock.patch.object(bound_graph, "measure_residency", count),
        mock.patch.object(problem, "workspace_of", return_value=None),
    ):
        try:
            compiled(**inputs)
        except _Decided as found:
            return BackendStep(found.attempt, counted[0])
        finally:
            torch.compiler.reset()
    raise AssertionError("the backend planned no training step")
