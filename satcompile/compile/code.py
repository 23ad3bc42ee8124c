"""The generated code of a plan, and the bytes that a step of it allocates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from satcompile.compile.allocation import (
    Figures,
    GeneratedGraph,
    StepWalk,
    UnreadableCode,
    walk_step,
)
from satcompile.compile.pipeline import PassRecord
from satcompile.compile.planning import PlannedGraphs
from satcompile.graph.training_graph import storage_bytes

# On top of a simulated peak that no code confirms. It is a margin, not a promise: a quarter of the
# lowest plans of tiny models take more, because of workspaces that only the code shows
# (``python -m benchmarks.simulation``).
UNREADABLE_MARGIN = 0.25
BY_CODE = "generated code"
BY_SIMULATION = f"simulation and {UNREADABLE_MARGIN:.0%}"


@dataclass(frozen=True)
class Code:
    """The code that Inductor generated for a plan.

    Attributes:
        forward, backward: the two wrappers; None where one came without source.
        walk: the step's allocations at the sizes of the plan; None where the code cannot be followed.
        unreadable: why the code cannot be followed; None where it can.
        figures: the step's figures, from the walk; without one, from the simulation and a margin.
        num_outputs: how many of the forward's results go to its caller.
        transient_outputs: results that the caller drops at once.
        leaf_gradients: results of the backward that become some leaf's ``.grad``.
        origins: the node behind each buffer, by graph (True for the backward).
        backward_passes: records of the backward stage's passes; none where its code was cached.
        texts: texts of the backward with its updates, where torch writes a trace.
    """

    forward: GeneratedGraph | None
    backward: GeneratedGraph | None
    walk: StepWalk | None
    unreadable: str | None
    figures: Figures
    num_outputs: int
    transient_outputs: tuple[int, ...]
    leaf_gradients: frozenset[int]
    origins: Mapping[bool, Mapping[str, str]] = field(repr=False)
    backward_passes: tuple[PassRecord, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)

    def walk_at(self, values: Mapping[Any, int]) -> StepWalk | None:
        """The step's allocations with these values of its symbols; None where the code cannot be
        followed."""
        if self.walk is None:
            return None
        assert self.forward is not None and self.backward is not None
        try:
            return walk_step(
                self.forward.at_sizes(values),
                self.backward.at_sizes(values),
                self.num_outputs,
                self.transient_outputs,
                self.leaf_gradients,
            )
        except UnreadableCode:
            return None


def simulated_figures(planned: PlannedGraphs) -> Figures:
    """A step's figures from the simulation, with a margin on top."""
    profile, results = planned.plan.profile, planned.problem.graph.backward_outputs
    kept = planned.request.subject.leaves - set(planned.consumed)
    gradients = [results[p] for p in kept if p < len(results)]
    of_leaves = [n for n in gradients if isinstance(n, fx.Node)]
    held_bytes = profile.forward.end_bytes

    def with_margin(num_bytes: int) -> int:
        return int(num_bytes * (1 + UNREADABLE_MARGIN))

    return Figures(
        with_margin(profile.forward.peak_bytes),
        with_margin(profile.backward.peak_bytes),
        with_margin(held_bytes),
        max(0, held_bytes - profile.saved_bytes),
        sum(storage_bytes(n.meta["val"]) for n in of_leaves),
    )
