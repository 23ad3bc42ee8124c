"""What a plan of a graph is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from satcompile.options import Options


@dataclass(frozen=True)
class Subject:
    """A graph of Dynamo's by the positions of its inputs, which are the same in all plans of it.

    Attributes:
        num_inputs: how many inputs there are. AOTAutograd merges inputs that share memory; positions
            in its graph are these where it has as many.
        leaves: positions of leaves that require a gradient, which stays in memory.
        trained: positions of parameters that get a gradient.
        names: of parameters by position, where they are known.
    """

    num_inputs: int
    leaves: frozenset[int] = frozenset()
    trained: frozenset[int] = frozenset()
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One plan of one graph, and what its code may allocate.

    Attributes:
        options: the user's.
        subject: the graph.
        limit_bytes: what the plan's simulated peak is to stay within; None for no limit.
        accept_bytes: what the generated code may allocate; None for anything.
        saved_limit_bytes: what may be kept from forward to backward; None for no limit.
        default_within_bytes: up to this simulated peak torch's own plan is tried.
        lowest_peak: whether the plan of the lowest peak is wanted.
        low_way: of the ways in which plans of low peaks are made, the one to take; 0 for any.
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

    @property
    def takes_regions_as_advice(self) -> bool:
        """Whether the plan decides what checkpoint regions say. Torch's own plan follows them."""
        is_planned = self.limit_bytes is not None or self.lowest_peak
        return self.options.checkpoints == "advice" and is_planned

    @property
    def plan_settings(self) -> dict[str, Any]:
        """What the plan of one graph follows from, for another request that comes to the same."""
        return {
            "limit_bytes": self.limit_bytes,
            "saved_limit_bytes": self.saved_limit_bytes,
            "default_within_bytes": self.default_within_bytes,
            "lowest_peak": self.lowest_peak,
            "low_way": self.low_way,
        }

    @property
    def key(self) -> str:
        """Tells caches of generated code what may be different code."""
        settings = (*self.plan_settings.values(), sorted(self.updates))
        trained = sorted(self.subject.trained) if self.options.sparsity is not None else None
        return repr((self.options.code_key, settings, trained))
