"""A budget over a whole run: what changes while training goes on, with real allocations.

Every peak is measured, and compared with a residency that the test adds up by itself.
"""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import satcompile
from benchmarks.overhead import Blocks
from satcompile.compile import allocation
from satcompile.compile.allocation import UnreadableCode
from satcompile.runtime.steps import STEPS
from tests.integration.test_use import Net
from tests.integration.training import assert_same_gradients, clear_gradients, gradients

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LARGE = "1GiB"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def net(device: str, layers: int = 2, width: int = 32) -> Net:
    return Net(layers, width).double().to(device)


def batch(device: str, rows: int = 256, width: int = 32) -> torch.Tensor:
    return torch.randn(rows, width, dtype=torch.float64, device=device)


def within(model: nn.Module, budget: Any, **settings: Any) -> Any:
    return torch.compile(model, backend="sat", options={"memory_budget": budget}, **settings)


def loss_of(run: Callable[..., Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and loss, both held by the caller, with the gradients accumulated."""
    output = run(x)
    loss = output.square().mean()
    loss.backward()
    return output, loss


def parameter_bytes(*models: nn.Module) -> int:
    return sum(p.nbytes for model in models for p in model.parameters())


def gradient_bytes(model: nn.Module) -> int:
    return sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(v.nbytes for s in optimizer.state.values() for v in s.values())


def default_peak(model: nn.Module, x: torch.Tensor) -> int:
    """The peak of torch's own plan, with what is resident; afterwards nothing is compiled."""
    run = within(model, LARGE)
    loss_of(run, x)
    clear_gradients(model)
    peak_bytes = satcompile.measure_peak(lambda: loss_of(run, x), x.device)
    clear_gradients(model)
    torch.compiler.reset()
    return parameter_bytes(model) + x.nbytes + peak_bytes


def check_gradients(run: Callable[..., Any], model: nn.Module, x: torch.Tensor) -> None:
    twin = copy.deepcopy(model)
    clear_gradients(twin)
    clear_gradients(model)
    loss_of(twin, x)
    loss_of(run, x)
    assert_same_gradients(gradients(model), gradients(twin), 1e-11)
    clear_gradients(model)


def graph_of(model: nn.Module) -> Any:
    return satcompile.report(model).graphs[-1]


def is_ours(graph: Any) -> bool:
    """Whether the budget made a plan that is not torch's own."""
    return graph.bound_kind != "torch's own plan fits"


# -- the optimizer ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_optimizer_step_was_planned_for(device: str) -> None:
    model, x = net(device), batch(device)
    lasting = 4 * parameter_bytes(model)  # weights, gradients, two moments
    budget_bytes = default_peak(model, x) + 2 * parameter_bytes(model) - lasting // 8
    optimizer = torch.optim.AdamW(model.parameters())
    run = within(model, budget_bytes)
    for _ in range(3):
        optimizer.zero_grad()
        resident = parameter_bytes(model) + state_bytes(optimizer) + x.nbytes
        peak_bytes = satcompile.measure_peak(lambda: loss_of(run, x), device)
        optimizer.step()
    assert state_bytes(optimizer) >= 2 * parameter_bytes(model)
    assert resident == graph_of(model).resident_bytes
    assert resident + peak_bytes <= budget_bytes
    assert graph_of(model).predicted_peak_bytes == pytest.approx(resident + peak_bytes, rel=0.01)
    assert is_ours(graph_of(model))


def test_an_optimizer_made_late_is_planned_for_at_the_next_step(device: str) -> None:
    model, x = net(device), batch(device)
    budget_bytes = default_peak(model, x) + parameter_bytes(model)
    run = within(model, budget_bytes)
    check_gradients(run, model, x)
    before = graph_of(model).saved_bytes
    optimizer = torch.optim.AdamW(model.parameters())
    loss_of(run, x)
    optimizer.step()
    optimizer.zero_grad()
    peak_bytes = satcompile.measure_peak(lambda: loss_of(run, x), device)
    resident = parameter_bytes(model) + state_bytes(optimizer) + x.nbytes
    assert resident + peak_bytes <= budget_bytes
    assert graph_of(model).saved_bytes < before
    check_gradients(run, model, x)


# -- gradients left set ----------------------------------------------------------------------


def test_gradients_left_set_count(device: str) -> None:
    model, x = net(device, width=64), batch(device, width=64)
    budget_bytes = default_peak(model, x)
    run = within(model, budget_bytes)
    check_gradients(run, model, x)
    first = graph_of(model).predicted_peak_bytes
    loss_of(run, x)
    resident = parameter_bytes(model) + gradient_bytes(model) + x.nbytes
    peak_bytes = satcompile.measure_peak(lambda: loss_of(run, x), device)
    assert resident + peak_bytes <= budget_bytes
    assert graph_of(model).resident["gradients"] == gradient_bytes(model)
    assert is_ours(graph_of(model))
    # Back to None, the first plan is taken again, and nothing is compiled.
    clear_gradients(model)
    loss_of(run, x)
    assert graph_of(model).predicted_peak_bytes == first
    model.zero_grad(set_to_none=False)
    peak_bytes = satcompile.measure_peak(lambda: loss_of(run, x), device)
    assert resident + peak_bytes <= budget_bytes


def test_accumulated_gradients_are_exact(device: str) -> None:
    model = net(device, width=64)
    batches = [batch(device, width=64) for _ in range(3)]
    run = within(model, default_peak(model, batches[0]))
    twin = copy.deepcopy(model)
    for x in batches:
        loss_of(run, x)
        loss_of(twin, x)
    assert_same_gradients(gradients(model), gradients(twin), 1e-11)


def test_gradients_for_which_there_is_no_room_are_an_error_that_says_so(device: str) -> None:
    model, x = net(device, width=64), batch(device, rows=32, width=64)
    with pytest.raises(satcompile.BudgetError) as caught:
        within(model, "1KB")(x)
    torch.compiler.reset()
    run = within(model, int(caught.value.floor_bytes * 1.01))
    loss_of(run, x)
    with pytest.raises(satcompile.BudgetError, match="gradients that are still set") as caught:
        run(x)
    # Those of the step before, and all of this one but the last, which the peak precedes.
    assert caught.value.breakdown["gradients"] > 1.9 * gradient_bytes(model)
    clear_gradients(model)
    check_gradients(run, model, x)


# -- sizes -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_random_lengths_in_random_order(device: str) -> None:
    lengths = random.Random(3).sample(range(32, 512), 10)
    model = net(device)
    budget_bytes = int(0.8 * default_peak(model, batch(device, max(lengths))))
    run = within(model, budget_bytes)
    graphs_before = _compiled_graphs()
    for length in lengths:
        x = batch(device, length)
        clear_gradients(model)
        peak_bytes = satcompile.measure_peak(lambda x=x: loss_of(run, x), device)
        clear_gradients(model)
        # The first call of a graph compiles, which allocates too.
        peak_bytes = min(peak_bytes, satcompile.measure_peak(lambda x=x: loss_of(run, x), device))
        total = parameter_bytes(model) + x.nbytes + peak_bytes
        assert total <= budget_bytes, length
        assert graph_of(model).predicted_peak_bytes == pytest.approx(total, rel=0.01)
        check_gradients(run, model, x)
    assert _compiled_graphs() - graphs_before <= 2  # one static, one with symbolic sizes


def _compiled_graphs() -> int:
    from satcompile.torch_compat.dynamo import compiled_graphs

    return compiled_graphs()


@pytest.mark.slow
def test_a_share_of_the_default_is_of_the_default_at_each_size(device: str) -> None:
    model = net(device)
    run = within(model, "85% of default", dynamic=True)
    for rows in (128, 512, 96):
        x = batch(device, rows)
        check_gradients(run, model, x)
        peak_bytes = satcompile.measure_peak(lambda x=x: loss_of(run, x), device)
        clear_gradients(model)
        graph = graph_of(model)
        total = parameter_bytes(model) + x.nbytes + peak_bytes
        assert total <= graph.budget_bytes == int(0.85 * graph.default_peak_bytes)
        assert graph.predicted_peak_bytes == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize("dynamic", [None, False])
def test_a_smaller_batch_is_not_refused_what_a_larger_one_was_granted(
    device: str, dynamic: bool | None
) -> None:
    """Its peak is its gradients, of which no plan spares a quarter."""
    model = net(device)
    few = batch(device, 4)
    with pytest.raises(satcompile.BudgetError):
        within(model, "75% of default", dynamic=dynamic)(few)
    torch.compiler.reset()
    run = within(model, "75% of default", dynamic=dynamic)
    check_gradients(run, model, batch(device, 512))
    granted_bytes = graph_of(model).budget_bytes
    check_gradients(run, model, few)
    peak_bytes = satcompile.measure_peak(lambda: loss_of(run, few), device)
    clear_gradients(model)
    graph = graph_of(model)
    assert graph.budget_bytes == granted_bytes
    assert graph.predicted_peak_bytes < granted_bytes
    total_bytes = parameter_bytes(model) + few.nbytes + peak_bytes
    assert graph.predicted_peak_bytes == pytest.approx(total_bytes, rel=0.01)


def test_sizes_for_which_there_is_no_plan_are_an_error_and_harm_nothing(device: str) -> None:
    model = net(device)
    run = within(model, default_peak(model, batch(device)), dynamic=True)
    check_gradients(run, model, batch(device))
    with pytest.raises(satcompile.BudgetError, match=r"at sizes \(8192,\)"):
        run(batch(device, 8192))
    check_gradients(run, model, batch(device, 200))


# -- code that cannot be followed --------------------------------------------------------------


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wrapper has a form that is not known, as one of another torch may."""

    def read(source: str) -> Any:
        raise UnreadableCode("a form of tomorrow")

    monkeypatch.setattr(allocation, "_read", read)


@pytest.mark.usefixtures("unreadable")
def test_a_budget_is_held_by_simulation_and_a_margin(
    device: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be followed must fit with a quarter more than its simulation says."""
    model, x = net(device), batch(device)
    default_bytes = default_peak(model, x)
    budget_bytes = int(0.9 * default_bytes)
    run = within(model, budget_bytes)
    with caplog.at_level("WARNING", "satcompile"):
        check_gradients(run, model, x)
    assert "a form of tomorrow" in caplog.text and "25%" in caplog.text
    peak_bytes = satcompile.measure_peak(lambda: loss_of(run, x), device)
    clear_gradients(model)
    graph = graph_of(model)
    assert graph.prediction == "simulation and 25%" and "a form of tomorrow" in graph.notes[0]
    assert graph.resident_bytes + peak_bytes <= graph.predicted_peak_bytes <= budget_bytes
    simulated_bytes = graph.timeline.peak_bytes - graph.resident_bytes
    step_bytes = graph.predicted_peak_bytes - graph.resident_bytes
    assert step_bytes == pytest.approx(1.25 * simulated_bytes, abs=1)
    torch.compiler.reset()
    with pytest.raises(satcompile.BudgetError) as caught:
        within(model, int(0.3 * default_bytes))(x)
    torch.compiler.reset()
    check_gradients(within(model, caught.value.floor_bytes), model, x)


@pytest.mark.usefixtures("unreadable")
def test_a_step_with_code_that_cannot_be_followed_is_refused_by_name(device: str) -> None:
    model, x = Broken(4, 32).double().to(device), batch(device, 512)
    budget_bytes = int(0.6 * default_peak(model, x))
    run = within(model, budget_bytes)
    with pytest.raises(satcompile.UnsupportedError, match="cannot be followed"):
        for _ in range(3):
            loss_of(run, x)
            clear_gradients(model)


def test_branches_by_value_are_followed(device: str) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = net(device), nn.Linear(32, 32).double().to(device)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            h = torch.cond(h.sum() > 0, lambda h: self.last(h).sin(), lambda h: h.cos(), (h,))
            return h * h

    model, x = Branching(), batch(device)
    budget_bytes = int(0.8 * default_peak(model, x))
    run = within(model, budget_bytes)
    for sign in (1, -1):
        check_gradients(run, model, sign * x)
        peak_bytes = satcompile.measure_peak(lambda s=sign: loss_of(run, s * x), device)
        clear_gradients(model)
        graph = graph_of(model)
        assert graph.prediction == "generated code"
        assert graph.resident_bytes + peak_bytes <= budget_bytes + x.nbytes


def test_what_torch_leaves_to_eager_is_refused_with_a_budget(device: str) -> None:
    """A loop that ends by a value has no compiled backward in torch; it falls back with a warning."""
    loop = torch.ops.higher_order.while_loop

    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = net(device)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            start = (torch.tensor(0), self.layers(x))
            return loop(lambda i, h: i < 3, lambda i, h: (i + 1, h.sin()), start, ())[1]

    with pytest.raises(satcompile.UnsupportedError, match="leaves it to eager"):
        within(Looping(), "1GiB")(batch(device))


# -- results that stay -----------------------------------------------------------------------


def test_evaluation_with_gradients_is_no_long_step(device: str) -> None:
    """A loss lives until the next one is there, or through the steps that follow: as many graphs are
    alive as there are, not as were called."""
    model, x = net(device), batch(device)
    budget_bytes = int(1.9 * default_peak(model, x))  # for a graph beside another
    run = within(model, budget_bytes)
    check_gradients(run, model, x)
    for _ in range(6):
        loss = run(x).square().mean()
    for _ in range(4):
        check_gradients(run, model, x)
        graph = graph_of(model)
        assert graph.predicted_peak_bytes <= budget_bytes
        assert graph.default_peak_bytes <= 2 * budget_bytes
    for _ in range(3):  # what is accumulated is one set of gradients
        loss_of(run, x)
    assert graph_of(model).resident["gradients"] == gradient_bytes(model)
    clear_gradients(model)
    assert loss.grad_fn is not None
    del loss

    def two() -> None:
        output = run(x)
        output = run(x)
        del output

    resident_bytes = parameter_bytes(model) + x.nbytes
    assert resident_bytes + satcompile.measure_peak(two, device) <= budget_bytes
    check_gradients(run, model, x)


# -- what the backend does not see -----------------------------------------------------------


def test_an_eager_loss_outside_the_graph_lives_in_the_reserve(device: str) -> None:
    model, x = net(device), batch(device)

    def step(run: Any) -> Any:
        output = run(x)
        loss = output.softmax(-1).square().exp().sum()  # three tensors of the output's size
        loss.backward()
        return output, loss

    budget_bytes = default_peak(model, x)
    options = {"memory_budget": budget_bytes, "reserve": 6 * x.nbytes}
    run = torch.compile(model, backend="sat", options=options)
    step(run)
    clear_gradients(model)
    peak_bytes = satcompile.measure_peak(lambda: step(run), device)
    assert parameter_bytes(model) + x.nbytes + peak_bytes <= budget_bytes
    graph = graph_of(model)
    assert graph.predicted_peak_bytes <= budget_bytes - 6 * x.nbytes
    assert is_ours(graph)


# -- other calls -----------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluation_between_steps_changes_nothing(device: str) -> None:
    model, x = net(device), batch(device)
    budget_bytes = int(0.8 * default_peak(model, x))
    run = within(model, budget_bytes)
    check_gradients(run, model, x)
    planned_bytes = graph_of(model).predicted_peak_bytes
    for _ in range(3):
        model.eval()
        with torch.no_grad():
            run(x)
        model.train()
        run(x)  # a forward whose backward never comes
        gc.collect()
        clear_gradients(model)
        peak_bytes = satcompile.measure_peak(lambda: loss_of(run, x), device)
        assert parameter_bytes(model) + x.nbytes + peak_bytes <= budget_bytes
    clear_gradients(model)
    loss_of(run, x)
    assert graph_of(model).predicted_peak_bytes == planned_bytes
    assert not STEPS.open_calls()


@pytest.mark.parametrize("steps_before", [0, 3])
def test_two_forwards_before_their_backwards_count_together(device: str, steps_before: int) -> None:
    """Also where each forward had its step for itself before, and so nothing was noted of it."""
    model, x, y = net(device), batch(device), batch(device)
    budget_bytes = int(1.5 * default_peak(model, x))
    run = within(model, budget_bytes)
    for _ in range(steps_before):
        clear_gradients(model)
        run(x).mean().backward()

    def step() -> Any:
        first, second = run(x), run(y)
        loss = (first * second).mean()
        loss.backward()
        return first, second, loss

    for _ in range(3):
        clear_gradients(model)
        peak_bytes = satcompile.measure_peak(step, device)
    assert parameter_bytes(model) + x.nbytes + y.nbytes + peak_bytes <= budget_bytes
    twin = copy.deepcopy(model)
    clear_gradients(twin)
    (twin(x) * twin(y)).mean().backward()
    assert_same_gradients(gradients(model), gradients(twin), 1e-11)


@pytest.mark.slow
def test_two_models_keep_to_their_own_budgets(device: str) -> None:
    x = batch(device)
    models = [net(device), net(device, layers=3)]
    budgets = [int(share * default_peak(m, x)) for share, m in zip((0.8, 0.7), models, strict=True)]
    runs = [within(m, b) for m, b in zip(models, budgets, strict=True)]
    for _ in range(2):
        for model, run, budget_bytes in zip(models, runs, budgets, strict=True):
            check_gradients(run, model, x)
            peak_bytes = satcompile.measure_peak(lambda run=run: loss_of(run, x), device)
            clear_gradients(model)
            assert parameter_bytes(model) + x.nbytes + peak_bytes <= budget_bytes
            assert graph_of(model).budget_bytes == budget_bytes


# -- several graphs --------------------------------------------------------------------------


class Broken(Net):
    """Two graphs, the second of which begins before the first one's backward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks[1](self.blocks[0](x))
        torch._dynamo.graph_break()
        return self.blocks[3](self.blocks[2](x))


@pytest.mark.parametrize("share", [pytest.param(0.8, marks=pytest.mark.slow), 0.6])
def test_graph_breaks_hold_the_whole_from_the_second_step(
    device: str, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = Broken(4, 32).double().to(device), batch(device, 512)
    budget_bytes = int(share * default_peak(model, x))
    run = within(model, budget_bytes)
    with caplog.at_level("WARNING", "satcompile"):
        check_gradients(run, model, x)
    if share == 0.6:  # the first graph has taken too much for the second
        assert "The first step may exceed it" in caplog.text
    for _ in range(2):
        clear_gradients(model)
        peak_bytes = satcompile.measure_peak(lambda: loss_of(run, x), device)
        assert parameter_bytes(model) + x.nbytes + peak_bytes <= budget_bytes
    check_gradients(run, model, x)
    graphs = satcompile.report(model).graphs[-2:]
    for graph in graphs:
        assert any("step of 2 compiled graphs" in note for note in graph.notes)
        assert graph.resident_bytes == parameter_bytes(model) + x.nbytes
        assert graph.predicted_peak_bytes <= budget_bytes < graph.default_peak_bytes
    # The loss is eager, outside of the graphs: its backward holds one more tensor for a moment.
    graphs_bytes = graphs[0].resident_bytes + peak_bytes - x.nbytes
    assert max(g.predicted_peak_bytes for g in graphs) >= graphs_bytes - 64


class Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).tanh()


class TwoTowers(nn.Module):
    """Graphs that have nothing to do with each other until their results meet."""

    def __init__(self, image: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.image, self.text = image, text

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.image(x) * self.text(x)


def test_towers_compiled_apart_are_one_step(device: str) -> None:
    model = TwoTowers(net(device), Activated()).double().to(device)
    x = batch(device, 512)
    for tower in (model.image, model.text):
        tower.compile(backend="sat", options={"memory_budget": "1GiB"})
    for _ in range(2):
        clear_gradients(model)
        loss_of(model, x)
    last = satcompile.report(model.text).graphs[-1]
    assert any("graph 2 of a step of 2 compiled graphs" in note for note in last.notes)
    assert last.resident_bytes == parameter_bytes(model) + x.nbytes


class PartlyEager(Broken):
    """Dynamo compiles what lies around the blocks in the middle."""

    @torch._dynamo.disable
    def _in_eager(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[2](self.blocks[1](x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[3](self._in_eager(self.blocks[0](x)))


def test_what_eager_code_between_graphs_holds_counts(
    device: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = PartlyEager(4, 32).double().to(device), batch(device, 512)
    run = within(model, "1GiB")
    with caplog.at_level("WARNING", "satcompile"):
        for _ in range(3):
            clear_gradients(model)
            peak_bytes = satcompile.measure_peak(lambda: loss_of(run, x), device)
    assert "code that Dynamo did not compile" in caplog.text
    notes = satcompile.report(model).graphs[-1].notes
    assert any("code that Dynamo did not compile" in note for note in notes)
    taken_bytes = parameter_bytes(model) + x.nbytes + peak_bytes
    graphs = satcompile.report(model).graphs
    predicted_bytes = max(graph.predicted_peak_bytes for graph in graphs)
    assert predicted_bytes == pytest.approx(taken_bytes, rel=0.05)
    alone_bytes = min(graph.resident_bytes for graph in graphs[:1])
    assert alone_bytes == parameter_bytes(model) + x.nbytes
    # No plan of the two graphs can make room for what eager code holds.
    torch.compiler.reset()
    run = within(model, predicted_bytes // 2)
    with pytest.raises(satcompile.BudgetError, match="of a step of 2 compiled graphs"):
        for _ in range(2):
            clear_gradients(model)
            loss_of(run, x)


def test_a_share_of_a_graph_s_default_knows_nothing_of_eager_code(device: str) -> None:
    """As it knows nothing of other graphs: beside what eager code holds, no plan would be within."""
    model, x = PartlyEager(4, 32).double().to(device), batch(device, 512)
    run = within(model, "90% of default")
    for _ in range(2):
        clear_gradients(model)
        loss_of(run, x)
    for graph in satcompile.report(model).graphs:
        assert graph.predicted_peak_bytes <= graph.budget_bytes


@pytest.mark.slow
def test_graph_breaks_below_the_whole_step_s_floor(device: str) -> None:
    """The first graph knows its own floor only; the second step knows the whole's."""
    model, x = Broken(4, 32).double().to(device), batch(device, 512)
    budget_bytes, floors = int(0.2 * default_peak(model, x)), []
    for _ in range(3):
        run = within(model, budget_bytes)
        try:
            for _ in range(3):
                clear_gradients(model)
                peak_bytes = satcompile.measure_peak(lambda run=run: loss_of(run, x), device)
            break
        except satcompile.BudgetError as error:
            floors.append(error.floor_bytes)
            assert error.covers_step == (len(floors) == 2)
            assert ("floor of one graph alone" in str(error)) == (len(floors) == 1)
            budget_bytes = int(error.floor_bytes * 1.01)
            torch.compiler.reset()
    assert len(floors) == 2 and floors == sorted(floors)
    assert parameter_bytes(model) + x.nbytes + peak_bytes <= budget_bytes


@pytest.mark.slow
def test_blocks_compiled_one_by_one_hold_the_budget_together(device: str) -> None:
    model, x = net(device, layers=6), batch(device, 512).requires_grad_()
    whole = default_peak(model, x)
    budget_bytes = int(0.7 * whole)
    for block in model.blocks:
        block.compile(backend="sat", options={"memory_budget": budget_bytes})
    for _ in range(3):
        clear_gradients(model)
        x.grad = None
        peak_bytes = satcompile.measure_peak(lambda: loss_of(model, x), device)
    assert parameter_bytes(model) + x.nbytes + peak_bytes <= budget_bytes
    twin = copy.deepcopy(model)
    clear_gradients(twin)
    loss_of(twin, x)
    assert_same_gradients(gradients(model), gradients(twin), 1e-11)


class Adapted(nn.Module):
    """A frozen block with trained corrections of low rank, whose inner width is its peak."""

    def __init__(self, width: int = 32, rank: int = 4) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.requires_grad_(False)
        self.up_low = nn.Sequential(
            nn.Linear(width, rank, bias=False), nn.Linear(rank, 4 * width, bias=False)
        )
        self.down_low = nn.Sequential(
            nn.Linear(4 * width, rank, bias=False), nn.Linear(rank, width, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.silu(self.up(x) + self.up_low(x))
        return x + self.down(h) + self.down_low(h)


@pytest.mark.slow
def test_the_floor_of_a_step_of_frozen_blocks_is_met(device: str) -> None:
    """Two graphs, of the block whose input needs a gradient and of the first, whose does not. What
    each keeps lies beside the other's backward: no graph's own floor is the step's."""
    model, x = Blocks(Adapted, 3).double().to(device), batch(device, 256)

    def steps(budget: int) -> int:
        torch.compiler.reset()
        for block in model.blocks:
            block.compile(backend="sat", options={"memory_budget": budget})
        for _ in range(3):
            clear_gradients(model)
            peak_bytes = satcompile.measure_peak(lambda: loss_of(model, x), device)
        return parameter_bytes(model) + x.nbytes + peak_bytes

    plentiful = steps(2**30)
    eager_bytes = 2 * x.nbytes  # the square and the gradient of its mean, outside the graphs
    with pytest.raises(satcompile.BudgetError) as caught:
        steps(parameter_bytes(model) + 6 * x.nbytes)
    floor_bytes = caught.value.floor_bytes
    assert "of a step of 3 compiled graphs" in str(caught.value)
    measured = steps(floor_bytes)
    assert measured <= floor_bytes + eager_bytes
    assert floor_bytes < 0.6 * plentiful
    twin = copy.deepcopy(model)
    clear_gradients(twin)
    loss_of(twin, x)
    assert_same_gradients(gradients(model), gradients(twin), 1e-11)


@pytest.mark.slow
def test_a_real_model_is_planned_anew_for_longer_sequences() -> None:
    """Wrapped numbers (Llama's epsilons) keep their symbols in the second compilation."""
    from benchmarks.workloads import llama, text

    model = llama(1, 64, 128, 256)

    def step(inputs: Any) -> Any:
        output = run(**inputs)
        output.loss.backward()
        return output

    run = within(model, LARGE, dynamic=True)
    step(text(2, 64, 256))
    budget_bytes = graph_of(model).predicted_peak_bytes
    clear_gradients(model)
    torch.compiler.reset()
    run = within(model, budget_bytes, dynamic=True)
    for length in (64, 80):
        inputs = text(2, length, 256)
        step(inputs)
        clear_gradients(model)
        peak_bytes = satcompile.measure_peak(lambda inputs=inputs: step(inputs))
        clear_gradients(model)
        graph = graph_of(model)
        assert graph.resident_bytes + peak_bytes <= budget_bytes
        # Dynamo makes tensors of Llama's epsilons at each call: they are resident, as inputs are, and
        # measured, where a plan saves them.
        twice_bytes = graph.resident_bytes + peak_bytes - graph.predicted_peak_bytes
        assert 0 <= twice_bytes <= 4 * 8
    twin = copy.deepcopy(model)
    output = twin(**text(2, 80, 256))
    output.loss.backward()
    step(text(2, 80, 256))
    assert_same_gradients(gradients(model), gradients(twin), 2e-5)
