"""The contract of a pass. All passes have one shape, so that a stage is a list.

A pass is a frozen dataclass whose fields are its options. ``satcompile.compile.pipeline`` has the
list of each stage. Its runner times a pass, records the graph before and after it, and verifies
what the pass ensures; a pass does none of these itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from satcompile.passes.facts import Facts
from torch import fx

from satcompile.graph.training_graph import TrainingGraph

Graph = TypeVar("Graph", TrainingGraph, fx.Graph)


class Stage(Enum):
    """When a pass runs, and what it sees."""

    JOINT = "forward and backward as one graph, before anything is planned"
    BACKWARD = "the backward graph that a plan has made, behind Inductor's own rewriting"


class Ensures(Enum):
    """The property that the verifier checks after a pass."""

    DENSE_VALUES = "with all tiles active, every result has the value that it had"
    RESULTS = "inputs and results, with shapes and dtypes, are what they were"
    PLACE_IN_CODE = "what the pass puts in stands where it may in the generated code"


@dataclass(frozen=True)
class Result(Generic[Graph]):
    """The result of a pass.

    Attributes:
        graph: to go on with; the given graph if nothing was changed.
        changed: what was changed, or why nothing was, in words.
        facts: for later passes.
    """

    graph: Graph
    changed: str
    facts: Facts


class Pass(Protocol[Graph]):
    """A transformation of a graph.

    Attributes:
        name: in reports, and in the option ``disable_passes``.
        stage: when it runs.
        requires: names of the facts without which it has nothing to do.
        ensures: what the verifier checks after it.
    """

    @property
    def name(self) -> str: ...

    @property
    def stage(self) -> Stage: ...

    @property
    def requires(self) -> tuple[str, ...]: ...

    @property
    def ensures(self) -> Ensures: ...

    def run(self, graph: Graph, facts: Facts) -> Result[Graph]:
        """Transform ``graph``, in place or as a copy."""
        ...
