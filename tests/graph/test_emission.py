"""Orders with several copies: whatever valid plan is emitted, its gradients are eager's.

The graphs run as they were emitted, called by AOTAutograd, without any code generation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx

from satcompile.compile.partition import Partition, partition
from satcompile.compile.planning import plan_graphs
from satcompile.compile.verify import check_partition, reference, simulate_emitted
from satcompile.errors import VerificationError
from satcompile.graph.emission import why_order_is_kept
from satcompile.graph.training_graph import TrainingGraph
from satcompile.options import Options
from satcompile.planner.problem import PlanningProblem
from satcompile.planner.request import Request, Subject
from satcompile.planner.retention import RetentionPlan
from satcompile.report.rows import recomputed_rows
from satcompile.solver.training import two_phase
from satcompile.solver.training.step import (
    Phase,
    backward_order,
    early_forward_order,
    simulate_orders,
)
from tests.compile.test_verify import Checkpointed
from tests.partitions import planned_tightly, uncompiled
from tests.torch_compat.versions import TORCH
from tests.zoo import ZOO, build


def some_saved(problem: PlanningProblem, chance: random.Random) -> frozenset[int]:
    """Storages that cross in some valid plan: random, and what cannot be computed again."""
    choices, values = problem.choices, problem.two_phase.values
    operations = problem.two_phase.operations
    share = chance.random()
    saved = {
        i
        for i, value in enumerate(values)
        if value.saveable
        and (chance.random() < share or not operations[value.producer].recomputable)
    }
    solution = two_phase.evaluate(problem.two_phase, saved)
    return frozenset(choices[i] for i in solution.saved)


def with_more_copies(
    problem: PlanningProblem, order: list[int], saved: frozenset[int], chance: random.Random
) -> list[int]:
    """``order`` with what it recomputes computed again wherever the inputs are there."""
    step, makers = problem.step, problem.step.makers()
    there = set(saved) | {s for s in range(len(step.storage_bytes)) if s not in makers}
    again = [
        i
        for i in sorted(order)
        if step.operations[i].phase is not Phase.BACKWARD
        and problem.is_recomputable(problem.operations[i])
    ]
    longer = []
    for index in order:
        while chance.random() < 0.3:
            possible = [i for i in again if there.issuperset(step.operations[i].reads)]
            if not possible:
                break
            longer.append(chance.choice(possible))
            there.update(step.operations[longer[-1]].writes)
        longer.append(index)
        there.update(step.operations[index].writes)
    return longer


def some_plan(
    problem: PlanningProblem, plan: RetentionPlan, chance: random.Random
) -> RetentionPlan:
    """A random valid plan for the same graph; most of its copies are of no use."""
    step, saved = problem.step, some_saved(problem, chance)
    forward = early_forward_order(step, saved)
    backward = with_more_copies(problem, backward_order(step, saved), saved, chance)
    tensors, scalars = problem.nodes_to_save(saved)
    return replace(
        plan,
        saved=saved,
        crossing=tuple(tensors),
        scalars=tuple(scalars),
        forward_order=tuple(forward),
        backward_order=tuple(backward),
        profile=simulate_orders(step, forward, backward, saved),
        is_default=False,
    )


class Emitted:
    """A compilation with a plan of the test's, whose graphs run uncompiled."""

    checked: tuple[RetentionPlan, Partition]

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def compile(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        self.request = Request(Options(), Subject(len(example_inputs)))
        return uncompiled(gm, example_inputs, self.request, self._partition, _as_it_is)

    def _partition(
        self, gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        static = kwargs.get("static_lifetime_input_indices") or []
        made = plan_graphs(TrainingGraph(gm, kwargs["num_fwd_outputs"], static), self.request)
        plan = some_plan(made.problem, made.plan, self.chance)
        parts = partition(made.problem.graph, plan)
        check_partition(reference(made.problem.graph.module), parts, plan, made.problem)
        self.checked = plan, parts
        return parts.forward, parts.backward


def _as_it_is(gm: fx.GraphModule, example_inputs: Any, **kwargs: Any) -> Any:
    def boxed(arguments: list[Any]) -> Any:
        given = list(arguments)
        arguments.clear()
        return gm(*given)

    boxed._boxed_call = True
    return boxed


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """Random numbers in generated code are not eager's."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def in_float64(value: Any) -> Any:
    return value.double() if value.is_floating_point() else value


def gradients(model: torch.nn.Module, call: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    call(**inputs).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ZOO)
def test_gradients_of_random_plans_with_several_copies_are_eagers(name, seed):
    model, inputs = build(name)
    model = without_dropout(model).double()
    inputs = {key: in_float64(value) for key, value in inputs.items()}
    expected = gradients(model, model, inputs)
    compilations = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        compilations.append(Emitted(random.Random(f"{name} {seed}")))
        return compilations[-1].compile(gm, example_inputs)

    torch.compiler.reset()
    found = gradients(model, torch.compile(model, backend=backend), inputs)
    torch.compiler.reset()
    (compilation,) = compilations
    assert max(compilation.checked[0].times_computed.values()) > 2  # or nothing was tested
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        # These models compute their loss in float32 whatever they are given.
        assert (one - other).abs().max() <= 1e-5 * other.abs().max() + 1e-9


@pytest.fixture(scope="module")
def llama():
    return planned_tightly(*build("llama"), 0.7)


@pytest.mark.parametrize("seed", range(5))
def test_the_emitted_order_is_the_planned_one(llama, seed):
    plan = some_plan(llama.problem, llama.plan, random.Random(seed))
    parts = partition(llama.problem.graph, plan)
    names = {node.name for node in plan.operations}
    planned_names = [plan.operations[i].name for i in plan.backward_order]
    assert [n for n in emitted_names(parts.backward) if n in names] == planned_names
    planned_names = [plan.operations[i].name for i in plan.forward_order]
    assert [n for n in emitted_names(parts.forward) if n in names] == planned_names
    assert simulate_emitted(parts, plan, llama.problem) == plan.profile


def emitted_names(module: fx.GraphModule) -> list[str]:
    called = [node for node in module.graph.nodes if node.op == "call_function"]
    return [node.meta.get("copy_of", node.name) for node in called]


def test_masks_are_made_where_their_activations_end():
    made = planned_tightly(*build("resnet"), 0.8)
    assert made.plan.has_own_order
    names = [made.plan.operations[i].name for i in made.plan.forward_order]
    in_joint_order = sorted(made.plan.forward_order)
    if TORCH >= (2, 13):  # before, masks are made where their activations end as it is
        assert list(made.plan.forward_order) != in_joint_order, "nothing was moved up"
    emitted = emitted_names(partition(made.problem.graph, made.plan).forward)
    assert [name for name in emitted if name in set(names)] == names


def test_the_report_counts_how_often_a_value_is_computed(llama):
    plan = some_plan(llama.problem, llama.plan, random.Random(0))
    both = [plan.operations[i].name for i in (*plan.forward_order, *plan.backward_order)]
    again = {plan.operations[i] for i in plan.backward_order}
    recomputed = tuple(
        n for n in plan.operations if n in again and llama.problem.graph.is_forward(n)
    )
    rows = recomputed_rows(replace(plan, recomputed=recomputed))
    assert {row.name: row.copies for row in rows} == {
        n.name: both.count(n.name) for n in recomputed
    }
    assert max(row.copies for row in rows) > 2


def test_names_are_unique_and_those_of_the_joint_graph_come_first(llama):
    plan = some_plan(llama.problem, llama.plan, random.Random(0))
    graph = partition(llama.problem.graph, plan).backward.graph
    names = [node.name for node in graph.nodes]
    assert len(names) == len(set(names))
    first: dict[str, str] = {}
    for node in graph.nodes:
        first.setdefault(node.meta.get("copy_of", node.name), node.name)
    assert all(original == name for original, name in first.items())


def test_a_copy_with_another_argument_is_found(llama):
    plan = some_plan(llama.problem, llama.plan, random.Random(0))
    parts = partition(llama.problem.graph, plan)
    joint = reference(llama.problem.graph.module)
    check_partition(joint, parts, plan, llama.problem)
    copy = next(n for n in parts.backward.graph.nodes if n.name.endswith("_copy2") and n.users)
    like = str(copy.meta["val"].shape)
    wrong = next(
        n for n in parts.backward.graph.nodes
        if n.op == "placeholder" and n.meta.get("copy_of") != copy.meta["copy_of"]
        and str(getattr(n.meta.get("val"), "shape", "")) == like
    )  # fmt: skip
    copy.replace_all_uses_with(wrong)
    with pytest.raises(VerificationError):
        check_partition(joint, parts, plan, llama.problem)


def test_a_step_with_more_copies_than_planned_is_found_by_its_peak(llama):
    plan = llama.plan
    assert plan.limit_bytes is not None
    parts = partition(llama.problem.graph, plan)
    graph = parts.backward.graph
    last = next(n for n in reversed(graph.nodes) if n.op == "call_function")
    held = [n for n in graph.nodes if n.name in {r.name for r in plan.recomputed} and n.users]
    for node in held:  # read at the end, so that none is freed before
        with graph.inserting_after(last):
            extra = graph.node_copy(next(iter(node.users)), lambda n: n)
            extra.meta = dict(next(iter(node.users)).meta)
    with pytest.raises(VerificationError):
        check_partition(reference(llama.problem.graph.module), parts, plan, llama.problem)


def test_random_state_of_checkpointed_regions_keeps_torchs_order():
    model, inputs = Checkpointed().train(), {"x": torch.randn(64, 32)}
    with torch._inductor.config.patch(fallback_random=True):
        made = planned_tightly(model, inputs, 0.7)
    assert not made.plan.has_own_order
    reason = why_order_is_kept(made.problem.graph)
    assert reason is not None and "random numbers" in reason


def test_an_ordinary_model_has_the_plans_order(llama):
    assert why_order_is_kept(llama.problem.graph) is None
    assert llama.plan.has_own_order
