"""A compiled plan that steps run, and the state that changes while they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from satcompile.compile.code import Code
from satcompile.compile.generation import Generated
from satcompile.compile.planning import PlannedGraphs
from satcompile.compile.rounds import Planned
from satcompile.runtime import sparse_calls
from satcompile.torch_compat.autograd import leaves_behind
from satcompile.updates.optimizers.in_backward import BACKWARD_UPDATES
from satcompile.updates.sparsity import masks


class PlanInUse:
    """A plan as its graph runs it.

    Attributes:
        planned: the plan; it does not change.
        on_backward: called when a backward begins to run.
        returned: by position, why the latest backward gave a gradient to autograd instead of its
            optimizer; None before the first backward.
        latest_masks: masks of the latest forward, by position.
        is_told: whether the log and torch's trace have the plan.
    """

    def __init__(self, planned: Planned, on_backward: Callable[[], None] | None = None) -> None:
        self.planned, self.on_backward = planned, on_backward
        self.returned: Mapping[int, str] | None = None
        self.latest_masks: Mapping[int, masks.Mask] = {}
        self.is_told = False
        self._told_of_dense_uses = False
        backward = self.generated.backward
        if backward is not None:
            backward.run = self._around(self.graphs, backward.compiled)

    @property
    def generated(self) -> Generated:
        return self.planned.generated

    @property
    def graphs(self) -> PlannedGraphs:
        return self.generated.graphs

    @property
    def code(self) -> Code | None:
        return self.generated.code

    @cached_property
    def forward(self) -> Callable[..., Any]:
        """The callable that runs the forward; without tiles, the compiled code itself."""
        made = self.generated
        assert made.compiled is not None
        if made.planned is not None:
            return made.compiled if made.planned.sparse is None else self._sparse_forward
        sparsity = made.request.options.sparsity
        is_dense = sparsity is None or not sparsity.is_forward_sparse
        return made.compiled if is_dense else self._evaluation

    def _sparse_forward(self, *args: Any) -> Any:
        """Raises:
        UnsupportedError: a parameter is to be trained in tiles, and no fused optimizer holds it.
        """
        assert self.generated.compiled is not None
        bound = sparse_calls.joined(self.graphs, args)
        self.latest_masks = {slot: each.mask for slot, each in bound.items()}
        with masks.running(bound):
            return self.generated.compiled(*args)

    def _evaluation(self, *args: Any) -> Any:
        """Run a graph without a backward, whose weights are trained in tiles."""
        made = self.generated
        assert made.compiled is not None
        if not self._told_of_dense_uses:
            others = made.request.subject.trained - made.masked
            self._told_of_dense_uses = sparse_calls.warn_of_dense_uses(others, args)
        with masks.running(masks.bindings({slot: args[slot] for slot in made.masked})):
            return made.compiled(*args)

    def _around(
        self, graphs: PlannedGraphs, compiled: Callable[[list[Any]], Any]
    ) -> Callable[[list[Any]], Any]:
        """Wrap the backward: it reports when it begins, and finds its updates and masks."""

        def plain(args: list[Any]) -> Any:
            if self.on_backward is not None:
                self.on_backward()
            BACKWARD_UPDATES.plain_backward()
            return compiled(args)

        def updated(args: list[Any]) -> Any:
            if self.on_backward is not None:
                self.on_backward()
            with BACKWARD_UPDATES.backward(graphs.update_edges) as call:
                results = compiled(args)
            self.returned = call.returned
            return call.filled(results)

        run = updated if graphs.consumed else plain
        if graphs.sparse is None:
            return run

        def masked(args: list[Any]) -> Any:
            with masks.running(masks.bindings(leaves_behind(graphs.sparse_edges))):
                return run(args)

        return masked


def plans_by_speed(plans: Sequence[PlanInUse]) -> list[PlanInUse]:
    """The plans, fastest first."""
    return sorted(plans, key=lambda plan: plan.generated.relative_time)
