"""Lower bounds of the time added to a step, from what is alive at one moment of it.

Where the backward begins, everything that is saved is alive: a two-phase problem, whose optimum
no plan within the limit beats. But logits, their incoming gradient and their own gradient stand
together a few operations later, and convolutions take workspaces in the middle. So the same is
asked of other moments; the highest of the bounds holds.

A moment of the backward, at position t of the spine. Let R be the forward's values that are
in memory while operation t runs and stay there. Every value used after t is in R, or is computed
again after t from values of which the same is true: a two-phase problem, in which "saved" reads
"in R". What else is alive at t in every plan leaves the room for R: outputs, incoming gradients
and results of the backward that are made by then and read later, and what t itself writes. A
value in R was saved or was computed again before t, so it costs the cheaper of the two. Values
that are of no use after t cost what the same problem for them alone costs, with all the room that
there is at the start of the backward.

A moment of the forward, operation t: what is saved of what is made by then is alive, beside what
the forward itself still needs.

Only what is alive whatever the plan is counted. Results that a kernel might inline weigh nothing;
where t might write over what it reads, what it reads may weigh nothing.

Not tight where a chain that is computed again is itself the peak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

from satcompile.solver.training import two_phase
from satcompile.solver.training.filling import Orders, orders
from satcompile.solver.training.moments import Spine
from satcompile.solver.training.peaks import loads_by_position
from satcompile.solver.training.step import StepOperation, forward_order
from satcompile.solver.training.timing import Timing

_MOMENTS = 4  # of which bounds are asked
_APART = 60  # part of the backward by which they lie apart


@dataclass(frozen=True)
class _Alive:
    """What is alive at a moment in every plan.

    Attributes:
        num_bytes: of all that.
        storages: those of them that might be saved as well.
    """

    num_bytes: int
    storages: frozenset[int] = frozenset()


@dataclass(frozen=True)
class MomentBound:
    """What one moment proves.

    Attributes:
        time_us: no plan within the limit adds less; infinite where there is none at all.
        saved: storages in memory at that moment in the solution; no plan by themselves.
    """

    time_us: float
    saved: frozenset[int] | None


class SingleMoments:
    """Bounds for one step.

    Args:
        spine: of the step.
        gap_us: how far from proven least time a solution may be.
        effort: branch-and-bound nodes a solve.
    """

    def __init__(self, spine: Spine, gap_us: float, effort: int) -> None:
        self.spine = spine
        self._gap_us, self._effort = gap_us, effort
        step = spine.step
        self._kept = step.gradients - step.consumed
        self._results = Counter(value.producer for value in spine.problem.values)

    # -- the backward ----------------------------------------------------------------------

    def in_backward(self, position: int, limit_bytes: int) -> MomentBound:
        """What the moment at which an operation of the spine runs proves for a limit on the peak."""
        room_bytes = limit_bytes - self._held_bytes[position]
        later, forced = self._later(position)
        start_bytes = limit_bytes - self._base_bytes
        return self._bound(later, room_bytes, forced, self._earlier(position), start_bytes)

    def is_written(self, position: int) -> bool:
        """Whether the operation's results are in memory in every plan."""
        operation = self._operation(position)
        return not any(self._may_be_inlined(storage) for storage in operation.writes)

    @cached_property
    def least_peak_bytes(self) -> int:
        """No plan has a lower peak: the most that one moment of the backward holds of itself."""
        values = self.spine.problem.values
        return max(
            (
                held + sum(values[i].num_bytes for i in self._forced(position))
                for position, held in enumerate(self._held_bytes)
                if self.is_written(position)
            ),
            default=self._base_bytes,
        )

    def _operation(self, position: int) -> StepOperation:
        return self.spine.step.operations[self.spine.operations[position]]

    @cached_property
    def _base_bytes(self) -> int:
        step = self.spine.step
        return step.constant_bytes + sum(step.storage_bytes[s] for s in step.outputs)

    @cached_property
    def _made_at(self) -> dict[int, int]:
        return {
            storage: position
            for position in range(len(self.spine.operations))
            for storage in self._operation(position).writes
        }

    @cached_property
    def _read_at(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for position in range(len(self.spine.operations)):
            for storage in self._operation(position).reads:
                found.setdefault(storage, []).append(position)
        return found

    def _may_be_inlined(self, storage: int) -> bool:
        """Whether a result of the backward might never reach memory."""
        operation = self._operation(self._made_at[storage])
        return (
            operation.fusible
            and not operation.reduces
            and len(operation.writes) == 1
            and storage not in self.spine.step.gradients
            and all(self._operation(p).fusible for p in self._read_at.get(storage, ()))
        )

    @cached_property
    def _held_bytes(self) -> list[int]:
        """What the backward holds of itself while each operation of the spine runs, at least."""
        step, count = self.spine.step, len(self.spine.operations)
        changes = [0] * (count + 1)
        for storage, (first, last) in self._surely_alive.items():
            if first <= last:
                changes[first] += step.storage_bytes[storage]
                changes[last + 1] -= step.storage_bytes[storage]
        held, alive = [], self._base_bytes
        for position in range(count):
            alive += changes[position]
            held.append(alive + self._own_bytes(position))
        return held

    @cached_property
    def _surely_alive(self) -> dict[int, tuple[int, int]]:
        """First and last position, beside their maker's, at which storages are surely alive."""
        step, end = self.spine.step, len(self.spine.operations) - 1
        found = {
            storage: (made + 1, end if storage in self._kept else self._last_read(storage))
            for storage, made in self._made_at.items()
            if not self._may_be_inlined(storage)
        }
        for storage in step.tangents - step.outputs:
            found[storage] = 0, end if step.tangents_stay else self._last_read(storage)
        return found

    def _last_read(self, storage: int) -> int:
        return max(self._read_at.get(storage, ()), default=-1)

    def _own_bytes(self, position: int) -> int:
        """What the operation takes beside what is counted as alive already."""
        operation, sizes = self._operation(position), self.spine.step.storage_bytes
        written = [sizes[s] for s in operation.writes]
        if self._is_in_place(position):
            for storage in operation.reads:
                dies = self._surely_alive.get(storage, (0, -1))[1] == position
                may_give = dies and storage in self._made_at and storage not in self._kept
                if may_give and sizes[storage] in written:
                    written.remove(sizes[storage])
        return sum(written) + operation.workspace_bytes

    def _is_in_place(self, position: int) -> bool:
        operation = self._operation(position)
        return operation.fusible and not operation.reduces

    def _forced(self, position: int) -> list[int]:
        """Choices that are in memory at the moment in every plan, and stay apart from what the
        operation writes."""
        spine, operation = self.spine, self._operation(position)
        taken_over: set[int] = set()
        if self._is_in_place(position):
            taken_over = {spine.step.storage_bytes[s] for s in operation.writes}
        return [
            i
            for storage in dict.fromkeys(operation.reads)
            if (i := spine.number.get(storage)) is not None
            and spine.problem.values[i].num_bytes not in taken_over
            and not (operation.fusible and spine.is_inlinable(i))
        ]

    def _first_later(self, position: int) -> int:
        """From where on uses need what is in memory at the moment and stays there: an operation
        that works in place may be the last to see what it reads."""
        return position + 1 if self._is_in_place(position) else position

    def _later(self, position: int) -> tuple[two_phase.Problem, list[int]]:
        """What is computed again from the moment on, and what is in memory for certain."""
        spine, first = self.spine, self._first_later(position)
        operations = spine.problem.operations
        end = len(spine.operations)
        values = []
        for i, value in enumerate(spine.problem.values):
            uses = [use for use in spine.uses[i] if use >= first]
            again_us = operations[value.producer].time_us / self._results[value.producer]
            there_us = min(value.save_time_us, again_us) if value.saveable else again_us
            values.append(
                replace(
                    value,
                    needed=bool(uses),
                    saveable=True,  # a copy may be there
                    save_time_us=there_us,
                    unfused_backward=any(
                        not self._operation(use).fusible for use in uses if use < end
                    ),
                )
            )
        return two_phase.Problem(operations, values), self._forced(position)

    def _earlier(self, position: int) -> two_phase.Problem:
        """What is of no use from the moment on, with everything else for nothing."""
        spine, first = self.spine, self._first_later(position)
        problem = spine.problem
        lasting = {
            value.producer
            for value, last in zip(problem.values, spine.last_use, strict=True)
            if last >= first
        }
        values = [
            replace(value, needed=bool(spine.uses[i]), unfused_backward=False)
            if value.producer not in lasting
            else two_phase.Value(value.producer, num_bytes=0)
            for i, value in enumerate(problem.values)
        ]
        return two_phase.Problem(problem.operations, values)

    # -- the forward -----------------------------------------------------------------------

    def is_written_in_forward(self, position: int) -> bool:
        """Whether the operation runs, and its results are in memory, in every plan."""
        spine = self.spine
        written = spine.step.operations[spine.forward_operations[position]].writes
        return bool(written) and self._surely_written.issuperset(written)

    def in_forward(self, position: int, limit_bytes: int) -> MomentBound:
        """What the moment at which an operation of the forward runs proves.

        Args:
            position: in ``Spine.forward_operations``.
        """
        spine, index = self.spine, self.spine.forward_operations[position]
        alive = self._alive_in_forward(index)
        values = [
            replace(value, num_bytes=value.num_bytes if maker <= index else 0)
            if storage not in alive.storages
            else replace(value, num_bytes=0)
            for storage, maker, value in zip(
                spine.choices, spine.maker_of, spine.problem.values, strict=True
            )
        ]
        problem = two_phase.Problem(spine.problem.operations, values)
        return self._bound(problem, limit_bytes - alive.num_bytes, [], None, 0)

    def _alive_in_forward(self, index: int) -> _Alive:
        step, makers, last = self.spine.step, self.spine.makers, self._last_in_forward
        sizes, operation = step.storage_bytes, step.operations[index]
        kept = step.outputs | step.transient_outputs
        alive = {
            storage
            for storage in self._surely_written
            if makers[storage] < index and (storage in kept or last[storage] >= index)
        }
        written = {s: sizes[s] for s in operation.writes}
        if operation.fusible and not operation.reduces:
            dying = Counter(
                sizes[s] for s in operation.reads if s in alive - kept and last[s] == index
            )
            for storage in sorted(written):
                if dying[written[storage]] > 0:
                    dying[written[storage]] -= 1
                    written[storage] = 0
        num_bytes = step.constant_bytes + operation.workspace_bytes
        num_bytes += sum(sizes[s] for s in alive) + sum(written.values())
        return _Alive(num_bytes, frozenset({*alive, *written}))

    @cached_property
    def _any_forward(self) -> list[int]:
        """Operations that the forward runs whatever is saved."""
        return forward_order(self.spine.step, ())

    @cached_property
    def _last_in_forward(self) -> Counter[int]:
        last: Counter[int] = Counter()
        for index in self._any_forward:
            for storage in self.spine.step.operations[index].reads:
                last[storage] = max(last[storage], index)
        return last

    @cached_property
    def _surely_written(self) -> frozenset[int]:
        """Results of the forward that are in memory in every plan, saved or not."""
        step = self.spine.step
        unfused = {
            storage
            for index in self._any_forward
            if not step.operations[index].fusible
            for storage in step.operations[index].reads
        }
        kept = step.outputs | step.transient_outputs
        return frozenset(
            storage
            for index in self._any_forward
            for storage in step.operations[index].writes
            if storage in unfused or storage in kept or not _may_inline(step.operations[index])
        )

    # -- both ------------------------------------------------------------------------------

    def _bound(
        self,
        problem: two_phase.Problem,
        room_bytes: int,
        forced: Iterable[int],
        apart: two_phase.Problem | None,
        apart_bytes: int,
    ) -> MomentBound:
        try:
            found = self._solved(problem, room_bytes, forced)
            before = None if apart is None else self._solved(apart, apart_bytes)
        except two_phase.Infeasible:
            return MomentBound(inf, None)
        time_us = sum(solution.bound_us for solution in (found, before) if solution is not None)
        if found is None:
            return MomentBound(time_us, None)
        return MomentBound(time_us, frozenset(self.spine.choices[i] for i in found.saved))

    def _solved(
        self, problem: two_phase.Problem, room_bytes: int, forced: Iterable[int] = ()
    ) -> two_phase.Solution | None:
        try:
            return two_phase.solve(
                problem, room_bytes, self._gap_us, forced, node_limit=self._effort
            )
        except two_phase.Unsolvable:
            return None


def _may_inline(operation: StepOperation) -> bool:
    return operation.fusible and not operation.reduces and len(operation.writes) == 1


def worst_moments(
    moments: SingleMoments, timing: Timing, plan: Orders, limit_bytes: int
) -> list[tuple[MomentBound, Orders]]:
    """Bounds of a few moments, and a plan with each: that where ``plan`` is furthest over the
    limit, that where the plan which saves what is in memory there is, and so on."""
    spine = moments.spine
    found: list[tuple[MomentBound, Orders]] = []
    seen: list[tuple[int, bool]] = []
    while len(found) < _MOMENTS:
        worst = _worst(moments, plan, limit_bytes, seen)
        if worst is None:
            break
        seen.append(worst)
        position, in_forward = worst
        look = moments.in_forward if in_forward else moments.in_backward
        bound = look(position, limit_bytes)
        saved = None if bound.saved is None else spine.with_unrepeatable(bound.saved)
        if saved is not None and not in_forward:
            plan = orders(spine, timing, saved, spine.backward(saved))
        found.append((bound, plan))
    return found


def _worst(
    moments: SingleMoments, plan: Orders, limit_bytes: int, seen: Iterable[tuple[int, bool]]
) -> tuple[int, bool] | None:
    """Where a plan is furthest over the limit, of the moments that say something and lie apart
    from those seen; None where it is within."""
    apart = max(1, len(moments.spine.operations) // _APART)
    loaded = loads_by_position(moments.spine, plan)
    for key in sorted(loaded, key=lambda k: (-loaded[k], k)):
        position, in_forward = key
        if loaded[key] <= limit_bytes:
            break
        near = any(in_forward == other and abs(position - at) < apart for at, other in seen)
        says = moments.is_written_in_forward if in_forward else moments.is_written
        if not near and says(position):
            return key
    return None
