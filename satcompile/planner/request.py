"""Requests: what one plan of a graph is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from satcompile.options import Options


@dataclass(frozen=True)
class Subject:
    """One of Dynamo's graphs by the positions of its inputs, which are the same in all its plans.

    Attributes:
        num_inputs: how many inputs there are. AOTAutograd merges inputs that share memory.
            Positions in its graph are the same if it has as many inputs.
        leaves: positions of leaves that require a gradient, which stays in memory.
        trained: positions of parameters that get a gradient.
        names: names of parameters by position, where they are known.
    """

    num_inputs: int
    leaves: frozenset[int] = frozenset()
    trained: frozenset[int] = frozenset()
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One plan of one graph, and what its code may allocate.

    Attributes:
        options: the user's options.
        subject: the graph.
        limit_bytes: limit on the plan's simulated peak; None for no limit.
        accept_bytes: bytes that the generated code may allocate; None for no limit.
        saved_limit_bytes: bytes that may be kept from forward to backward; None for no limit.
        default_within_bytes: torch's own plan is tried up to this simulated peak.
        lowest_peak: whether to take the plan with the lowest peak.
        low_way: the way of making plans of low peaks to take (``Recompute.low_way``); 0 for any.
        updates: positions of parameters whose gradients the backward hands to their optimizer.
    """

    options: Options
    subject: Subject
    limit_bytes: int | None = None
    accept_bytes: int | None = None
    saved_limit_bytes: int | None = None
    default_within_bytes: int = 0
    lowest_peak: bool = False
    low_way: int = 0
    updates: frozenset[int] = frozenset()

    def allows(self, name: str) -> bool:
        """Whether the user has not disabled the pass of this name."""
        return name not in self.options.disable_passes

    @property
    def takes_regions_as_advice(self) -> bool:
        """Whether the plan may decide against checkpoint regions. Torch's own plan follows them."""
        is_planned = self.limit_bytes is not None or self.lowest_peak
        return self.options.checkpoints == "advice" and is_planned

    @property
    def plan_settings(self) -> dict[str, Any]:
        """The settings that determine the plan of one graph, as arguments of ``Recompute``."""
        return {
            "limit_bytes": self.limit_bytes,
            "saved_limit_bytes": self.saved_limit_bytes,
            "default_within_bytes": self.default_within_bytes,
            "lowest_peak": self.lowest_peak,
            "low_way": self.low_way,
        }

    @property
    def key(self) -> str:
        """A key for caches of generated code; different code has different keys."""
        settings = (*self.plan_settings.values(), sorted(self.updates))
        trained = sorted(self.subject.trained) if self.options.sparsity is not None else None
        return repr((self.options.code_key, settings, trained))
