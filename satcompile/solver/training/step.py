"""A training step as numbers: the joint graph's operations, storages, and a plan's memory.

A plan is which storages cross from forward to backward, and the order in which either side
runs its operations. An operation may stand several times in the backward's order: each time it
makes new copies of its storages, readers read the latest copy, and a copy is freed after its
last reader. ``forward_order`` and ``backward_order`` are the orders that follow from the saved
storages alone, with one copy each and every recomputation as late as its first reader allows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

from satcompile.solver.base.simulator import Computation, Event, Profile, liveness_events, replay
from satcompile.solver.training.step_arrays import (
    MOST_READS,
    MOST_READS_REUSED,
    StepArrays,
    step_arrays,
)


class Phase(Enum):
    """Where an operation of the joint graph may run."""

    FORWARD = "forward"  # the forward's outputs need it
    EITHER = "either"  # only the backward needs it, but no incoming gradient goes into it
    BACKWARD = "backward"  # an incoming gradient goes into it


@dataclass(frozen=True, slots=True)
class StepOperation:
    """An operation that makes storages; views have vanished into the storages they share.

    Attributes:
        name: of its node in the joint graph.
        reads, writes: indices of storages.
        phase: where it may run.
        fusible: Inductor can put it into one kernel with a fusible reader or producer.
        reduces: its result is smaller than what it reads; Inductor gives it a buffer always.
        workspace_bytes: taken and returned within the operation.
        stays: keeps its place among the forward's operations (random draws, effects).
        runs_anyway: runs whether or not its results are read (random draws).
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    phase: Phase
    fusible: bool = False
    reduces: bool = False
    workspace_bytes: int = 0
    stays: bool = False
    runs_anyway: bool = False


@dataclass(frozen=True)
class Step:
    """The joint graph in numbers.

    Attributes:
        operations: in the joint graph's order.
        storage_bytes: of every storage; 0 for what exists before the step (parameters, inputs).
        outputs: storages that the user holds until the backward has ended.
        transient_outputs: storages that the forward returns and its caller soon drops
            (updated buffers, which are copied into their places).
        gradients: storages that the backward returns.
        tangents: storages of the incoming gradients.
        consumed: of the gradients those that an update inside the backward takes, so that they
            are freed after their last reader like anything else.
        constant_bytes: alive from the forward to the end of the step whatever the plan
            (copies of weights and inputs in a layout that convolutions want).
        tangents_stay: whether the caller of the backward holds the incoming gradients until it
            returns.
    """

    operations: Sequence[StepOperation]
    storage_bytes: Sequence[int]
    outputs: frozenset[int]
    transient_outputs: frozenset[int]
    gradients: frozenset[int]
    tangents: frozenset[int]
    constant_bytes: int = 0
    consumed: frozenset[int] = frozenset()
    tangents_stay: bool = False

    @property
    def held_by_the_caller(self) -> frozenset[int]:
        """Storages that are there before the backward and outlive it."""
        return self.outputs | self.tangents if self.tangents_stay else self.outputs

    @cached_property
    def arrays(self) -> StepArrays:
        """The same for compiled code."""
        operations = self.operations
        return step_arrays(
            [o.reads for o in operations],
            [o.writes for o in operations],
            self.storage_bytes,
            [o.workspace_bytes for o in operations],
            [o.fusible for o in operations],
            [o.reduces for o in operations],
        )

    def makers(self) -> Mapping[int, int]:
        """The operation that makes each storage."""
        return self._makers

    @cached_property
    def _makers(self) -> dict[int, int]:
        return {
            storage: index
            for index, operation in enumerate(self.operations)
            for storage in operation.writes
        }


@dataclass(frozen=True)
class StepProfile:
    """Bytes that a step allocates, by position."""

    forward: Profile
    backward: Profile
    saved_bytes: int

    @property
    def peak_bytes(self) -> int:
        return max(self.forward.peak_bytes, self.backward.peak_bytes)

    @property
    def peak_label(self) -> str:
        in_forward = self.forward.peak_bytes >= self.backward.peak_bytes
        return self.forward.peak_label if in_forward else self.backward.peak_label


def forward_order(step: Step, saved: Iterable[int]) -> list[int]:
    """Operations that the forward runs: what its outputs and the saved storages need."""
    makers = step.makers()
    targets = {*step.outputs, *step.transient_outputs, *saved}
    for operation in step.operations:
        if operation.phase is Phase.FORWARD and not operation.writes:
            targets.update(operation.reads)  # a mutation, run for its effect
        if operation.runs_anyway and operation.phase is not Phase.BACKWARD:
            targets.update(operation.writes)
    wanted = _ancestors(step, makers, targets, set())
    return [
        index
        for index, operation in enumerate(step.operations)
        if operation.phase is not Phase.BACKWARD
        and (index in wanted or (operation.phase is Phase.FORWARD and not operation.writes))
    ]


def early_forward_order(step: Step, saved: Iterable[int]) -> list[int]:
    """``forward_order`` with what only the backward needs moved up to right behind what it reads,
    where that ends the life of more bytes than it makes: masks of activations, differences from
    a mean. In the joint graph they stand behind the whole forward, as their readers do."""
    saved, sizes, makers = frozenset(saved), step.storage_bytes, step.makers()
    order = forward_order(step, saved)
    lasting = saved | step.outputs | step.transient_outputs
    place: dict[int, int] = {}
    for index in order:
        operation = step.operations[index]
        place[index] = index
        read = [s for s in operation.reads if s in makers]
        if operation.phase is Phase.EITHER and read and not operation.stays:
            ended_bytes = sum(sizes[s] for s in read if s not in lasting)
            if ended_bytes and ended_bytes >= sum(sizes[s] for s in operation.writes):
                place[index] = max(place[makers[s]] for s in read)
    return sorted(order, key=lambda index: (place[index], index))


def backward_order(step: Step, saved: Iterable[int]) -> list[int]:
    """Operations that the backward runs, each recomputation right before its first reader and each
    sum of gradients right behind what it adds up.

    The capture may have a sum far behind that, as where two passes through the same layers turn
    out to be one; Inductor makes one kernel of a product and a sum, whose operands then stay.
    """
    return _backward_order(step, saved, as_captured=False)


def captured_backward_order(step: Step, saved: Iterable[int]) -> list[int]:
    """The same as torch orders it: what the captured backward makes of constants or of values of
    the forward stays where it stands there, its reader near or far."""
    return _backward_order(step, saved, as_captured=True)


def _backward_order(step: Step, saved: Iterable[int], as_captured: bool) -> list[int]:
    makers = step.makers()
    given = set(saved)
    # An operation of the joint graph's backward runs where some gradient comes of it.
    targets = set(step.gradients)
    for operation in step.operations:
        if operation.phase is Phase.BACKWARD and not operation.writes:
            targets.update(operation.reads)  # a mutation, run for its effect
    wanted = _ancestors(step, makers, targets, given)
    wanted.update(
        index
        for index, operation in enumerate(step.operations)
        if operation.phase is Phase.BACKWARD and not operation.writes
    )
    order: list[int] = []
    placed: set[int] = set()
    sums = {} if as_captured else _sums_of_gradients(step)

    def place(index: int) -> None:
        stack = [index]  # chains of sums may be as long as a sequence is
        while stack:
            current = stack.pop()
            if current in placed:
                continue
            placed.add(current)
            order.append(current)
            above = {sums[s] for s in step.operations[current].writes if s in sums} & wanted
            stack += [
                each
                for each in sorted(above)
                if _is_ready(step.operations[each].reads, makers, given, placed)
            ]

    for index, operation in enumerate(step.operations):
        is_of_backward = operation.phase is Phase.BACKWARD or (
            as_captured and operation.phase is Phase.EITHER and order
        )
        if index in wanted and is_of_backward and index not in placed:
            if _is_ready(operation.reads, makers, given, placed):
                place(index)
                continue
            for needed in sorted(_pending(step, makers, index, given, placed)):
                place(needed)
    # Gradients that no incoming gradient reaches (constants) come last.
    for index in sorted(wanted - placed):
        order.append(index)
    return order


def _sums_of_gradients(step: Step) -> dict[int, int]:
    """The operation that adds up a storage with others, all of the backward, read by nothing else
    and together no smaller, to a gradient that is a result: to run it early costs no memory."""
    made_in_backward: set[int] = set()
    readers: Counter[int] = Counter()
    for operation in step.operations:
        readers.update(set(operation.reads))
        if operation.phase is Phase.BACKWARD:
            made_in_backward.update(operation.writes)
    found: dict[int, int] = {}
    for index in range(len(step.operations) - 1, -1, -1):
        operation = step.operations[index]
        if operation.phase is not Phase.BACKWARD or not operation.fusible or operation.reduces:
            continue
        results = operation.writes
        if len(results) != 1 or not (results[0] in step.gradients or results[0] in found):
            continue
        reads = set(operation.reads)
        if sum(step.storage_bytes[s] for s in reads) < step.storage_bytes[results[0]]:
            continue
        if reads and all(s in made_in_backward and readers[s] == 1 for s in reads):
            found.update(dict.fromkeys(operation.reads, index))
    return found


def _ancestors(
    step: Step, makers: Mapping[int, int], targets: set[int], given: set[int]
) -> set[int]:
    found: set[int] = set()
    stack = [makers[t] for t in targets if t in makers and t not in given]
    while stack:
        index = stack.pop()
        if index in found:
            continue
        found.add(index)
        reads = step.operations[index].reads
        stack.extend(makers[r] for r in reads if r in makers and r not in given)
    return found


def _is_ready(
    reads: Iterable[int], makers: Mapping[int, int], given: set[int], placed: set[int]
) -> bool:
    return all(r in given or r not in makers or makers[r] in placed for r in reads)


def _pending(
    step: Step, makers: Mapping[int, int], index: int, given: set[int], placed: set[int]
) -> set[int]:
    found: set[int] = set()
    stack = [index]
    while stack:
        current = stack.pop()
        if current in found or current in placed:
            continue
        found.add(current)
        reads = step.operations[current].reads
        stack.extend(makers[r] for r in reads if r in makers and r not in given)
    return found


def simulate_orders(
    step: Step, forward: Sequence[int], backward: Sequence[int], saved: Iterable[int]
) -> StepProfile:
    """Bytes alive over the step when its operations run in the given orders.

    Operations may repeat: every appearance makes copies of its own, and what the user holds of
    the forward's outputs is the forward's copy, which the backward may read.
    """
    saved, sizes = frozenset(saved), step.storage_bytes
    forward_profile = replay(forward_events(step, forward, saved), step.constant_bytes)
    start_bytes = start_of_backward(step, forward_profile, saved)
    backward_profile = replay(backward_events(step, backward, saved), start_bytes)
    return StepProfile(
        _named(forward_profile, step, forward),
        _named(backward_profile, step, backward),
        sum(sizes[s] for s in saved - step.outputs),
    )


def loads(
    step: Step, forward: Sequence[int], backward: Sequence[int], saved: Iterable[int]
) -> tuple[list[int], list[int]]:
    """Most bytes alive while each position of the two orders runs; 0 where it joins a kernel."""
    saved = frozenset(saved)
    events = forward_events(step, forward, saved)
    start_bytes = start_of_backward(step, replay(events, step.constant_bytes), saved)
    return (
        _highest(events, step.constant_bytes, len(forward)),
        _highest(backward_events(step, backward, saved), start_bytes, len(backward)),
    )


def _highest(events: Iterable[Event], alive_bytes: int, positions: int) -> list[int]:
    highest = [0] * positions
    for event in events:
        before_bytes = alive_bytes
        alive_bytes += event.num_bytes
        if event.label:  # what is freed was there while the position ran
            position = int(event.label)
            highest[position] = max(highest[position], before_bytes, alive_bytes)
    return highest


def forward_events(step: Step, order: Sequence[int], saved: AbstractSet[int]) -> list[Event]:
    """Labelled with positions in the order."""
    made = copies(step, order)
    kept = made.latest_of(saved | step.outputs | step.transient_outputs)
    return liveness_events(computations(step, made, kept), made.num_bytes(step), kept=kept)


def start_of_backward(step: Step, forward: Profile, saved: AbstractSet[int]) -> int:
    """Bytes alive once the incoming gradients are there and nothing has run yet."""
    sizes = step.storage_bytes
    dropped = sum(sizes[s] for s in step.transient_outputs - step.outputs - saved)
    return forward.end_bytes - dropped + sum(sizes[s] for s in step.tangents)


def backward_events(step: Step, order: Sequence[int], saved: AbstractSet[int]) -> list[Event]:
    """Labelled with positions in the order."""
    made = copies(step, order)
    kept = {(s, 0) for s in step.held_by_the_caller} | made.latest_of(
        step.gradients - step.consumed
    )
    # An update reads what it consumes from memory.
    return liveness_events(
        computations(step, made, kept | made.latest_of(step.consumed)),
        made.num_bytes(step),
        kept=kept,
        initially_alive=[(s, 0) for s in sorted(saved | step.outputs | step.tangents)],
        # Autograd's memory: generated code does not write to it.
        never_reused=[(s, 0) for s in step.tangents],
    )


def _named(profile: Profile, step: Step, order: Sequence[int]) -> Profile:
    label = profile.peak_label
    return replace(profile, peak_label=step.operations[order[int(label)]].name if label else "")


# A storage and which copy of it: 0 for what is there before the order begins.
Copy = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Copies:
    """An order of operations in which every storage is written once: appearances of an
    operation write copies, and what reads a storage reads its latest copy.

    Attributes:
        order: the operations.
        reads, writes: of each position.
        latest: copy of each storage at the end, for storages that the order writes.
    """

    order: Sequence[int]
    reads: Sequence[tuple[Copy, ...]]
    writes: Sequence[tuple[Copy, ...]]
    latest: dict[int, int]

    def latest_of(self, storages: Iterable[int]) -> set[Copy]:
        return {(storage, self.latest.get(storage, 0)) for storage in storages}

    def num_bytes(self, step: Step) -> dict[Hashable, int]:
        found: dict[Hashable, int] = {(s, 0): n for s, n in enumerate(step.storage_bytes)}
        for written in self.writes:
            for copy in written:
                found[copy] = step.storage_bytes[copy[0]]
        return found


def copies(step: Step, order: Sequence[int]) -> Copies:
    """Number the copies that ``order`` makes, from 1 on."""
    latest: dict[int, int] = {}
    reads, writes = [], []
    for index in order:
        operation = step.operations[index]
        reads.append(tuple((s, latest.get(s, 0)) for s in operation.reads))
        for storage in operation.writes:
            latest[storage] = latest.get(storage, 0) + 1
        writes.append(tuple((s, latest[s]) for s in operation.writes))
    return Copies(order, reads, writes, latest)


def computations(step: Step, made: Copies, written: AbstractSet[Copy]) -> list[Computation]:
    """The order as kernels see it, labelled with positions: a result that only fusible operations
    read, and that is not among ``written``, never reaches memory; its readers read what it was
    made from."""
    must_write: set[Copy] = set(written)
    readers = Counter(copy for read in made.reads for copy in read)
    for index, read in zip(made.order, made.reads, strict=True):
        if not step.operations[index].fusible:
            must_write.update(read)
    inlined: dict[Copy, tuple[Copy, ...]] = {}
    computations = []
    steps = zip(made.order, made.reads, made.writes, strict=True)
    for position, (index, read, writes) in enumerate(steps):
        operation = step.operations[index]
        sources = tuple(
            dict.fromkeys(origin for copy in read for origin in inlined.get(copy, (copy,)))
        )
        num_readers = max((readers[copy] for copy in writes), default=0)
        if _can_inline(operation, sources, num_readers) and writes[0] not in must_write:
            inlined[writes[0]] = sources
            continue
        computations.append(
            Computation(
                str(position),
                sources,
                writes,
                operation.workspace_bytes,
                in_place=operation.fusible and not operation.reduces,
            )
        )
    return computations


def _can_inline(operation: StepOperation, sources: Sequence[Copy], readers: int) -> bool:
    if not operation.fusible or operation.reduces or len(operation.writes) != 1:
        return False
    return len(sources) <= (MOST_READS_REUSED if readers > 1 else MOST_READS)
