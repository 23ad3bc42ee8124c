"""A training step as numbers: the joint graph's operations, storages, and a plan's memory.

Given which storages cross from forward to backward, everything else follows: what the
forward computes, what the backward recomputes and when (each recomputation as late as its
first reader allows), and with it the bytes alive at every position of the step.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum

from satcompile.solver.simulator import Computation, Profile, liveness_events, replay


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
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    phase: Phase
    fusible: bool = False
    reduces: bool = False
    workspace_bytes: int = 0


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
        constant_bytes: alive from the forward to the end of the step whatever the plan
            (copies of weights and inputs in a layout that convolutions want).
    """

    operations: Sequence[StepOperation]
    storage_bytes: Sequence[int]
    outputs: frozenset[int]
    transient_outputs: frozenset[int]
    gradients: frozenset[int]
    tangents: frozenset[int]
    constant_bytes: int = 0

    def makers(self) -> dict[int, int]:
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
    wanted = _ancestors(step, makers, targets, set())
    return [
        index
        for index, operation in enumerate(step.operations)
        if operation.phase is not Phase.BACKWARD
        and (index in wanted or (operation.phase is Phase.FORWARD and not operation.writes))
    ]


def backward_order(step: Step, saved: Iterable[int]) -> list[int]:
    """Operations that the backward runs, each recomputation right before its first reader."""
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
    for index, operation in enumerate(step.operations):
        if index in wanted and operation.phase is Phase.BACKWARD and index not in placed:
            for needed in sorted(_pending(step, makers, index, given, placed)):
                placed.add(needed)
                order.append(needed)
    # Gradients that no incoming gradient reaches (constants) come last.
    for index in sorted(wanted - placed):
        order.append(index)
    return order


def _ancestors(step: Step, makers: dict[int, int], targets: set[int], given: set[int]) -> set[int]:
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


def _pending(
    step: Step, makers: dict[int, int], index: int, given: set[int], placed: set[int]
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


def simulate(step: Step, saved: Iterable[int]) -> StepProfile:
    """Bytes alive over the step when ``saved`` crosses from forward to backward."""
    saved = frozenset(saved)
    return simulate_orders(step, forward_order(step, saved), backward_order(step, saved), saved)


def simulate_orders(
    step: Step, forward: Sequence[int], backward: Sequence[int], saved: Iterable[int]
) -> StepProfile:
    """Bytes alive over the step when its operations run in the given orders."""
    saved = frozenset(saved)
    sizes: dict[Hashable, int] = dict(enumerate(step.storage_bytes))
    kept = saved | step.outputs | step.transient_outputs
    events = liveness_events(_computations(step, forward, kept), sizes, kept=kept)
    forward_profile = replay(events, step.constant_bytes)
    dropped = sum(sizes[s] for s in step.transient_outputs - step.outputs - saved)
    start_bytes = forward_profile.end_bytes - dropped + sum(sizes[s] for s in step.tangents)
    kept = step.outputs | step.gradients
    events = liveness_events(
        _computations(step, backward, kept),
        sizes,
        kept=kept,
        initially_alive=sorted(saved | step.outputs | step.tangents),
        never_reused=step.tangents,  # autograd's memory: generated code does not write to it
    )
    return StepProfile(
        forward_profile,
        replay(events, start_bytes),
        sum(sizes[s] for s in saved - step.outputs),
    )


def _computations(step: Step, order: Sequence[int], kept: AbstractSet[int]) -> list[Computation]:
    """The order as kernels see it: a result that only fusible operations read, and that
    nobody keeps, never reaches memory; its readers read what it was made from."""
    operations = [step.operations[index] for index in order]
    readers: dict[int, list[StepOperation]] = {}
    for operation in operations:
        for storage in operation.reads:
            readers.setdefault(storage, []).append(operation)
    inlined: dict[int, tuple[int, ...]] = {}
    computations = []
    for operation in operations:
        reads = tuple(
            dict.fromkeys(
                origin for storage in operation.reads for origin in inlined.get(storage, (storage,))
            )
        )
        if _is_inlined(operation, readers, kept):
            inlined[operation.writes[0]] = reads
            continue
        computations.append(
            Computation(
                operation.name,
                reads,
                operation.writes,
                operation.workspace_bytes,
                in_place=operation.fusible and not operation.reduces,
            )
        )
    return computations


def _is_inlined(
    operation: StepOperation, readers: dict[int, list[StepOperation]], kept: AbstractSet[int]
) -> bool:
    if not operation.fusible or operation.reduces or len(operation.writes) != 1:
        return False
    storage = operation.writes[0]
    return storage not in kept and all(reader.fusible for reader in readers.get(storage, ()))
