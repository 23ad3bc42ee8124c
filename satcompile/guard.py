"""The sizes for which a plan holds: beyond them, an answer before anything is allocated.

A graph with symbolic sizes was planned for the sizes of its first call. When others come, its
generated code is walked at those sizes; within the budget it runs, over it a ``BudgetError``
says so instead of the allocator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from satcompile import torch_compat
from satcompile.errors import BudgetError
from satcompile.generated_code import UnreadableCode, walk_step
from satcompile.inductor import Attempt


class SizeGuard:
    """Checks the symbolic sizes of each call against the budget; remembers what it checked."""

    def __init__(
        self, attempt: Attempt, symbols: Mapping[int, Any], planned: tuple[int, ...],
        limit_bytes: int, budget_bytes: int,
    ) -> None:  # fmt: skip
        self._attempt, self._symbols = attempt, dict(symbols)
        self._limit_bytes, self._budget_bytes = limit_bytes, budget_bytes
        self._fits = {planned}

    @classmethod
    def of(
        cls, attempt: Attempt, inputs: Sequence[Any], limit_bytes: int | None,
        budget_bytes: int | None,
    ) -> SizeGuard | None:  # fmt: skip
        """A guard where one is needed: under a budget, for a graph with symbolic sizes."""
        symbols = {
            position: torch_compat.size_expression(value)
            for position, value in enumerate(inputs)
            if isinstance(value, torch.SymInt)
        }
        if limit_bytes is None or budget_bytes is None or not symbols or attempt.walk is None:
            return None
        planned = tuple(torch_compat.size_hint(inputs[position]) for position in symbols)
        return cls(attempt, symbols, planned, limit_bytes, budget_bytes)

    def check(self, args: Sequence[Any]) -> None:
        """Raise ``BudgetError`` if the step at these sizes would exceed the budget."""
        sizes = tuple(int(args[position]) for position in self._symbols)
        if sizes in self._fits:
            return
        if not torch.is_grad_enabled():
            return
        peak_bytes = self._peak_at(sizes)
        if peak_bytes > self._limit_bytes:
            over = self._budget_bytes + peak_bytes - self._limit_bytes
            raise BudgetError(
                f"The compiled plan was made for smaller inputs: at sizes {sizes} its peak would "
                f"be {over} bytes, above the memory_budget of {self._budget_bytes} bytes. Nothing "
                "was run. Compile with dynamic=False to have a plan of its own for each size, or "
                "call torch.compiler.reset() and begin with the largest inputs.",
                budget_bytes=self._budget_bytes,
                floor_bytes=over,
                floor_op="the plan for other sizes",
            )
        self._fits.add(sizes)

    def _peak_at(self, sizes: Sequence[int]) -> int:
        attempt = self._attempt
        assert attempt.forward is not None and attempt.backward is not None
        assert attempt.outcome is not None
        values = dict(zip(self._symbols.values(), sizes, strict=True))
        try:
            walk = walk_step(
                attempt.forward.at_sizes(values),
                attempt.backward.at_sizes(values),
                attempt.outcome.parts.num_outputs,
                attempt.transient_outputs,
            )
        except UnreadableCode:
            return self._limit_bytes + 1
        return max(profile.peak_bytes for profile in walk.profiles())
