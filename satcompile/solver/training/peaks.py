"""Least time with the peak within a limit at every position: moments added where they are needed.

Each round solves the two-phase problem with the moments there are, decodes the solution into
orders and replays them exactly. Where the replay is over the limit, the worst positions become
moments; a moment that is one already, but whose row saw fewer bytes than the replay, is told
the difference. (Lazily generated rows, as in ``satcompile.solver.training.moments``.)

A heuristic: a row's difference is that of one plan and is held against all; where the plan then
leaves much room, less is held against them once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from satcompile.solver.training.fast_replay import loads
from satcompile.solver.training.filling import Orders, orders
from satcompile.solver.training.moments import Choice, Model, Moment, Spine, decode
from satcompile.solver.training.timing import Timing

# Of the excess that a row did not see, how much is held against all choices on top: little at
# first, as another choice may not have it, more where that was not enough.
_CAUTION = (0.5, 0.5, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0)
_AT_LEAST = 1e-3  # of the limit: the least that is held against them
_FULL = 0.985  # of the limit in use: no more to win by holding less against the choices
_NEW_MOMENTS = 2  # a round: with more of them at once solves are slow and no better
_APART = 1 / 60  # of the spine: how far new moments lie from each other


class PeakSearch:
    """Rounds for one step.

    Args:
        spine, timing: of the step.
        gap_us: how far a round's solution may be from its optimum.
        node_limit: branch-and-bound nodes of a round.
    """

    def __init__(self, spine: Spine, timing: Timing, gap_us: float, node_limit: int) -> None:
        self._spine, self._timing = spine, timing
        self._gap_us, self._node_limit = gap_us, node_limit

    def within(self, limit_bytes: int, room_bytes: int) -> Iterator[tuple[Choice, Orders]]:
        """Choice and plan of each round, whether it fits or not.

        Args:
            limit_bytes: of the peak.
            room_bytes: for what is saved, where the backward begins.
        """
        slacks: dict[tuple[int, bool], int] = {}
        fitted = False
        for caution in _CAUTION:
            moments = [Moment(*key, slack_bytes=slack) for key, slack in slacks.items()]
            model = Model(self._spine, limit_bytes, room_bytes, moments)
            choice = model.solve(self._gap_us, self._node_limit)
            if choice is None and not any(slacks.values()):
                return
            if choice is None:  # too much was held against all plans
                slacks = {key: slack // 2 for key, slack in slacks.items()}
                continue
            backward = decode(self._spine, choice)
            plan = orders(self._spine, self._timing, choice.saved, backward)
            yield choice, plan
            if plan.profile.peak_bytes <= limit_bytes:
                if fitted or plan.profile.peak_bytes > _FULL * limit_bytes:
                    return
                fitted = True
                slacks = {key: slack * 3 // 4 for key, slack in slacks.items()}
                continue
            self._add_moments(slacks, choice, plan, model, limit_bytes, caution)

    def _add_moments(
        self,
        slacks: dict[tuple[int, bool], int],
        choice: Choice,
        plan: Orders,
        model: Model,
        limit_bytes: int,
        caution: float,
    ) -> None:
        """Make the worst positions moments, and tell those that saw too little."""
        spine = self._spine
        loaded = loads_by_position(spine, plan)
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
            seen_bytes = model.seen_bytes(key, choice)
            unseen_bytes = 0
            if seen_bytes <= limit_bytes:  # or the row alone forbids this choice
                more_bytes = (loaded[key] - limit_bytes) * caution + limit_bytes * _AT_LEAST
                unseen_bytes = limit_bytes - seen_bytes + int(more_bytes)
            slacks[key] = max(slacks.get(key, 0), unseen_bytes)


def loads_by_position(spine: Spine, plan: Orders) -> dict[tuple[int, bool], int]:
    """The most bytes alive at each position of the spine (False), with what is computed again
    for it, and of the forward (True)."""
    forward, backward = loads(spine.step, plan.forward, plan.backward, plan.saved)
    found = {
        (position, False): num_bytes
        for position, num_bytes in _by_spine(spine, plan.backward, backward).items()
    }
    number = {index: position for position, index in enumerate(spine.forward_operations)}
    for index, num_bytes in zip(plan.forward, forward, strict=True):
        found[number[index], True] = num_bytes
    return found


def _by_spine(spine: Spine, order: Sequence[int], bytes_at: Sequence[int]) -> dict[int, int]:
    """The most bytes alive while each operation of the spine, and what is recomputed for it, runs;
    nothing of a backward that only computes again."""
    if not spine.operations:
        return {}
    number = {index: position for position, index in enumerate(spine.operations)}
    found: dict[int, int] = {}
    position = len(spine.operations) - 1  # what comes after the last belongs to it
    for index, num_bytes in zip(reversed(order), reversed(bytes_at), strict=True):
        position = number.get(index, position)
        found[position] = max(found.get(position, 0), num_bytes)
    return found
