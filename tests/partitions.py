"""Planned and partitioned graphs of a model, without compiling any kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from satcompile.compile.attempt import Attempt
from satcompile.compile.partition import Partition
from satcompile.compile.pipeline import PassRecord
from satcompile.options import Options
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.retention import RetentionPlan


class _Partitioned(BaseException):
    """Unwinds the compilation when the graphs are there; torch wraps every Exception."""


class _PartitionOnly(Attempt):
    def partition(
        self, gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        parts = super().partition(gm, joint_inputs, **kwargs)
        if self.outcome is not None:
            raise _Partitioned
        return parts


@dataclass(frozen=True)
class Planned:
    """What the backend has made of a model when it hands over to Inductor."""

    problem: PlanningProblem
    whole: PlanningProblem
    plan: RetentionPlan
    parts: Partition
    passes: Sequence[PassRecord]


def planned(
    model: Callable[..., Any], inputs: dict[str, Any], limit_bytes: int | None = None
) -> Planned:
    """Trace, plan and partition the first training graph of ``model(**inputs)``."""
    attempts = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        attempts.append(_PartitionOnly(Options(), limit_bytes))
        return attempts[-1].compile(gm, example_inputs)

    torch.compiler.reset()
    try:
        torch.compile(model, backend=backend)(**inputs)
    except _Partitioned:
        pass
    else:
        raise AssertionError("no training graph was partitioned")
    finally:
        torch.compiler.reset()
    (attempt,) = (a for a in attempts if a.outcome is not None)
    assert attempt.problem is not None
    return Planned(
        attempt.problem,
        attempt.outcome.whole,
        attempt.outcome.plan,
        attempt.outcome.parts,
        attempt.outcome.passes,
    )


def planned_tightly(model: Callable[..., Any], inputs: dict[str, Any], share: float) -> Planned:
    """Under a limit of ``share`` of what the step would take by default."""
    default_bytes = planned(model, inputs).plan.default_profile.peak_bytes
    return planned(model, inputs, int(share * default_bytes))
