"""A plan: what crosses from forward to backward, what it costs, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from satcompile.solver.step import StepProfile


@dataclass(frozen=True)
class Plan:
    """The outcome of the recompute pass for one joint graph.

    Attributes:
        saved: indices of the storages that cross, in ``PlanningProblem.storages``.
        recomputed: nodes whose operations run again in the backward.
        crossing: tensors that the backward is given, parameters and inputs among them.
        scalars: symbolic sizes that the backward is given.
        profile: simulated memory of the step.
        default_profile: the same of torch's own plan.
        time_us: of recomputation and of the memory traffic that it causes.
        bound_us: no plan of the class can do with less under the same limit.
        bound_kind: which class, and what limit.
        is_default: whether this is torch's own plan.
        limit_bytes: what the simulated peak was to stay within; None without a budget.
    """

    saved: frozenset[int]
    recomputed: tuple[fx.Node, ...]
    crossing: tuple[fx.Node, ...]
    scalars: tuple[fx.Node, ...]
    profile: StepProfile
    default_profile: StepProfile
    time_us: float
    bound_us: float
    bound_kind: str
    is_default: bool
    limit_bytes: int | None
