"""From a limit on the peak to a limit on saved bytes.

The two-phase problem bounds saved bytes; a budget bounds the peak. All saved bytes are alive
at once where the backward begins, so the room left there bounds them from above, and the
solution under that limit costs no more than any plan within the budget can, however many
copies it makes: a proven lower bound. Where recomputation makes a later position the peak,
memory is bounded at that position too (``peaks``), and copies are dropped and made again.

Several strategies make plans (``STRATEGIES``, docs/planning.md), and the least time that fits is taken:
plans of single moments; fewer saved bytes until the simulated peak fits, which works down to the point
below which recomputed chains outweigh what saving less wins; rounds of integer programs (``peaks``);
checkpoints in two levels (``nested``); and saving less with the forward cut into segments, where the few
values that cross between them must be saved. Whatever room a plan leaves is used to save more
(``filling``). The lowest peak found is the floor. Each plan says which strategy made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import inf

from satcompile.solver.training import two_phase
from satcompile.solver.training.fast_replay import simulate_orders
from satcompile.solver.training.filling import Orders, filled, orders
from satcompile.solver.training.moments import Spine, redecoded
from satcompile.solver.training.nested import Nested, nested_plans
from satcompile.solver.training.peaks import PeakSearch
from satcompile.solver.training.rungs import rung_above, rung_below
from satcompile.solver.training.single_moments import MomentBound, SingleMoments, worst_moments
from satcompile.solver.training.step import (
    Step,
    StepProfile,
    captured_backward_order,
    forward_order,
)
from satcompile.solver.training.timing import Timing

BUDGET_BOUND = "any number of copies, saved values kept to their last use; bound from single moments of the step"
_NEAR, _FAR = 5, 25  # gaps from the bound: beyond, other ways of cutting are tried, one or all
_GAPS_OF_ROUND = 2  # of a solve with moments
_EFFORT_OF_ROUND = 1_000  # a round with moments gets this part of a solve's nodes
_REPLAYS = 24  # when the room that a plan leaves is filled
_FILLED = 2  # plans for low peaks that this is tried with
_HOPELESS = 0.97  # of the lowest peak with two levels: below, only the floor is asked
_STEPS = 6  # of the descent to a limit on saved bytes under which the peak fits
_REFINEMENTS = 2
_SEGMENTS = (1, 4, 12, 32)
_FULL = 0.95  # of the limit
_SHARES = (0.8, 0.6, 0.45, 0.3, 0.2, 0.1)  # of what can be saved, for low peaks
_FEW = 12  # choices: every point of the curve of saved bytes is looked at for low peaks
_IN_VAIN = 3  # rungs that are tried on end for a floor
# Operations: below the plans of larger steps nothing is searched, or nothing by integer programs.
_LARGE, _SMALL = 2_000, 200


# How a plan can be made, in the order in which ``BudgetSearch.within`` tries it; the last ones are
# plans without a limit, among which the floor is. docs/planning.md says when each runs.
TWO_PHASES, ONE_MOMENT, SAVING_LESS = "two phases", "one moment", "saving less"
ROUNDS, TWO_LEVELS, SEGMENTS = "rounds with moments", "two levels", "segments"
ANY_LIMIT, SAVED = "saving at any limit", "torch's own plan"
STRATEGIES = (
    TWO_PHASES, ONE_MOMENT, SAVING_LESS, ROUNDS, TWO_LEVELS, SEGMENTS, ANY_LIMIT, SAVED,
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A solution of the two-phase problem and the step it makes.

    Attributes:
        saved: storages of the step (not positions in the two-phase problem).
        forward_order, backward_order: indices of operations, repeated in the backward where
            several copies are made.
        source: which strategy made it, one of ``STRATEGIES``.
    """

    saved: frozenset[int]
    solution: two_phase.Solution
    profile: StepProfile
    forward_order: tuple[int, ...]
    backward_order: tuple[int, ...]
    source: str = field(default="", compare=False)

    def made_by(self, strategy: str) -> Candidate:
        """The same plan with its source."""
        return replace(self, source=strategy)


class BudgetSearch:
    """Plans for one step under limits on its peak; solutions are kept between calls, and an answer
    does not depend on what was asked before."""

    def __init__(
        self,
        step: Step,
        problem: two_phase.Problem,
        choices: Sequence[int],
        gap_us: float,
        effort: int,
        again_us: Sequence[float] | None = None,
        own_order: bool = True,
        default_saved: Iterable[int] = (),
    ) -> None:
        """
        Args:
            gap_us: how far from proven least time a solution may be.
            effort: branch-and-bound nodes per solve.
            again_us: of each operation, for copies (see ``Timing``).
            own_order: whether the backward may run in an order of the plan's, with several
                copies; otherwise only what is saved is decided.
            default_saved: storages that torch's own plan saves, which is a plan, too.
        """
        self.step, self.problem, self.choices = step, problem, choices
        self._gap_us, self._effort, self._own_order = gap_us, effort, own_order
        self._again_us = again_us
        self._timing = Timing(step, problem, choices, again_us)
        self._default_saved = frozenset(default_saved)
        self._position = {storage: i for i, storage in enumerate(choices)}
        self._solved: dict[tuple[int, frozenset[int]], Candidate | None] = {}
        self._answers: dict[tuple[int, int | None, bool], Candidate | None] = {}
        self._moments_of: dict[int, list[tuple[MomentBound, Orders]]] = {}

    @cached_property
    def _spine(self) -> Spine:
        return Spine(self.step, self.problem, self.choices, self._own_order)

    def is_of_same_numbers(self, other: BudgetSearch) -> bool:
        """Whether the other would find the same plans."""
        return (self._numbers == other._numbers) and (self.step == other.step)

    @property
    def _numbers(self) -> tuple[object, ...]:
        settings = (self._gap_us, self._effort, self._own_order, self._default_saved)
        return (*settings, list(self.choices), list(self._again_us or ()), self.problem)

    @cached_property
    def default(self) -> Candidate:
        """Torch's own plan."""
        return self.candidate(self._default_saved)

    def candidate(self, saved: Iterable[int]) -> Candidate:
        """The plan that saves the given storages (of which only the choices count), in the joint
        graph's order, as torch has it."""
        position = self._position
        solution = two_phase.evaluate(
            self.problem, [position[storage] for storage in saved if storage in position]
        )
        forward = partial(forward_order, self.step)
        backward = partial(captured_backward_order, self.step)
        return self._with_profile(solution, forward, backward).made_by(SAVED)

    def at_saved_bytes(
        self, limit_bytes: int, forced: frozenset[int] = frozenset()
    ) -> Candidate | None:
        """The least-time plan that saves at most so many bytes; None if there is none.

        Args:
            limit_bytes: for all that is saved.
            forced: storages that must be saved.
        """
        limit_bytes = max(0, limit_bytes)
        if (limit_bytes, forced) not in self._solved:
            try:
                solution = two_phase.solve(
                    self.problem,
                    limit_bytes,
                    self._gap_us,
                    [self._position[storage] for storage in forced],
                    node_limit=self._effort,
                )
                self._solved[limit_bytes, forced] = self._with_profile(
                    solution, self._spine.forward, self._spine.backward
                )
            except (two_phase.Infeasible, two_phase.Unsolvable):
                self._solved[limit_bytes, forced] = None
        return self._solved[limit_bytes, forced]

    def _with_profile(
        self,
        solution: two_phase.Solution,
        forward_of: Callable[[frozenset[int]], Sequence[int]],
        backward_of: Callable[[frozenset[int]], Sequence[int]],
    ) -> Candidate:
        saved = frozenset(self.choices[i] for i in solution.saved)
        forward, backward = tuple(forward_of(saved)), tuple(backward_of(saved))
        profile = simulate_orders(self.step, forward, backward, saved)
        return Candidate(saved, solution, profile, forward, backward)

    def checkpointed(self) -> Candidate | None:
        """The plan that saves the boundaries of many segments and nothing else, made without a
        search; None where something can be neither saved nor computed again."""
        saved = self._spine.with_unrepeatable(self._checkpoints[-1])
        return None if saved is None else self.candidate(saved)

    def room_at_boundary(self, peak_limit_bytes: int) -> int:
        """Most bytes that any plan within the limit can save: what is free where all are alive."""
        sizes = self.step.storage_bytes
        held = sum(sizes[s] for s in self.step.outputs | self.step.tangents)
        return peak_limit_bytes - held - self.step.constant_bytes

    def within(
        self,
        peak_limit_bytes: int,
        saved_limit_bytes: int | None = None,
        by_rounds: bool = True,
    ) -> Candidate | None:
        """The least-time plan found whose simulated peak is within the limit, None if none is.

        Never None at the floor or above, and never a plan that is lower than the floor.

        Args:
            peak_limit_bytes: for the whole step.
            saved_limit_bytes: for what is saved, where that is limited for its own sake.
            by_rounds: whether integer programs with memory bounded at several moments are solved,
                which takes most of the time for large steps.
        """
        found = self._searched(peak_limit_bytes, saved_limit_bytes, by_rounds)
        try:
            if found is not None and self._is_above_floor(found):
                return found
            lowest = self.floor()
        except two_phase.Infeasible:
            return found
        if found is not None and lowest.profile.peak_bytes <= found.profile.peak_bytes:
            return found
        return lowest if lowest.profile.peak_bytes <= peak_limit_bytes else None

    def _is_above_floor(self, found: Candidate) -> bool:
        """Whether that is known before the floor is: it is not above the plans it begins with."""
        peak_bytes = found.profile.peak_bytes
        if self._nested and peak_bytes >= self._lowest_nested_bytes:
            return True
        return peak_bytes >= self.lows[0].profile.peak_bytes

    def _searched(
        self, peak_limit_bytes: int, saved_limit_bytes: int | None, by_rounds: bool
    ) -> Candidate | None:
        """The least-time plan found, the floor aside; kept, as attempts at a graph ask again."""
        key = (peak_limit_bytes, saved_limit_bytes, by_rounds)
        if key not in self._answers:
            self._answers[key] = self._search(*key)
        return self._answers[key]

    def _search(
        self, peak_limit_bytes: int, saved_limit_bytes: int | None, by_rounds: bool
    ) -> Candidate | None:
        room = self.room_at_boundary(peak_limit_bytes)
        if saved_limit_bytes is not None:
            room = min(room, saved_limit_bytes)
        boundary = self.at_saved_bytes(room)
        if boundary is not None and boundary.profile.peak_bytes <= peak_limit_bytes:
            return boundary.made_by(TWO_PHASES)  # proven
        bound_us = self.bound_us(peak_limit_bytes)
        if bound_us == inf:
            return None  # proven
        best = self._by_single_moments(peak_limit_bytes, saved_limit_bytes)
        best = self._by_saved_bytes(peak_limit_bytes, room, bound_us, best, self._checkpoints[:1])
        if best is not None or peak_limit_bytes > _HOPELESS * self._lowest_nested_bytes:
            if by_rounds:
                best = self._cheaper(best, self._by_moments(peak_limit_bytes, room))
            if best is None:
                best = self._by_nesting(peak_limit_bytes)
            more = self._checkpoints[1 : 1 + self._worth_trying(best, bound_us)]
            best = self._by_saved_bytes(peak_limit_bytes, room, bound_us, best, more)
        if best is None or best.solution.time_us <= bound_us + self._gap_us:
            return best
        peak_bytes = best.profile.peak_bytes
        if peak_bytes < _FULL * peak_limit_bytes and len(self.step.operations) <= _LARGE:
            # So much room that is left says that what is best at a lower limit was missed.
            lower_bytes = (peak_bytes + peak_limit_bytes) // 2
            best = self._cheaper(best, self._searched(lower_bytes, saved_limit_bytes, by_rounds))
        return best

    def _by_moments(self, peak_limit_bytes: int, room_bytes: int) -> Candidate | None:
        """The least time found with memory bounded where it is over the limit."""
        if not self._own_order:
            return None
        spine, timing = self._spine, self._timing
        effort = max(1, self._effort // _EFFORT_OF_ROUND)
        search = PeakSearch(spine, timing, _GAPS_OF_ROUND * self._gap_us, effort)
        best: Candidate | None = None
        for choice, plan in search.within(peak_limit_bytes, room_bytes):
            if plan.profile.peak_bytes <= peak_limit_bytes:
                rebuild = partial(redecoded, spine, choice)
                plan = filled(spine, timing, plan, rebuild, peak_limit_bytes, _REPLAYS)
                best = self._cheaper(best, self._from_orders(plan, ROUNDS))
        return best

    def _worth_trying(self, best: Candidate | None, bound_us: float) -> int:
        """In how many more ways the forward is cut: more, the further from the bound a plan is."""
        if best is None or best.solution.time_us > bound_us + _FAR * self._gap_us:
            return len(_SEGMENTS)
        return int(best.solution.time_us > bound_us + _NEAR * self._gap_us)

    @staticmethod
    def _cheaper(one: Candidate | None, other: Candidate | None) -> Candidate | None:
        if one is None or other is None:
            return one or other
        return other if other.solution.time_us < one.solution.time_us else one

    def _filled(self, found: Candidate, peak_limit_bytes: int) -> Candidate:
        """A plan with one copy of each value, and the room that it leaves used."""
        if not self._own_order:
            return found
        plan = orders(self._spine, self._timing, found.saved, found.backward_order)
        rebuild = self._spine.backward
        better = filled(self._spine, self._timing, plan, rebuild, peak_limit_bytes, _REPLAYS)
        return found if better is plan else self._from_orders(better, found.source)

    def _by_nesting(self, peak_limit_bytes: int) -> Candidate | None:
        """The least time found from checkpoints in two levels, with the rest of the room used."""
        fitting = [
            (plan.time_us, number)
            for number, (_, plan) in enumerate(self._nested)
            if plan.profile.peak_bytes <= peak_limit_bytes
        ]
        best: Orders | None = None
        for _, number in sorted(fitting)[:_FILLED]:
            nested, plan = self._nested[number]
            plan = filled(
                self._spine, self._timing, plan, nested.backward, peak_limit_bytes, _REPLAYS
            )
            if best is None or plan.time_us < best.time_us:
                best = plan
        return None if best is None else self._from_orders(best, TWO_LEVELS)

    @cached_property
    def _nested(self) -> list[tuple[Nested, Orders]]:
        if not self._own_order:
            return []
        spine, timing = self._spine, self._timing
        return [
            (nested, orders(spine, timing, nested.saved, nested.backward(nested.saved)))
            for nested in nested_plans(spine)
        ]

    @property
    def _lowest_nested_bytes(self) -> int:
        return min((plan.profile.peak_bytes for _, plan in self._nested), default=0)

    def _from_orders(self, plan: Orders, source: str) -> Candidate:
        positions = [self._position[storage] for storage in sorted(plan.saved)]
        solution = replace(two_phase.evaluate(self.problem, positions), time_us=plan.time_us)
        orders_of_plan = plan.forward, plan.backward
        return Candidate(plan.saved, solution, plan.profile, *orders_of_plan, source)

    def _by_saved_bytes(
        self,
        peak_limit_bytes: int,
        room_bytes: int,
        bound_us: float,
        best: Candidate | None,
        ways: Iterable[frozenset[int]],
    ) -> Candidate | None:
        """``best``, or a cheaper plan found by saving less, over ways of cutting the forward."""
        for forced in ways:
            roomiest = self.at_saved_bytes(room_bytes, forced)
            if roomiest is None or (best and roomiest.solution.bound_us >= best.solution.time_us):
                continue
            enough_us = best.solution.time_us if best else inf
            found = self._descend(peak_limit_bytes, room_bytes, forced, enough_us)
            if found is not None:
                found = found.made_by(SEGMENTS if forced else SAVING_LESS)
                best = self._cheaper(best, self._filled(found, peak_limit_bytes))
            if best is not None and best.solution.time_us <= bound_us + self._gap_us:
                break  # proven: no choice of segments does better
        return best

    @cached_property
    def _checkpoints(self) -> list[frozenset[int]]:
        """Sets of values that cut the forward into more and more segments, none first."""
        return list(dict.fromkeys(self._spine.cuts(count) for count in _SEGMENTS))

    def _descend(
        self,
        peak_limit_bytes: int,
        room_bytes: int,
        forced: frozenset[int],
        enough_us: float,
    ) -> Candidate | None:
        """Save less and less until the simulated peak fits, then a little more again; None
        where that takes no less than ``enough_us``."""
        too_much, saved_limit = None, room_bytes
        for _ in range(_STEPS):
            found = self.at_saved_bytes(saved_limit, forced)
            if found is None or found.solution.bound_us >= enough_us:
                return None
            excess = found.profile.peak_bytes - peak_limit_bytes
            if excess <= 0:
                if too_much is None:
                    return found
                return self._refine(peak_limit_bytes, saved_limit, too_much, found, forced)
            too_much = saved_limit
            saved_limit = min(saved_limit, found.solution.saved_bytes)
            saved_limit -= max(excess, room_bytes // 50, 1)
            if saved_limit < 0:
                return None
        return None

    def _refine(
        self,
        peak_limit_bytes: int,
        fits_at: int,
        too_much_at: int,
        fitting: Candidate,
        forced: frozenset[int],
    ) -> Candidate:
        """A cheaper plan between a limit on saved bytes that fits and one that does not."""
        low, high = fits_at, too_much_at
        for _ in range(_REFINEMENTS):
            middle = (low + high) // 2
            found = self.at_saved_bytes(middle, forced)
            if found is not None and found.profile.peak_bytes <= peak_limit_bytes:
                low = middle
                if found.solution.time_us < fitting.solution.time_us:
                    fitting = found
            else:
                high = middle
        return fitting

    def bound_us(self, peak_limit_bytes: int) -> float:
        """Proven: no plan of the class within the limit recomputes for less time than this;
        infinite where there is none at all."""
        boundary = self.at_saved_bytes(self.room_at_boundary(peak_limit_bytes))
        if boundary is None:
            return 0.0
        if boundary.profile.peak_bytes <= peak_limit_bytes:
            return boundary.solution.bound_us
        moments = self._looked_at(peak_limit_bytes, boundary)
        return max([boundary.solution.bound_us, *(bound.time_us for bound, _ in moments)])

    @property
    def least_peak_bytes(self) -> int:
        """Proven: no plan of the class has a lower peak."""
        return self._single_moments.least_peak_bytes

    @cached_property
    def _single_moments(self) -> SingleMoments:
        return SingleMoments(self._spine, self._gap_us, self._effort)

    def _looked_at(
        self, peak_limit_bytes: int, boundary: Candidate
    ) -> list[tuple[MomentBound, Orders]]:
        if peak_limit_bytes not in self._moments_of:
            plan = orders(self._spine, self._timing, boundary.saved, boundary.backward_order)
            found = worst_moments(self._single_moments, self._timing, plan, peak_limit_bytes)
            self._moments_of[peak_limit_bytes] = found
        return self._moments_of[peak_limit_bytes]

    def _by_single_moments(
        self, peak_limit_bytes: int, saved_limit_bytes: int | None
    ) -> Candidate | None:
        """The cheapest of the plans made of the moments' solutions."""
        boundary = self.at_saved_bytes(self.room_at_boundary(peak_limit_bytes))
        best: Candidate | None = None
        for _, plan in [] if boundary is None else self._looked_at(peak_limit_bytes, boundary):
            enough = saved_limit_bytes is None or plan.profile.saved_bytes <= saved_limit_bytes
            if plan.profile.peak_bytes <= peak_limit_bytes and enough:
                found = self._from_orders(plan, ONE_MOMENT)
                best = self._cheaper(best, self._filled(found, peak_limit_bytes))
        return best

    def floor(self) -> Candidate:
        """The lowest simulated peak found, by a fixed procedure: the lowest of ``lows``, or what is
        found below it at rungs down to the proven bound.

        Raises:
            Infeasible: no valid plan was found.
        """
        return self._floor

    @cached_property
    def _floor(self) -> Candidate:
        lowest = self.lows[0]
        operations = len(self.step.operations)
        if operations > _LARGE:
            return lowest
        try:
            grid_bytes = self.default.profile.peak_bytes
        except two_phase.Infeasible:
            grid_bytes = lowest.profile.peak_bytes
        least_bytes = rung_above(self.least_peak_bytes, grid_bytes)
        limit_bytes, in_vain = rung_above(lowest.profile.peak_bytes, grid_bytes), 0
        while limit_bytes >= least_bytes and in_vain < _IN_VAIN:
            found = self._searched(limit_bytes, None, by_rounds=operations <= _SMALL)
            if found is not None and found.profile.peak_bytes < lowest.profile.peak_bytes:
                lowest, in_vain = found, 0
                limit_bytes = rung_below(lowest.profile.peak_bytes - 1, grid_bytes)
                continue
            # What fits at a rung may be found a little below it only, where less is saved, and
            # next to the proven bound, whose own plan may be one.
            in_vain += 1
            is_last = in_vain == _IN_VAIN - 1 and limit_bytes > least_bytes
            limit_bytes = least_bytes if is_last else rung_below(limit_bytes - 1, grid_bytes)
        return lowest

    def lowest_saving(self, saved_limit_bytes: int) -> Candidate | None:
        """The plan of the lowest peak among those made without a search that save no more bytes
        than said."""
        found = [
            each
            for each in (*self._without_limit, *self._in_two_levels)
            if each.profile.saved_bytes <= saved_limit_bytes
        ]
        return min(found, key=_lowness, default=None)

    @cached_property
    def _in_two_levels(self) -> list[Candidate]:
        return [self._from_orders(plan, TWO_LEVELS) for _, plan in self._nested]

    @cached_property
    def lows(self) -> list[Candidate]:
        """Plans of low peaks, each the lowest made in its own way without a limit, in the order of
        their simulated peaks: torch's own or with checkpoints in one level, and in two levels.

        Raises:
            Infeasible: there is none.
        """
        ways = (self._without_limit, self._in_two_levels)
        lows = [min(way, key=_lowness) for way in ways if way]
        if not lows:
            raise two_phase.Infeasible("no valid plan was found at any limit on saved bytes")
        return sorted(lows, key=_lowness)

    @cached_property
    def _without_limit(self) -> list[Candidate]:
        """Torch's own plan, those that save shares of what the one with room for everything does,
        and plans that save what the forward is cut by and as little else as they can."""
        sizes = self.step.storage_bytes
        found = [self.at_saved_bytes(sum(sizes[s] for s in f), f) for f in self._checkpoints]
        roomiest = self.at_saved_bytes(sum(sizes))
        found.append(roomiest)
        if roomiest is not None and len(self.choices) <= _FEW:
            found += self._less_and_less(roomiest)
        elif roomiest is not None and len(self.step.operations) <= _LARGE:
            saved_bytes = roomiest.solution.saved_bytes
            found += [self.at_saved_bytes(int(share * saved_bytes)) for share in _SHARES]
        plans = [plan.made_by(ANY_LIMIT) for plan in found if plan is not None]
        with suppress(two_phase.Infeasible):  # where nobody said what torch's own plan saves
            plans.append(self.default)
        return plans

    def _less_and_less(self, found: Candidate | None) -> Iterator[Candidate]:
        """The least-time plans at ever lower limits on saved bytes, each of which leaves out
        something that the one before saves."""
        while found is not None and found.solution.saved_bytes > 0:
            found = self.at_saved_bytes(found.solution.saved_bytes - 1)
            if found is not None:
                yield found

    def least_saved(self) -> Candidate:
        """The plan found that saves the fewest bytes, whatever its peak."""
        found = self._without_limit
        return min(found, key=lambda c: (c.profile.saved_bytes, c.profile.peak_bytes))


def _lowness(candidate: Candidate) -> tuple[int, float]:
    return candidate.profile.peak_bytes, candidate.solution.time_us
