"""A plan: what crosses from forward to backward, in which order each side runs, what the plan
costs, and how good it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from satcompile.solver.training.step import StepProfile


@dataclass(frozen=True)
class RetentionPlan:
    """The outcome of the recompute pass for one joint graph.

    Attributes:
        saved: indices of the storages that cross, in ``PlanningProblem.storages``.
        recomputed: nodes of the forward whose operations run again in the backward.
        operations: the nodes that the two orders refer to, by index.
        forward_order, backward_order: indices into ``operations``; in the backward, an
            operation appears as often as it is computed.
        order_kept: why the backward has torch's order and not ``backward_order``; None where
            it has the plan's.
        crossing: tensors that the backward is given, parameters and inputs among them.
        scalars: symbolic sizes that the backward is given.
        profile: simulated memory of the step.
        default_profile: the same for torch's own plan.
        default_saved: names of the nodes that torch's own plan saves.
        time_us: time of recomputation and of the memory traffic that it causes.
        bound_us: no plan of the class can take less time under the same limit.
        bound_kind: the class, and the limit.
        is_default: whether this is torch's own plan.
        limit_bytes: limit on the simulated peak; None without a budget.
        source: which strategy of the search made the plan (``STRATEGIES``).
    """

    saved: frozenset[int]
    recomputed: tuple[fx.Node, ...]
    operations: Sequence[fx.Node]
    forward_order: tuple[int, ...]
    backward_order: tuple[int, ...]
    order_kept: str | None
    crossing: tuple[fx.Node, ...]
    scalars: tuple[fx.Node, ...]
    profile: StepProfile
    default_profile: StepProfile
    default_saved: tuple[str, ...]
    time_us: float
    bound_us: float
    bound_kind: str
    is_default: bool
    limit_bytes: int | None
    source: str = ""

    @property
    def has_own_order(self) -> bool:
        return not self.is_default and self.order_kept is None

    def is_like(self, other: RetentionPlan) -> bool:
        """Whether both plans save and compute the same; they may be of two copies of one graph."""
        return self._what_runs == other._what_runs

    @cached_property
    def _what_runs(self) -> tuple[object, ...]:
        names = [node.name for node in self.operations]
        return self.is_default, self.saved, self.forward_order, self.backward_order, names

    @cached_property
    def times_computed(self) -> Counter[fx.Node]:
        """How often each operation runs in the step, forward and backward."""
        both = (*self.forward_order, *self.backward_order)
        return Counter(self.operations[index] for index in both)
