"""From a limit on the peak to a limit on saved bytes.

The two-phase problem bounds saved bytes; a budget bounds the peak. All saved bytes are alive
at once where the backward begins, so the room left there bounds them from above, and the
solution under that limit costs no more than any plan within the budget can: a proven lower
bound. Where recomputation makes a later position the peak, fewer bytes are saved until the
simulated peak fits. That peak falls with the saved bytes only down to a point, below which
recomputed chains outweigh what saving less wins; the lowest peak found is the floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from satcompile.solver import two_phase
from satcompile.solver.step import Step, StepProfile, simulate

BUDGET_BOUND = "two-phase, one copy of each recomputed value; bound from the start of backward"
_STEPS = 12  # of the descent to a limit on saved bytes under which the peak fits
_FLOOR_SHARES = (0.7, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.02, 0.0)


@dataclass(frozen=True)
class Candidate:
    """A solution of the two-phase problem and the step it makes.

    Attributes:
        saved: storages of the step (not positions in the two-phase problem).
    """

    saved: frozenset[int]
    solution: two_phase.Solution
    profile: StepProfile


class BudgetSearch:
    """Plans for one step under limits on its peak; solutions are kept between calls."""

    def __init__(
        self,
        step: Step,
        problem: two_phase.Problem,
        choices: Sequence[int],
        gap_us: float,
        effort: int,
    ) -> None:
        self.step, self.problem, self.choices = step, problem, choices
        self._gap_us, self._effort = gap_us, effort
        self._solved: dict[int, Candidate | None] = {}

    def candidate(self, saved: Iterable[int]) -> Candidate:
        """The plan that saves the given storages (of which only the choices count)."""
        position = {storage: i for i, storage in enumerate(self.choices)}
        solution = two_phase.evaluate(
            self.problem, [position[storage] for storage in saved if storage in position]
        )
        return self._with_profile(solution)

    def at_saved_bytes(self, limit_bytes: int) -> Candidate | None:
        """The least-time plan that saves at most so many bytes; None if there is none."""
        limit_bytes = max(0, limit_bytes)
        if limit_bytes not in self._solved:
            try:
                solution = two_phase.solve(
                    self.problem, limit_bytes, self._gap_us, node_limit=self._effort
                )
                self._solved[limit_bytes] = self._with_profile(solution)
            except (two_phase.Infeasible, two_phase.Unsolvable):
                self._solved[limit_bytes] = None
        return self._solved[limit_bytes]

    def _with_profile(self, solution: two_phase.Solution) -> Candidate:
        saved = frozenset(self.choices[i] for i in solution.saved)
        return Candidate(saved, solution, simulate(self.step, saved))

    def room_at_boundary(self, peak_limit_bytes: int) -> int:
        """Most bytes that any plan within the limit can save: what is free where all are alive."""
        sizes = self.step.storage_bytes
        held = sum(sizes[s] for s in self.step.outputs | self.step.tangents)
        return peak_limit_bytes - held

    def within(self, peak_limit_bytes: int, most_saved_bytes: int) -> Candidate | None:
        """The least-time plan found whose simulated peak is within the limit, None if none is.

        Args:
            peak_limit_bytes: for the whole step.
            most_saved_bytes: no plan of interest saves more (the default's, for instance).
        """
        room = min(most_saved_bytes, self.room_at_boundary(peak_limit_bytes))
        too_much, fitting = None, None
        saved_limit = room
        for _ in range(_STEPS):
            found = self.at_saved_bytes(saved_limit)
            if found is None:
                break
            excess = found.profile.peak_bytes - peak_limit_bytes
            if excess <= 0:
                fitting = found
                break
            too_much = saved_limit
            saved_limit = min(saved_limit, found.solution.saved_bytes) - max(excess, room // 50, 1)
            if saved_limit < 0:
                break
        if fitting is not None and too_much is not None:
            fitting = self._refine(peak_limit_bytes, saved_limit, too_much, fitting)
        if fitting is None:
            lowest = self.floor(most_saved_bytes)
            fitting = lowest if lowest.profile.peak_bytes <= peak_limit_bytes else None
        return fitting

    def _refine(
        self, peak_limit_bytes: int, fits_at: int, too_much_at: int, fitting: Candidate
    ) -> Candidate:
        """A cheaper plan between a limit on saved bytes that fits and one that does not."""
        low, high = fits_at, too_much_at
        for _ in range(3):
            middle = (low + high) // 2
            found = self.at_saved_bytes(middle)
            if found is not None and found.profile.peak_bytes <= peak_limit_bytes:
                low = middle
                if found.solution.time_us < fitting.solution.time_us:
                    fitting = found
            else:
                high = middle
        return fitting

    def bound_us(self, peak_limit_bytes: int, most_saved_bytes: int) -> float:
        """Proven: no plan of the class within the limit recomputes for less time than this."""
        found = self.at_saved_bytes(min(most_saved_bytes, self.room_at_boundary(peak_limit_bytes)))
        return 0.0 if found is None else found.solution.bound_us

    def floor(self, most_saved_bytes: int) -> Candidate:
        """The lowest simulated peak found over limits on saved bytes."""
        limits = [int(most_saved_bytes * share) for share in _FLOOR_SHARES]
        found = [c for c in map(self.at_saved_bytes, limits) if c is not None]
        found += [c for c in self._solved.values() if c is not None]
        if not found:
            raise two_phase.Infeasible("no valid plan was found at any limit on saved bytes")
        return min(found, key=lambda c: (c.profile.peak_bytes, c.solution.time_us))
