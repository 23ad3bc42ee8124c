"""Random training steps, as entangled as joint graphs get: kernels that fuse, reduce, work in place
or take a workspace, several results, weights read by nobody, and what only the backward needs."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from satcompile.solver.training import two_phase
from satcompile.solver.training.moments import Spine, recomputed_for
from satcompile.solver.training.step import (
    Phase,
    Step,
    StepOperation,
    StepProfile,
    backward_order,
    forward_order,
    simulate_orders,
)
from satcompile.solver.training.timing import Timing

_SIZES = (0, 1, 2, 2, 4, 4, 4, 7)  # few, so that one result fits where another was


@dataclass(frozen=True)
class MadeStep:
    step: Step
    problem: two_phase.Problem
    choices: list[int]
    again_us: list[float]

    @property
    def spine(self) -> Spine:
        return Spine(self.step, self.problem, self.choices)

    @property
    def timing(self) -> Timing:
        return Timing(self.step, self.problem, self.choices, self.again_us)


def random_step(seed: int, most: int = 6) -> MadeStep:
    chance = random.Random(seed)
    sizes = [chance.choice(_SIZES), chance.choice(_SIZES)]  # two incoming gradients
    operations: list[StepOperation] = []
    forward: list[int] = []
    for number in range(chance.randint(1, most)):
        phase = chance.choice([Phase.FORWARD, Phase.FORWARD, Phase.FORWARD, Phase.EITHER])
        readable = [
            s for o in operations if phase is Phase.EITHER or o.phase is phase for s in o.writes
        ]
        operations.append(_operation(chance, f"forward {number}", phase, readable, sizes))
        forward += operations[-1].writes
    made = [s for o in operations if o.phase is Phase.FORWARD for s in o.writes]
    outputs = frozenset(chance.sample(made, min(len(made), chance.randint(0, 2))))
    tainted = [0, 1]
    results: list[int] = []
    for number in range(chance.randint(1, most)):
        readable = [*tainted, *tainted, *forward]
        operation = _operation(chance, f"backward {number}", Phase.BACKWARD, readable, sizes)
        if not set(operation.reads) & set(tainted):
            reads = (*operation.reads, chance.choice(tainted))
            operation = StepOperation(
                operation.name, reads, operation.writes, operation.phase,
                operation.fusible, operation.reduces, operation.workspace_bytes,
            )  # fmt: skip
        operations.append(operation)
        tainted += operation.writes
        results += operation.writes
    gradients = frozenset(chance.sample(results, chance.randint(1, len(results))))
    step = Step(
        operations,
        sizes,
        outputs=outputs,
        transient_outputs=frozenset(chance.sample(made, min(len(made), chance.randint(0, 1)))),
        gradients=gradients,
        tangents=frozenset([0, 1]),
        constant_bytes=chance.choice([0, 0, 3]),
        consumed=frozenset(g for g in gradients if chance.random() < 0.3),
    )
    return _with_problem(chance, step, forward)


def _operation(
    chance: random.Random, name: str, phase: Phase, readable: list[int], sizes: list[int]
) -> StepOperation:
    reads = chance.sample(readable, min(len(readable), chance.randint(0, 3)))
    fusible = chance.random() < 0.6
    writes = []
    for _ in range(1 if chance.random() < 0.8 else 2):
        writes.append(len(sizes))
        sizes.append(chance.choice(_SIZES))
    return StepOperation(
        name,
        tuple(dict.fromkeys(reads)),
        tuple(writes),
        phase,
        fusible=fusible,
        reduces=fusible and chance.random() < 0.2,
        workspace_bytes=0 if fusible else chance.choice([0, 0, 3]),
    )


def _with_problem(chance: random.Random, step: Step, choices: list[int]) -> MadeStep:
    number = {storage: i for i, storage in enumerate(choices)}
    makers = step.makers()
    indices = sorted({makers[s] for s in choices})
    position = {index: k for k, index in enumerate(indices)}
    again_us = [float(chance.randint(0, 9)) for _ in step.operations]
    operations = [
        two_phase.Operation(
            step.operations[index].name,
            again_us[index] if step.operations[index].phase is Phase.FORWARD else 0.0,
            tuple(number[s] for s in step.operations[index].reads if s in number),
            chance.random() < 0.9,
        )
        for index in indices
    ]
    values = []
    # Joint graphs hold no dead operations.
    backward_proper = [step.operations[index] for index in backward_order(step, choices)]
    for storage in choices:
        backward = [o for o in backward_proper if storage in o.reads]
        others = [i for i in indices if storage in step.operations[i].reads]
        fusible = step.operations[makers[storage]].fusible
        may_cost = fusible and storage not in step.outputs
        values.append(
            two_phase.Value(
                position[makers[storage]],
                0 if storage in step.outputs else step.storage_bytes[storage],
                needed=bool(backward),
                saveable=storage in step.outputs or chance.random() < 0.95,
                save_time_us=float(chance.randint(0, 4)) if may_cost else 0.0,
                materialize_time_us=float(chance.randint(0, 4)) if fusible else 0.0,
                unfused_backward=any(not o.fusible for o in backward),
                unfused_readers=tuple(
                    position[i] for i in others if not step.operations[i].fusible
                ),
            )
        )
    return MadeStep(step, two_phase.Problem(operations, values), choices, again_us)


def random_backward(made: MadeStep, saved: frozenset[int], seed: int) -> list[int] | None:
    """An order that runs, with copies forgotten and made early at random; None where what is not
    saved cannot be computed again."""
    chance, spine, step = random.Random(seed), made.spine, made.step
    allowed = {
        index
        for index, operation in zip(
            sorted({spine.makers[s] for s in made.choices}), made.problem.operations, strict=True
        )
        if operation.recomputable
    }
    there, order = set(saved), []
    forgets, early = chance.choice([(0.0, 0.0), (0.3, 0.2), (0.8, 0.5)])
    targets = [step.operations[index].reads for index in spine.operations]
    for index, reads in zip(spine.operations, targets, strict=True):
        there -= {s for s in sorted(there - saved) if chance.random() < forgets}
        wanted = list(reads)
        if made.choices and chance.random() < early:
            wanted.append(chance.choice(made.choices))
        again = recomputed_for(step, spine.makers, there, wanted)
        if not allowed.issuperset(again):
            return None
        order += [*again, index]
    return order


def simulate(step: Step, saved: Iterable[int]) -> StepProfile:
    """Bytes alive over the step when ``saved`` crosses, in the usual orders."""
    saved = frozenset(saved)
    return simulate_orders(step, forward_order(step, saved), backward_order(step, saved), saved)
