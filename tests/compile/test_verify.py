"""The verifier: sound graphs of real models pass, and broken ones are found."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

from satcompile.compile.partition import Partition
from satcompile.compile.planning import PlannedGraphs
from satcompile.compile.verify import check_joint, check_partition, reference, simulate_emitted
from satcompile.errors import VerificationError
from satcompile.torch_compat.inductor import inductor_config
from tests.faults import Mutant, broken, effect_dropped
from tests.partitions import planned, planned_tightly
from tests.zoo import ZOO, build

SHARE = 0.7  # of the default's peak
FAULTS_PER_MODEL = 105
SEEDS = (0, 1, 2)

_made: dict[str, PlannedGraphs] = {}


def planned_model(name: str) -> PlannedGraphs:
    """Traced once for all tests of this file."""
    if name not in _made:
        _made[name] = planned_tightly(*build(name), SHARE)
    return _made[name]


def check(made: PlannedGraphs, parts: Partition | None = None) -> None:
    joint = reference(made.problem.graph.module)
    check_partition(joint, parts or made.parts, made.plan, made.problem, ["recompute"])


# -- what is sound passes --------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_the_graphs_of_a_budget_plan_pass(name):
    made = planned_model(name)
    if made.plan.is_default:  # the floor, where nothing lower is known
        assert made.plan.limit_bytes is not None
        assert made.plan.profile.peak_bytes > made.plan.limit_bytes
    assert made.plan.recomputed
    check(made)


@pytest.mark.parametrize("name", ZOO)
def test_a_copy_passes_as_its_original_does(name):
    # What faults are made in: if the copying itself broke graphs, any check would find them.
    made = planned_model(name)
    copied = Mutant(made.parts, random.Random(0))
    assert len(copied.forward.nodes) == len(made.parts.forward.graph.nodes)
    assert len(copied.backward.nodes) == len(made.parts.backward.graph.nodes)
    assert copied.parts.forward is not made.parts.forward
    check(made, copied.parts)


def test_the_graphs_of_torchs_own_plan_pass():
    made = planned(*build("vit"))
    assert made.plan.is_default
    check(made)


class Block(torch.nn.Module):
    """With dropout, whose numbers a checkpointed region must draw the same way twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.dropout(torch.nn.functional.gelu(self.first(x))))


class Checkpointed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x.sum()


class Normalized(torch.nn.Module):
    """Batch normalization writes its running statistics in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.convolution(x))).square().sum()


class Updated(torch.nn.Module):
    """A buffer that the model reads first and writes then."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(32))
        self.register_buffer("scale", torch.ones(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = torch.sin(x * self.weight + self.scale)
        self.scale.add_(1)
        return torch.cos(result).exp().sum()


@pytest.mark.parametrize("share", [None, 0.7, 0.1])
def test_checkpointed_regions_with_dropout_pass(share):
    torch.manual_seed(0)
    model, inputs = Checkpointed().train(), {"x": torch.randn(64, 32)}
    check(planned(model, inputs) if share is None else planned_tightly(model, inputs, share))


@pytest.mark.parametrize("share", [None, 0.7])
def test_batch_normalization_passes(share):
    torch.manual_seed(0)
    model, inputs = Normalized().train(), {"x": torch.randn(4, 3, 16, 16)}
    check(planned(model, inputs) if share is None else planned_tightly(model, inputs, share))


@pytest.mark.parametrize("share", [None, 0.7])
def test_the_backward_reads_no_input_that_the_forward_has_overwritten(share):
    # It would recompute from the new value. Torch's own minimum cut makes this very mistake.
    model, inputs = Updated(), {"x": torch.ones(16, 32)}
    made = planned(model, inputs) if share is None else planned_tightly(model, inputs, share)
    forward, backward = made.parts.forward.graph, made.parts.backward.graph
    updates = [n for n in forward.nodes if n.target is torch.ops.aten.copy_.default]
    assert [n.args[0].name for n in updates] == ["primals_3"]
    assert "primals_3" not in {n.name for n in backward.nodes}


@pytest.mark.parametrize("name", ZOO)
def test_the_emitted_graphs_simulate_to_what_the_plan_says(name):
    made = planned_model(name)
    found = simulate_emitted(made.parts, made.plan, made.problem)
    assert found.saved_bytes == made.plan.profile.saved_bytes
    assert found.peak_bytes <= max(made.plan.profile.peak_bytes, made.plan.limit_bytes)


# -- what is broken is found -----------------------------------------------------------------


def survivors_of(name: str) -> tuple[Counter, list[str]]:
    """Faults made in one model, by kind, and those that the verifier let pass."""
    made_by_kind, survivors = Counter(), []
    made = planned_model(name)
    joint = reference(made.problem.graph.module)
    for seed in SEEDS:
        chance = random.Random(f"{name} {seed}")
        for _ in range(FAULTS_PER_MODEL // len(SEEDS)):
            parts, what = broken(made.parts, chance)
            made_by_kind[what.split(":")[0]] += 1
            try:
                check_partition(joint, parts, made.plan, made.problem)
            except VerificationError:
                continue
            survivors.append(f"{name}: {what}")
    return made_by_kind, survivors


@pytest.mark.slow
def test_at_least_95_percent_of_random_faults_are_found():
    made_by_kind, survivors = Counter(), []
    for name in ZOO:
        kinds, passed = survivors_of(name)
        assert kinds.total() >= 100
        made_by_kind += kinds
        survivors += passed
    total = made_by_kind.total()
    print(f"{total - len(survivors)} of {total} faults found; made: {dict(made_by_kind)}")
    print(*survivors, sep="\n")  # pytest shows it where the test fails
    assert total >= 500
    assert len(survivors) <= 0.05 * total, survivors


def test_a_dropped_update_of_running_statistics_is_found():
    # Nothing reads the update, so that no value is missing: the effect itself must be.
    made = planned_model("resnet")
    mutant = Mutant(made.parts, random.Random(0))
    effect_dropped(mutant)
    with pytest.raises(VerificationError):
        check(made, mutant.parts)


def swap_inputs(graph: fx.Graph, one: fx.Node, other: fx.Node) -> None:
    """``one`` stands before ``other``; graphs are called by position."""
    after = other.next
    one.prepend(other)
    after.prepend(one)


def test_forward_inputs_in_another_order_are_found():
    made = planned_model("llama")
    mutant = Mutant(made.parts, random.Random(0))
    weights = mutant.forward.find_nodes(op="placeholder")[-2:]
    swap_inputs(mutant.forward, *weights)
    with pytest.raises(VerificationError):
        check(made, mutant.parts)


def test_incoming_gradients_in_another_order_are_found():
    made = planned_model("gpt2")  # of its loss and of its logits
    mutant = Mutant(made.parts, random.Random(0))
    inputs = mutant.backward.find_nodes(op="placeholder")
    tangents = [node for node in inputs if node.name.startswith("tangents")]
    swap_inputs(mutant.backward, *tangents)
    with pytest.raises(VerificationError):
        check(made, mutant.parts)


def test_an_input_that_is_overwritten_before_it_is_read_is_found():
    made = planned(Updated(), {"x": torch.ones(16, 32)})
    check(made)
    mutant = Mutant(made.parts, random.Random(0))
    (update,) = (n for n in mutant.forward.nodes if n.target is torch.ops.aten.copy_.default)
    written, new = update.args
    readers = [n for n in written.users if n not in (update, new)]
    first = next(n for n in mutant.forward.nodes if n in readers)
    first.prepend(new)
    first.prepend(update)
    with pytest.raises(VerificationError):
        check(made, mutant.parts)


def test_the_answer_names_the_passes_and_what_to_do():
    made = planned_model("llama")
    parts, _ = broken(made.parts, random.Random(0))
    joint = reference(made.problem.graph.module)
    with pytest.raises(VerificationError) as raised:
        check_partition(joint, parts, made.plan, made.problem, ["first", "second"])
    assert "Passes so far: first, second." in str(raised.value)
    assert "torch.compile's default backend" in str(raised.value)


def test_a_peak_above_the_promise_is_found():
    made = planned_model("llama")
    low = replace(made.plan.profile.forward, peak_bytes=1)
    promise = replace(made.plan.profile, forward=low, backward=low)
    plan = replace(made.plan, profile=promise, limit_bytes=2)
    with pytest.raises(VerificationError, match="promised 2"):
        check_partition(reference(made.problem.graph.module), made.parts, plan, made.problem)


# -- joint graphs ----------------------------------------------------------------------------


def test_a_joint_graph_that_nobody_touched_passes():
    module = planned_model("vit").problem.graph.module
    check_joint(module, reference(module), [])


def test_a_joint_graph_with_another_output_is_found():
    module = planned_model("vit").problem.graph.module
    before = reference(module)
    output = next(iter(module.graph.find_nodes(op="output")))
    original = output.args
    results = list(original[0])
    gradients = [i for i, v in enumerate(results) if v is not None][-2:]
    results[gradients[0]], results[gradients[1]] = results[gradients[1]], results[gradients[0]]
    output.args = (type(original[0])(results),)
    try:
        with pytest.raises(VerificationError, match="of the joint graph is another value"):
            check_joint(module, before, ["a pass"])
    finally:
        output.args = original  # other tests have the same module
    check_joint(module, before, [])


@pytest.mark.parametrize("needed", [True, False])
def test_a_draw_in_a_region_is_known_by_its_arguments(needed: bool) -> None:
    """Replayed from a saved state where both graphs need it, drawn once where one does."""

    def region(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = torch.bernoulli(torch.sigmoid(x))  # a draw with keywords, compared with p
        return (x * drawn if needed else x.sin()), drawn

    def step(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept, drawn = checkpoint(region, x, use_reentrant=False)
        return kept.sum(), drawn

    with inductor_config().patch(fallback_random=True):
        check(planned(step, {"x": torch.randn(6, 8, requires_grad=True)}))


def test_a_draw_that_nobody_reads_is_in_the_peak() -> None:
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        y * torch.randint(0, 3, y.shape)
        return (x * 0.5).mean()

    inputs = {"x": torch.randn(6, 8, requires_grad=True), "y": torch.randn(6, 8)}
    with inductor_config().patch(fallback_random=True):
        check(planned(step, inputs))
