"""The two-phase problem with memory looked at in several moments of the step.

Bytes alive are bounded at the start of the backward and at chosen *moments*: operations of the
backward (whose own order is fixed) and positions of the forward. Between two moments lies a
*block*. In every block a value may be recomputed, so that it has up to one copy a block: it can
be dropped where room is short and recomputed where it is needed again.

Binaries: S[v], v is saved; X[k,v], v is resident at moment k of the backward; R[b,o], operation
o is recomputed in block b. With avail[0] = S and avail[k] = X[k]:

- avail[b,v] + R[b, maker of v] >= 1 for every v that the backward reads in block b,
- avail[b,v] + R[b, maker of v] >= R[b,o] for every v that o reads,
- X[k,v] <= avail[k-1,v] + R[k-1, maker of v],
- bytes of all resident values, with what the backward itself holds, within the limit.

This is the lazily refined model of Checkmate (Jain et al., MLSys 2020) with memory rows at few
positions instead of all, and blocks instead of stages. ``decode`` turns a solution into orders;
exact replay shows which positions are over the limit still, and they become moments.

Not optimal: peaks of the working set inside a recomputed chain are seen by the replay only, and
what kernels save by working in place or by not writing inlined results is left out of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from scipy import optimize, sparse

from satcompile.solver.base.quiet import without_chatter
from satcompile.solver.training import two_phase
from satcompile.solver.training.fast_replay import loads
from satcompile.solver.training.segments import segment_boundaries
from satcompile.solver.training.step import (
    Phase,
    Step,
    backward_order,
    captured_backward_order,
    computations,
    copies,
    early_forward_order,
    forward_order,
)

_GUARD_S = 120.0  # against the unforeseen: work is limited by nodes
_REACH = 1 / 8  # of the forward's operations: how far ahead of its need a chain is recomputed


@dataclass(frozen=True, order=True)
class Moment:
    """A position at which memory is bounded.

    Attributes:
        position: in the backward's spine, or in the forward's order.
        in_forward: which of the two.
        slack_bytes: by how much less than the limit may be in use there, for what the row does
            not see.
    """

    position: int
    in_forward: bool = False
    slack_bytes: int = 0


@dataclass(frozen=True)
class Choice:
    """A solution: what is saved, and what stays at which position of the spine.

    Attributes:
        saved: storages.
        resident: storages that may stay, by position of the spine.
    """

    saved: frozenset[int]
    resident: dict[int, frozenset[int]]


class Spine:
    """What of a step does not depend on the plan.

    Args:
        own_order: whether plans may run their operations in orders of their own.

    Attributes:
        operations: those of the backward proper, in their order.
        first_use: the first position at which each choice can be of use.
        last_use: the last position of the spine at which each choice can be of use, through
            whatever can be recomputed from it; -1 for none.
        uses: positions that read each choice; gradients are read at the end.
    """

    def __init__(
        self,
        step: Step,
        problem: two_phase.Problem,
        choices: Sequence[int],
        own_order: bool = True,
    ) -> None:
        self.step, self.problem, self.choices = step, problem, choices
        self.own_order = own_order
        self.makers = step.makers()
        self.operations = [
            index
            for index in backward_order(step, choices)
            if step.operations[index].phase is Phase.BACKWARD
        ]
        self.number = {storage: i for i, storage in enumerate(choices)}
        self.maker_of = [self.makers[storage] for storage in choices]
        self.uses: list[list[int]] = [[] for _ in choices]
        for position, index in enumerate(self.operations):
            for storage in step.operations[index].reads:
                if storage in self.number:
                    self.uses[self.number[storage]].append(position)
        for storage in step.gradients:
            if storage in self.number:
                self.uses[self.number[storage]].append(len(self.operations))
        self.last_use = self._last_uses()
        self.first_use_of_operation = self._first_uses()
        self.first_use = [min(uses, default=len(self.operations) + 1) for uses in self.uses]
        for index, operation in enumerate(problem.operations):
            if operation.recomputable:
                for i in operation.reads:
                    earliest = self.first_use_of_operation[index]
                    self.first_use[i] = min(self.first_use[i], earliest)

    def _first_uses(self) -> list[int]:
        """The first position at which running each operation again can be of use: for what it
        makes, or what is made within a reach of operations after it."""
        count = len(self.problem.operations)
        direct = [len(self.operations) + 1] * count
        for i, value in enumerate(self.problem.values):
            direct[value.producer] = min([direct[value.producer], *self.uses[i]])
        reach = max(1, int(count * _REACH))
        return [min(direct[index : index + reach]) for index in range(count)]

    def _last_uses(self) -> list[int]:
        last = [max(uses, default=-1) for uses in self.uses]
        results: dict[int, list[int]] = {}
        for i, value in enumerate(self.problem.values):
            results.setdefault(value.producer, []).append(i)
        for index in range(len(self.problem.operations) - 1, -1, -1):
            operation = self.problem.operations[index]
            if operation.recomputable:
                latest = max((last[i] for i in results.get(index, ())), default=-1)
                for i in operation.reads:
                    last[i] = max(last[i], latest)
        return last

    def forward(self, saved: Iterable[int]) -> list[int]:
        """The order in which the forward of a plan runs."""
        return (early_forward_order if self.own_order else forward_order)(self.step, saved)

    def backward(self, saved: Iterable[int]) -> list[int]:
        """The order in which the backward of a plan with one copy of each value runs."""
        return (backward_order if self.own_order else captured_backward_order)(self.step, saved)

    @cached_property
    def held_bytes(self) -> list[int]:
        """What the backward itself holds at each position: gradients so far, what the user
        keeps, results on their way. An exact replay in which nothing else weighs anything."""
        step = self.step
        weights = list(step.storage_bytes)
        for storage in self.choices:
            if storage not in step.outputs:
                weights[storage] = 0
        lighter = replace(step, storage_bytes=weights)
        saved = frozenset(self.choices)
        found = loads(lighter, forward_order(step, saved), self.operations, saved)[1]
        # Where an operation joins a kernel, what was held before it still is.
        for position in range(1, len(found)):
            found[position] = found[position] or found[position - 1]
        return found

    @cached_property
    def forward_operations(self) -> list[int]:
        return forward_order(self.step, self.choices)

    @cached_property
    def _forward_alive(self) -> list[frozenset[int]]:
        """Storages in memory while each position of the forward runs, when nothing is saved and
        no memory is taken over (what is saved cannot be)."""
        step, order = self.step, forward_order(self.step, ())
        kept = step.outputs | step.transient_outputs
        made = copies(step, order)
        steps = computations(step, made, made.latest_of(kept))
        last = {s: n for n, each in enumerate(steps) for s in (*each.reads, *each.writes)}
        during: dict[int, frozenset[int]] = {}
        current: set[Any] = set()
        for number, each in enumerate(steps):
            current.update(each.writes)
            during[order[int(each.label)]] = frozenset(storage for storage, _ in current)
            current = {s for s in current if s[0] in kept or last[s] > number}
        alive: list[frozenset[int]] = []
        for index in self.forward_operations:  # more than those: what only the backward needs
            alive.append(during.get(index, alive[-1] if alive else frozenset()))
        return alive

    def forward_row(self, position: int) -> tuple[int, dict[int, float]]:
        """Bytes in use there whatever is saved, and what every saved choice adds."""
        step, order = self.step, self.forward_operations
        alive = self._forward_alive[position]
        base_bytes = step.constant_bytes + step.operations[order[position]].workspace_bytes
        base_bytes += sum(step.storage_bytes[storage] for storage in alive)
        made = {s for i in order[: position + 1] for s in step.operations[i].writes}
        adds = {
            i: float(self.problem.values[i].num_bytes)
            for i, storage in enumerate(self.choices)
            if storage in made and storage not in alive
        }
        return base_bytes, adds

    def with_unrepeatable(self, saved: Iterable[int]) -> frozenset[int] | None:
        """The storages, and what must be saved with them as it cannot be computed again; None
        where it cannot be saved either."""
        found = {self.number[storage] for storage in saved}
        values, operations = self.problem.values, self.problem.operations
        stack = [i for i, value in enumerate(values) if value.needed]
        seen: set[int] = set()
        while stack:
            i = stack.pop()
            if i in seen or i in found:
                continue
            seen.add(i)
            if operations[values[i].producer].recomputable:
                stack.extend(operations[values[i].producer].reads)
            elif values[i].saveable:
                found.add(i)
            else:
                return None
        return frozenset(self.choices[i] for i in found)

    @cached_property
    def cuts(self) -> Callable[[int], frozenset[int]]:
        """Boundaries of so many segments, of what may be saved."""
        values = list(zip(self.choices, self.problem.values, strict=True))
        allowed = {storage for storage, value in values if value.saveable}
        operations = self.problem.operations
        free = {
            storage
            for storage, value in values
            if not operations[value.producer].reads
            and operations[value.producer].recomputable
            and self.step.operations[self.makers[storage]].fusible
        }
        return cache(lambda count: segment_boundaries(self.step, count, allowed, free))

    def is_single(self, choice: int) -> bool:
        return len(self.step.operations[self.maker_of[choice]].writes) == 1

    def is_inlinable(self, choice: int) -> bool:
        operation = self.step.operations[self.maker_of[choice]]
        return operation.fusible and not operation.reduces and len(operation.writes) == 1


class Model:
    """The mixed-integer program for given moments."""

    def __init__(
        self,
        spine: Spine,
        limit_bytes: int,
        room_bytes: int,
        moments: Iterable[Moment],
    ) -> None:
        self.spine, self.problem = spine, spine.problem
        self._limit_bytes = limit_bytes
        chosen = sorted(moments)
        self._moments = [m for m in chosen if not m.in_forward]
        self._costs: list[float] = []
        self._upper: list[float] = []
        self._lower: list[float] = []
        self._rows: list[dict[int, float]] = []
        self._at_least: list[float] = []
        values = self.problem.values
        self._saved = [self._column(v.save_time_us, float(v.saveable)) for v in values]
        self._bound_bytes(
            {c: float(v.num_bytes) for c, v in zip(self._saved, values, strict=True)}, room_bytes
        )
        self._resident: list[dict[int, int]] = []
        available = dict(enumerate(self._saved))
        again: dict[int, int] = {}
        starts = [0, *(m.position for m in self._moments)]
        ends = [*(m.position for m in self._moments), len(spine.operations) + 1]
        for block, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if block:
                available = self._add_moment(self._moments[block - 1], available, again)
            again = self._add_block(start, end, available)
        for moment in chosen:
            if moment.in_forward:
                base_bytes, adds = spine.forward_row(moment.position)
                room = limit_bytes - base_bytes - moment.slack_bytes
                self._bound_bytes({self._saved[i]: w for i, w in adds.items()}, room)

    def seen_bytes(self, moment: tuple[int, bool], choice: Choice) -> int:
        """What the row of a moment, without its slack, adds up to for a choice; the moment
        need not be one of the model's."""
        position, in_forward = moment
        spine, values = self.spine, self.problem.values
        if in_forward:
            base_bytes, adds = spine.forward_row(position)
            return base_bytes + int(
                sum(w for i, w in adds.items() if spine.choices[i] in choice.saved)
            )
        resident = choice.resident.get(position)
        if resident is None:
            resident = frozenset(
                storage
                for i, storage in enumerate(spine.choices)
                if storage in choice.saved and spine.last_use[i] >= position
            )
        return spine.held_bytes[position] + sum(
            values[spine.number[storage]].num_bytes for storage in resident
        )

    # -- columns and rows ------------------------------------------------------------------

    def _column(self, cost: float, upper: float = 1.0) -> int:
        self._costs.append(cost)
        self._upper.append(upper)
        self._lower.append(0.0)
        return len(self._costs) - 1

    def _add(self, row: dict[int, float], at_least: float) -> None:
        self._rows.append(row)
        self._at_least.append(at_least)

    def _bound_bytes(self, weights: dict[int, float], room_bytes: int) -> None:
        weights = {column: weight for column, weight in weights.items() if weight > 0}
        scale = max(weights.values(), default=1.0)
        self._add({c: -w / scale for c, w in weights.items()}, -room_bytes / scale)
        for unit in _units(list(weights.values()), room_bytes):
            whole = {c: -(w // unit) for c, w in weights.items() if w >= unit}
            self._add(whole, -float(room_bytes // unit))

    def _add_block(self, start: int, end: int, available: dict[int, int]) -> dict[int, int]:
        """Recomputation between two moments; the columns of its operations.

        Args:
            start, end: positions of the spine; the block ends before ``end``.
            available: column of each choice that may be there when the block starts.
        """
        spine, problem = self.spine, self.problem
        last: dict[int, int] = {}
        for i, value in enumerate(problem.values):
            last[value.producer] = max(last.get(value.producer, -1), spine.last_use[i])
        again = {
            index: self._column(operation.time_us)
            for index, operation in enumerate(problem.operations)
            if operation.recomputable
            and last.get(index, -1) >= start
            and spine.first_use_of_operation[index] < end
        }
        for i, value in enumerate(problem.values):
            there = {available[i]: 1.0} if i in available else {}
            made = {again[value.producer]: 1.0} if value.producer in again else {}
            if any(start <= use < end for use in spine.uses[i]):
                self._add({**there, **made}, 1.0)
            if made and spine.is_single(i):  # what is saved is never computed again
                self._add({self._saved[i]: -1.0, again[value.producer]: -1.0}, -1.0)
            if value.materialize_time_us > 0 and made:
                self._add_write(i, start, end, there, again)
        for index, column in again.items():
            for i in problem.operations[index].reads:
                row = {column: -1.0}
                if i in available:
                    row[available[i]] = 1.0
                producer = problem.values[i].producer
                if producer in again:
                    row[again[producer]] = 1.0
                self._add(row, 0.0)
        return again

    def _add_write(
        self, i: int, start: int, end: int, there: dict[int, float], again: dict[int, int]
    ) -> None:
        """What writing a recomputed copy costs, where a reader in the block cannot fuse it."""
        value, spine = self.problem.values[i], self.spine
        operations = spine.step.operations
        read_unfused = any(
            start <= use < min(end, len(spine.operations))
            and not operations[spine.operations[use]].fusible
            for use in spine.uses[i]
        )
        readers = [again[reader] for reader in value.unfused_readers if reader in again]
        if not read_unfused and not readers:
            return
        write = self._column(value.materialize_time_us)
        if read_unfused:
            self._add({write: 1.0, **there}, 1.0)
        for reader in readers:
            self._add({write: 1.0, **there, reader: -1.0}, 0.0)

    def _add_moment(
        self, moment: Moment, before: dict[int, int], again: dict[int, int]
    ) -> dict[int, int]:
        """What is resident while an operation of the spine runs; the columns of it."""
        spine, values = self.spine, self.problem.values
        operation = spine.step.operations[spine.operations[moment.position]]
        resident: dict[int, int] = {}
        for i, value in enumerate(values):
            made = again.get(value.producer)
            if spine.last_use[i] < moment.position or (i not in before and made is None):
                continue
            if moment.position <= spine.first_use[i] and i in before:
                resident[i] = before[i]  # untouched since the forward: there if it is saved
                continue
            resident[i] = column = self._column(0.0)
            row = {column: -1.0}
            if i in before:
                row[before[i]] = 1.0
            if made is not None:
                row[made] = 1.0
            self._add(row, 0.0)
            read = moment.position in spine.uses[i]
            if read and not (operation.fusible and spine.is_inlinable(i)):
                self._lower[column] = 1.0
        weights = {column: float(values[i].num_bytes) for i, column in resident.items()}
        held_bytes = spine.held_bytes[moment.position] + moment.slack_bytes
        self._bound_bytes(weights, self._limit_bytes - held_bytes)
        self._resident.append(resident)
        return resident

    # -- solving ---------------------------------------------------------------------------

    def solve(self, gap_us: float, node_limit: int) -> Choice | None:
        """The best choice found; None where there is none, or none was found in time."""
        # A column fixed at one that costs as much as all others together: HiGHS's gap, which
        # is relative to the objective, becomes an absolute one.
        constant = float(sum(self._costs)) or 1.0
        self._lower[self._column(constant)] = 1.0
        with without_chatter():
            outcome = optimize.milp(
                np.array(self._costs),
                integrality=np.ones(len(self._costs)),
                bounds=optimize.Bounds(np.array(self._lower), np.array(self._upper)),
                constraints=optimize.LinearConstraint(self._matrix(), self._at_least, np.inf),
                options={
                    "node_limit": max(1, node_limit),
                    "time_limit": _GUARD_S,
                    "mip_rel_gap": max(1e-9, gap_us / (2 * constant)),
                },
            )
        if outcome.x is None:
            return None
        chosen = [i for i, column in enumerate(self._saved) if outcome.x[column] > 0.5]
        choices = self.spine.choices
        return Choice(
            frozenset(choices[i] for i in chosen),
            {
                moment.position: frozenset(
                    choices[i] for i, column in resident.items() if outcome.x[column] > 0.5
                )
                for moment, resident in zip(self._moments, self._resident, strict=True)
            },
        )

    def _matrix(self) -> sparse.csr_matrix:
        rows = np.repeat(np.arange(len(self._rows)), [len(row) for row in self._rows])
        columns = np.fromiter((c for row in self._rows for c in row), dtype=np.int64)
        weights = np.fromiter((w for row in self._rows for w in row.values()), dtype=float)
        return sparse.csr_matrix(
            (weights, (rows, columns)), shape=(len(self._rows), len(self._costs))
        )


def _units(weights: Sequence[float], room_bytes: int) -> list[int]:
    """Sizes by which a row of bytes is rounded down as a whole, as in ``two_phase``."""
    sizes = sorted({int(w) for w in weights if w > room_bytes // 500})

    def covered_bytes(unit: int) -> float:
        return sum(w for w in weights if int(w) % unit == 0)

    return sorted(sizes, key=lambda unit: (-covered_bytes(unit), unit))[:2]


def decode(spine: Spine, choice: Choice) -> list[int]:
    """The backward's order: every recomputation as late as its first reader allows, of what is
    not there; at a moment, copies that the solution does not keep are forgotten."""
    step, makers = spine.step, spine.makers
    there = set(choice.saved)
    order: list[int] = []
    for position, index in enumerate(spine.operations):
        if position in choice.resident:
            there &= choice.resident[position] | choice.saved
        order += recomputed_for(step, makers, there, step.operations[index].reads)
        order.append(index)
    order += recomputed_for(step, makers, there, sorted(step.gradients))
    return order


def redecoded(spine: Spine, choice: Choice, saved: frozenset[int]) -> list[int]:
    """``decode`` with other storages saved."""
    return decode(spine, replace(choice, saved=saved))


def recomputed_for(
    step: Step, makers: Mapping[int, int], there: set[int], reads: Iterable[int]
) -> list[int]:
    """Operations that make what is read and not there, in their order; it then is there."""
    found: set[int] = set()
    stack = list(reads)
    while stack:
        storage = stack.pop()
        maker = makers.get(storage)
        if storage in there or maker is None or maker in found:
            continue
        if step.operations[maker].phase is Phase.BACKWARD:
            continue
        found.add(maker)
        stack.extend(step.operations[maker].reads)
    for maker in found:
        there.update(step.operations[maker].writes)
    return sorted(found)
