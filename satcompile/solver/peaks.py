"""Least time with the peak within a limit at every position: moments added where they are needed.

Each round solves the two-phase problem with the moments there are, decodes the solution into
orders and replays them exactly. Where the replay is over the limit, the worst positions become
moments; a moment that is one already, but whose row saw fewer bytes than the replay, is told
the difference. (Lazily generated rows, as in ``satcompile.solver.moments``.)

A heuristic: a row's difference is that of one plan and is held against all, and a plan that
fits ends the search.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from satcompile.solver.moments import Choice, Model, Moment, Spine, decode
from satcompile.solver.step import (
    StepProfile,
    backward_order,
    forward_order,
    loads,
    simulate_orders,
)

# Of the excess that a row did not see, how much is held against all choices on top: little at
# first, as another choice may not have it, more where that was not enough.
_CAUTION = (0.4, 0.6, 0.8, 1.0, 1.2)
_NEW_MOMENTS = 3  # a round
_APART = 1 / 60  # of the spine: how far new moments lie from each other


@dataclass(frozen=True)
class Planned:
    """A choice in its orders."""

    choice: Choice
    forward_order: tuple[int, ...]
    backward_order: tuple[int, ...]
    profile: StepProfile


class PeakSearch:
    """Rounds for one step.

    Args:
        spine: of the step.
        gap_us: how far a round's solution may be from its optimum.
        node_limit: branch-and-bound nodes of a round.
    """

    def __init__(self, spine: Spine, gap_us: float, node_limit: int) -> None:
        self._spine, self._gap_us, self._node_limit = spine, gap_us, node_limit

    def within(
        self, limit_bytes: int, room_bytes: int, forced: Iterable[int] = ()
    ) -> Iterator[Planned]:
        """The plan of each round; the last one fits, unless the rounds are used up.

        Args:
            limit_bytes: of the peak.
            room_bytes: for what is saved, where the backward begins.
            forced: positions of choices that must be saved.
        """
        slacks: dict[tuple[int, bool], int] = {}
        forced = tuple(forced)
        for caution in _CAUTION:
            moments = [Moment(*key, slack_bytes=slack) for key, slack in slacks.items()]
            model = Model(self._spine, limit_bytes, room_bytes, moments, forced)
            choice = model.solve(self._gap_us, self._node_limit)
            if choice is None and not any(slacks.values()):
                return
            if choice is None:  # too much was held against all plans
                slacks = {key: slack // 2 for key, slack in slacks.items()}
                continue
            plan = self._planned(choice)
            yield plan
            if plan.profile.peak_bytes <= limit_bytes:
                return
            self._add_moments(slacks, plan, model, limit_bytes, caution)

    def _planned(self, choice: Choice) -> Planned:
        step = self._spine.step
        forward, backward = forward_order(step, choice.saved), decode(self._spine, choice)
        if not set(backward) <= set(backward_order(step, choice.saved)):
            # Results of one operation of which some are saved: what another copy of them is
            # made of need not cross. One copy of each, then.
            backward = backward_order(step, choice.saved)
        profile = simulate_orders(step, forward, backward, choice.saved)
        return Planned(choice, tuple(forward), tuple(backward), profile)

    def _add_moments(
        self,
        slacks: dict[tuple[int, bool], int],
        plan: Planned,
        model: Model,
        limit_bytes: int,
        caution: float,
    ) -> None:
        """Make the worst positions moments, and tell those that saw too little."""
        step, spine = self._spine.step, self._spine
        forward, backward = loads(step, plan.forward_order, plan.backward_order, plan.choice.saved)
        loaded = {
            (position, False): num_bytes
            for position, num_bytes in _by_spine(spine, plan.backward_order, backward).items()
        }
        number = {index: position for position, index in enumerate(spine.forward_operations)}
        for index, num_bytes in zip(plan.forward_order, forward, strict=True):
            loaded[number[index], True] = num_bytes
        chosen: list[tuple[int, bool]] = []
        for key in sorted(loaded, key=lambda k: (-loaded[k], k)):
            if loaded[key] <= limit_bytes or len(chosen) == _NEW_MOMENTS:
                break
            if all(
                key[1] != k[1] or abs(key[0] - k[0]) > _APART * len(spine.operations)
                for k in chosen
            ):
                chosen.append(key)
        for key in chosen:
            seen_bytes = model.seen_bytes(key, plan.choice)
            unseen_bytes = 0
            if seen_bytes <= limit_bytes:  # or the row alone forbids this choice
                over_bytes = loaded[key] - limit_bytes
                unseen_bytes = limit_bytes - seen_bytes + int(over_bytes * caution) + 1
            slacks[key] = max(slacks.get(key, 0), unseen_bytes)


def _by_spine(spine: Spine, order: Sequence[int], bytes_at: Sequence[int]) -> dict[int, int]:
    """The most bytes alive while each operation of the spine, and what is recomputed for it, runs."""
    number = {index: position for position, index in enumerate(spine.operations)}
    found: dict[int, int] = {}
    position = len(spine.operations) - 1  # what comes after the last belongs to it
    for index, num_bytes in zip(reversed(order), reversed(bytes_at), strict=True):
        position = number.get(index, position)
        found[position] = max(found.get(position, 0), num_bytes)
    return found
