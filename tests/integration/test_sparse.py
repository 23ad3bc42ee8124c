"""Sparse training in compiled steps: the gradients, what is frozen, when tiles are chosen."""

from __future__ import annotations

import copy
import itertools
import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import satcompile
from satcompile.torch_compat.dynamo import compiled_graphs
from tests.integration.sparse import Trained, assert_frozen


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 48)
        self.norm = nn.LayerNorm(48)
        self.second = nn.Linear(48, 32, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.norm(torch.tanh(self.first(x))))


class Whole(nn.Module):
    """With its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).square().mean()


class Everything(nn.Module):
    """Each way in which a weight can be used that is cut into tiles, and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 24)
        self.linear = nn.Linear(24, 32)
        self.gpt = Conv1D(24, 32)
        self.shared = nn.Linear(24, 24)
        self.tied = nn.Linear(24, 40, bias=False)
        self.scaled = nn.Parameter(torch.randn(24, 24) / 5)
        self.single = nn.Linear(24, 8)
        self.heads = nn.Linear(24, 72)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)  # (batch, tokens, 24)
        x = x + self.gpt(torch.tanh(self.linear(x)))
        x = self.shared(torch.tanh(self.shared(x)))
        x = x + torch.tanh(self.tied(x)) @ self.tied.weight
        query, key, value = self.heads(x).chunk(3, -1)
        x = x + torch.tanh(query @ key.mT) @ value  # products of activations: left alone
        x = x.unflatten(1, (2, -1))  # four dimensions
        x = x @ (self.scaled * 0.5) + self.shared(x)
        return self.single(x.flatten(0, 2))  # two


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 24, 3, stride=2, dilation=2, bias=False)
        self.one = nn.Conv2d(24, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.line = nn.Conv1d(16, 16, 3)
        self.up = nn.ConvTranspose2d(16, 16, 2)
        self.out = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = self.up(self.grouped(F.relu(self.one(F.relu(self.second(x))))))
        return self.out(self.line(x.flatten(2)).mean(2))


def vectors(count: int = 1, width: int = 32) -> list[torch.Tensor]:
    return [torch.randn(12, width, dtype=torch.float64) for _ in range(count)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# -- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("forward_density", [1.0, 0.2], ids=["dense forward", "sparse forward"])
@pytest.mark.parametrize("score", ["movement", "fisher", "magnitude", "random"])
def test_active_tiles_have_dense_gradients_and_frozen_ones_do_not_move(
    score: str, forward_density: float
) -> None:
    trained = Trained(
        Mlp().double(), {"density": 0.3, "score": score, "forward_density": forward_density}
    )
    graphs = compiled_graphs()
    chosen = []
    for x in vectors(11):
        trained.checked_step(x)
        tiles = trained.state.tiles
        assert tiles["first.weight"].shape == (6, 4)
        chosen.append(torch.cat([tiles[name].flatten() for name in sorted(tiles)]))
        density = trained.state.density
        assert density == pytest.approx(0.3, abs=1 / 48)  # to a tile
        if forward_density < 1:
            used, masks = trained.state.forward_masks, trained.state.masks
            assert all(bool((masks[name] | ~used[name]).all()) for name in masks)
    changes = sum(not torch.equal(a, b) for a, b in itertools.pairwise(chosen))
    assert changes >= 3 or score == "magnitude"
    assert compiled_graphs() == graphs + 1


def test_six_changes_of_masks_compile_nothing() -> None:
    trained = Trained(Mlp().double(), {"density": 0.3, "score": "random", "interval": 1})
    trained.step(*vectors())
    graphs, seen = compiled_graphs(), []
    torch._dynamo.utils.counters["inductor"].clear()
    for x in vectors(7):
        trained.step(x)
        seen.append(trained.state.tiles["first.weight"])
    assert sum(not torch.equal(a, b) for a, b in itertools.pairwise(seen)) >= 5
    assert compiled_graphs() == graphs
    assert not torch._dynamo.utils.counters["inductor"]


@pytest.mark.parametrize("in_backward", [False, True], ids=["step", "backward"])
@pytest.mark.parametrize("forward_density", [1.0, 0.25], ids=["dense forward", "sparse forward"])
def test_every_kind_of_use(forward_density: float, in_backward: bool) -> None:
    trained = Trained(
        Everything().double(),
        {"density": 0.35, "forward_density": forward_density},
        fuse={"in_backward": in_backward},
    )
    for _ in range(5):
        trained.checked_step(torch.randint(16, (3, 4)))
    sparsity = satcompile.report(trained.run).graphs[0].sparsity
    assert sparsity is not None
    tiled = {row.name: row for row in sparsity.parameters}
    assert set(tiled) == set(trained.state.masks)
    assert set(tiled) == {
        "linear.weight", "gpt.weight", "shared.weight", "tied.weight", "scaled",
        "heads.weight", "single.weight",
    }  # fmt: skip
    reasons = {row.name: row.reason for row in sparsity.dense}
    assert "embedding" in reasons["embed.weight"]
    assert "1 dimension" in reasons["linear.bias"]
    if forward_density < 1:  # its product is with a number times it
        assert "mul" in tiled["scaled"].forward_dense
        assert tiled["scaled"].forward_share == 1
        assert tiled["linear.weight"].forward_share < 1


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("forward_density", [1.0, 0.3], ids=["dense forward", "sparse forward"])
def test_convolutions_by_output_channels(forward_density: float, channels_last: bool) -> None:
    model = Convolutions().double()
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    trained = Trained(
        model, {"density": 0.5, "block": 4, "forward_density": forward_density}, tolerance=1e-8
    )
    for _ in range(5):
        trained.checked_step(x + torch.randn_like(x))
    masks = trained.state.masks
    assert set(masks) == {
        "first.weight",
        "second.weight",
        "one.weight",
        "line.weight",
        "out.weight",
    }
    for name in ("first.weight", "second.weight"):
        by_channel = masks[name].flatten(1)
        assert bool((by_channel == by_channel[:, :1]).all())  # whole output channels
    sparsity = satcompile.report(trained.run).graphs[0].sparsity
    assert sparsity is not None
    reasons = {row.name: row.reason for row in sparsity.dense}
    assert "4 groups" in reasons["grouped.weight"] and "transposed" in reasons["up.weight"]


@pytest.mark.parametrize("forward_density", [1.0, 0.2], ids=["dense forward", "sparse forward"])
def test_bf16_autocast(forward_density: float) -> None:
    trained = Trained(
        Mlp(), {"density": 0.3, "forward_density": forward_density}, tolerance=0.03,
        context=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        loss_of=lambda result: result.float().square().mean(),
    )  # fmt: skip
    for x in vectors(5):
        trained.checked_step(x.float())
    assert trained.state.density == pytest.approx(0.3, abs=1 / 48)


def test_a_weight_that_is_frozen_by_the_user_is_left_alone() -> None:
    model = Mlp().double()
    model.second.weight.requires_grad_(False)
    trained = Trained(model, {"density": 0.3})
    for x in vectors(4):
        trained.checked_step(x)
    assert set(trained.state.masks) == {"first.weight"}


def test_two_instances_have_masks_of_their_own() -> None:
    class Twice(Mlp):
        pass

    first, second = (Trained(Twice().double(), {"density": 0.3}) for _ in range(2))
    graphs = compiled_graphs()
    for step in range(5):
        first.checked_step(*vectors())
        if step != 2:  # their steps are their own, too
            second.checked_step(*vectors())
    assert (first.state.step, second.state.step) == (5, 4)
    assert any(
        not torch.equal(first.state.tiles[name], second.state.tiles[name])
        for name in first.state.tiles
    )
    assert compiled_graphs() - graphs <= 2


def test_blocks_that_are_compiled_one_by_one_share_a_threshold() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Mlp() for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    model = Blocks().double()
    trained = Trained(model, {"density": 0.3})
    trained.run = model
    for layer in model.layers:
        layer.compile(backend="sat", options={"sparsity": trained.sparsity})
    for x in vectors(4):
        before, masks = trained.snapshot(), trained.state.masks
        trained.step(x)
        assert_frozen(before, trained.snapshot(), masks)
    assert trained.state.step == 4
    assert trained.state.density == pytest.approx(0.3, abs=1 / 144)  # of them all, to a tile
    graphs = satcompile.report(model).graphs
    assert {round(graph.sparsity.density, 6) for graph in graphs if graph.sparsity} != {0.3}


@pytest.mark.parametrize("forward_density", [1.0, 0.2], ids=["dense forward", "sparse forward"])
def test_sizes_that_vary(forward_density: float) -> None:
    trained = Trained(Mlp().double(), {"density": 0.3, "forward_density": forward_density})
    trained.run = torch.compile(
        trained.model, backend="sat", dynamic=True, options={"sparsity": trained.sparsity}
    )
    graphs = compiled_graphs()
    for rows in (12, 30, 7, 12, 64):
        trained.checked_step(torch.randn(rows, 32, dtype=torch.float64))
    assert compiled_graphs() == graphs + 1


def test_regions_that_are_checkpointed() -> None:
    class Checkpointed(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            middle = checkpoint(super().forward, x, use_reentrant=False)
            return super().forward(torch.tanh(middle))

    class Twice(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.tanh(super().forward(x)))

    trained = Trained(
        Checkpointed().double(), {"density": 0.3, "forward_density": 0.2}, eager=Twice().double()
    )
    for x in vectors(5):
        trained.checked_step(x)


# -- steps ---------------------------------------------------------------------------------------


def test_masks_hold_within_an_accumulation_and_evaluation_is_no_step() -> None:
    trained = Trained(Mlp().double(), {"density": 0.3, "interval": 1}, fuse={"accumulate": 3})
    trained.step(*vectors())
    for _ in range(4):
        masks, before = trained.state.masks, trained.snapshot()
        total: dict[str, torch.Tensor] = {}
        for x in vectors(3):
            _, gradients = trained.expected(x)
            total = {n: g + total.get(n, 0) for n, g in gradients.items()}
            trained.backward(x)
            with torch.no_grad():
                trained.run(x)
            trained.model.eval()
            trained.run(x)
            trained.model.train()
            assert all(torch.equal(m, masks[n]) for n, m in trained.state.masks.items())
        for name, parameter in trained.model.named_parameters():
            trained.check_gradient(name, parameter.grad, total[name], masks.get(name))
        step = trained.state.step
        trained.end_step()
        assert trained.state.step == step + 1
        assert_frozen(before, trained.snapshot(), masks)


def test_warm_up_is_dense_and_a_schedule_is_followed() -> None:
    schedule = {0: 0.8, 4: 0.8, 10: 0.2}
    trained = Trained(Mlp().double(), {"density": schedule, "warmup_steps": 4, "interval": 2})
    densities = []
    for x in vectors(13):
        trained.checked_step(x)
        densities.append(trained.state.density)
    assert densities[:3] == [1.0, 1.0, 1.0]  # after steps 0 to 2; step 3 is the last dense one
    expected = [0.8, 0.8, 0.8 - 0.2, 0.8 - 0.2, 0.4, 0.4, 0.2, 0.2, 0.2, 0.2]
    assert densities[3:] == pytest.approx(expected, abs=1 / 48)


def test_momentum_and_decay_leave_frozen_tiles_alone_until_they_come_back() -> None:
    trained = Trained(
        Mlp().double(), {"density": 0.4, "score": "random", "interval": 1},
        make=torch.optim.SGD, momentum=0.9, weight_decay=0.3,
    )  # fmt: skip
    came_back = 0
    frozen: dict[str, torch.Tensor] = {}
    for x in vectors(6):
        masks = trained.state.masks
        came_back += sum(int((masks[n] & was).sum()) for n, was in frozen.items())
        frozen = {name: ~mask for name, mask in masks.items()}
        trained.checked_step(x)
    assert came_back > 0


def test_a_gradient_that_is_not_finite_teaches_nothing_and_the_next_step_scores() -> None:
    trained = Trained(Mlp().double(), {"density": 0.3, "interval": 3})
    trained.backward(vectors()[0] * float("inf"))
    trained.model.zero_grad()
    trained.end_step()  # without gradients
    assert trained.state.density == 1.0 and trained.state.step == 1
    trained.checked_step(*vectors())
    assert trained.state.density == pytest.approx(0.3, abs=1 / 48)
    assert trained.state.step == 2


# -- a sparse forward, evaluated -----------------------------------------------------------------


def test_what_is_evaluated_is_what_is_trained() -> None:
    trained = Trained(Mlp().double(), {"density": 0.4, "forward_density": 0.2})
    for x in vectors(4):
        trained.step(x)
    [x] = vectors()
    loss, _ = trained.expected(x)
    with torch.no_grad():
        assert trained.loss_of(trained.run(x)).item() == pytest.approx(loss.item(), rel=1e-10)
    trained.model.eval()
    assert trained.loss_of(trained.run(x)).item() == pytest.approx(loss.item(), rel=1e-10)
    dense = trained.loss_of(trained.model(x))  # uncompiled, all weights count
    assert abs(dense.item() - loss.item()) > 1e-6 * abs(loss.item())


def test_an_evaluation_that_uses_a_weight_otherwise_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trained = Trained(Mlp().double(), {"density": 0.4, "forward_density": 0.2})
    for x in vectors(2):
        trained.step(x)

    def norm() -> torch.Tensor:
        return trained.model.first.weight.square().sum()

    with torch.no_grad(), caplog.at_level(logging.WARNING, "satcompile"):
        other = torch.compile(norm, backend="sat", options={"sparsity": trained.sparsity})
        other()
        other()
    told = [r for r in caplog.records if "is not what is trained" in r.message]
    assert len(told) == 1


# -- errors --------------------------------------------------------------------------------------


def test_without_a_fused_optimizer_nothing_runs() -> None:
    model = Mlp().double()
    compiled = torch.compile(
        model, backend="sat", options={"sparsity": {"density": 0.3, "block": 8}}
    )
    [x] = vectors()
    with pytest.raises(satcompile.UnsupportedError) as refused:
        compiled(x)
    assert "fuse_optimizer" in str(refused.value)
    assert "'first.weight'" in str(refused.value) and "no optimizer" in str(refused.value)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(satcompile.UnsupportedError, match="held by AdamW"):
        compiled(x)
    satcompile.fuse_optimizer(optimizer)
    compiled(x).sum().backward()  # nothing was lost
    optimizer.step()
    assert satcompile.sparsity_state(compiled).step == 1


def test_another_optimizer_may_not_step_what_is_frozen() -> None:
    trained = Trained(Mlp().double(), {"density": 0.3})
    trained.step(*vectors())
    other = torch.optim.AdamW(trained.model.parameters())  # and the fused one is still alive
    trained.backward(*vectors())
    before = trained.snapshot()
    with pytest.raises(
        satcompile.UnsupportedError, match=r"AdamW.step\(\) would move frozen tiles"
    ):
        other.step()
    for name, tensors in trained.snapshot().items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, before[name], strict=True))
    trained.end_step()
    torch.optim.AdamW(Mlp().parameters()).step()  # of no concern


def test_one_parameter_is_cut_in_one_way() -> None:
    trained = Trained(Mlp().double(), {"density": 0.3})
    [x] = vectors()
    trained.step(x)

    def other(x: torch.Tensor) -> torch.Tensor:
        return trained.model(x) * 2

    options = {"sparsity": {**trained.sparsity, "block": 16}}
    with pytest.raises(satcompile.UnsupportedError, match="Use the same block"):
        torch.compile(other, backend="sat", options=options)(x)


def test_an_optimizer_that_replaces_another_goes_on_with_its_masks() -> None:
    trained = Trained(Mlp().double(), {"density": 0.3, "interval": 5})
    for x in vectors(2):
        trained.step(x)
    tiles = trained.state.tiles
    trained.optimizer = satcompile.fuse_optimizer(torch.optim.SGD(trained.model.parameters(), 0.1))
    trained.checked_step(*vectors())
    assert trained.state.step == 3
    assert all(torch.equal(t, tiles[n]) for n, t in trained.state.tiles.items())


# -- saving and resuming -------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 4])
def test_training_that_was_resumed_equals_training_that_was_not(steps: int, tmp_path: Any) -> None:
    class Resumed(Mlp):
        pass

    settings = {"density": 0.4, "interval": 2, "forward_density": 0.3}
    whole = Trained(Resumed().double(), settings)
    batches = vectors(9)
    for x in batches[:steps]:
        whole.step(x)
    saved = {
        "model": whole.model.state_dict(),
        "optimizer": whole.optimizer.state_dict(),
        "sparsity": whole.state.state_dict(),
    }
    torch.save(saved, tmp_path / "checkpoint.pt")
    losses = [whole.step(x) for x in batches[steps:]]

    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again = Trained(Resumed().double(), settings)
    again.model.load_state_dict(loaded["model"])
    again.optimizer.load_state_dict(loaded["optimizer"])
    again.state.load_state_dict(loaded["sparsity"])  # before anything is compiled
    assert again.state.step == steps
    assert [again.step(x) for x in batches[steps:]] == losses
    for name, tensors in whole.snapshot().items():
        for mine, theirs in zip(again.snapshot()[name], tensors, strict=True):
            assert torch.equal(mine, theirs)
    assert again.state.step == whole.state.step == 9
    for name, score in whole.state.scores.items():
        assert torch.equal(again.state.scores[name], score)


def test_a_state_goes_back_into_a_run_that_went_on() -> None:
    trained = Trained(Mlp().double(), {"density": 0.3, "interval": 1})
    for x in vectors(3):
        trained.step(x)
    saved, tiles = trained.state.state_dict(), trained.state.tiles
    for x in vectors(2):
        trained.step(x)
    trained.state.load_state_dict(saved)
    assert trained.state.step == 3
    assert all(torch.equal(t, tiles[n]) for n, t in trained.state.tiles.items())
    trained.checked_step(*vectors())


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    trained = Trained(Mlp().double(), {"density": 0.3})
    for x in vectors(2):
        trained.step(x)
    good, tiles = trained.state.state_dict(), trained.state.tiles

    def broken(**changes: Any) -> dict[str, Any]:
        state = copy.deepcopy(good)
        state["parameters"]["second.weight"].update(changes)
        return state

    other = copy.deepcopy(good)
    other["parameters"]["third.weight"] = other["parameters"]["second.weight"]
    for state, words in (
        (broken(shape=(3, 4)), r"of shape \(3, 4\), which is \(32, 48\) here"),
        (broken(tile=(16, 16)), "in tiles of 16 x 16; here they are 8 x 8"),
        ({**good, "format": 9}, "format 9"),
        (other, "'third.weight'.*does not exist here"),
    ):
        with pytest.raises(satcompile.OptionError, match=words):
            trained.state.load_state_dict(state)
        assert all(torch.equal(t, tiles[n]) for n, t in trained.state.tiles.items())


def test_the_state_of_a_compiled_function() -> None:
    model = Mlp().double()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    compiled = torch.compile(
        loss, backend="sat", options={"sparsity": {"density": 0.3, "block": 8}}
    )
    with pytest.raises(satcompile.NotCompiledError, match="run a forward"):
        satcompile.sparsity_state(compiled)
    optimizer = satcompile.fuse_optimizer(torch.optim.AdamW(model.parameters()))
    compiled(*vectors()).backward()
    optimizer.step()
    state = satcompile.sparsity_state(compiled)
    assert state.step == 1
    assert sorted(tuple(mask.shape) for mask in state.masks.values()) == [(32, 48), (48, 32)]


# -- with the other passes, and the report -------------------------------------------------------


def test_with_a_budget_and_updates_in_the_backward() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Mlp() for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x.square().mean()

    trained = Trained(
        Deep().double(), {"density": 0.3, "interval": 3}, {"memory_budget": "85% of default"},
        fuse={"in_backward": True}, loss_of=lambda loss: loss,
    )  # fmt: skip
    x = torch.randn(256, 32, dtype=torch.float64)
    for _ in range(3):
        trained.checked_step(x + torch.randn_like(x))
    graph = satcompile.report(trained.run).graphs[0]
    assert graph.recomputed and graph.budget_bytes is not None
    trained.end_step()
    for _ in range(2):  # a plain step, and one that scores
        peak_bytes = satcompile.measure_peak(lambda: trained.backward(x))
        assert graph.resident_bytes + peak_bytes <= graph.budget_bytes
        trained.end_step()
    assert all(p.grad is None for p in trained.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_scoring_takes_is_predicted(dtype: torch.dtype) -> None:
    """A step that scores looks at strips of each weight and its gradient: here, half of them."""
    model = nn.Sequential(
        nn.Linear(256, 256, bias=False), nn.Tanh(), nn.Linear(256, 256, bias=False)
    )
    trained = Trained(
        Whole(model).to(dtype), {"density": 0.5, "block": 128, "interval": 8},
        {"memory_budget": "1GiB"}, loss_of=lambda loss: loss,
    )  # fmt: skip
    x = torch.randn(8, 256, dtype=dtype)
    trained.step(x)
    report = satcompile.report(trained.run).graphs[0].sparsity
    assert report is not None
    for is_scoring in (False, True):
        while report.is_scoring is not is_scoring:
            trained.step(x)
        peak_bytes = satcompile.measure_peak(lambda: trained.backward(x))
        trained.end_step()
        graph = satcompile.report(trained.run).graphs[0]
        assert graph.prediction == "generated code"
        assert graph.resident_bytes + peak_bytes <= graph.predicted_peak_bytes
    assert graph.resident_bytes + peak_bytes >= 0.97 * graph.predicted_peak_bytes


def test_the_report_follows_the_training() -> None:
    trained = Trained(Mlp().double(), {"density": 0.3, "interval": 4})
    trained.step(*vectors())
    sparsity = satcompile.report(trained.run).graphs[0].sparsity
    assert sparsity is not None
    assert (sparsity.step, sparsity.next_choice, sparsity.is_scoring) == (1, 4, False)
    assert sparsity.density == pytest.approx(trained.state.density)
    # Two layers of 12 x 32 x 48 multiplications: forward, both gradients, but for the first input's.
    each = 2 * 12 * 32 * 48
    assert sparsity.total_flops == 5 * each
    assert sparsity.skipped_share == pytest.approx((1 - sparsity.density) * 2 / 5)
    text = str(satcompile.report(trained.run))
    assert "first.weight" in text and "step 4 (from 0) scores all tiles" in text
    assert "first.bias" in text and "1 dimension: always dense" in text
    for x in vectors(3):
        trained.step(x)
    assert (sparsity.step, sparsity.is_scoring, sparsity.skipped_share) == (4, True, 0.0)
    assert sparsity.to_dict()["parameters"][0]["name"] == "first.weight"
    names = [row.name for row in satcompile.report(trained.run).graphs[0].passes]
    assert names[0] == "sparse_gradients"
