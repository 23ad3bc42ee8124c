"""Updates inside the backward: exact, or a clear error, in every order of calls.

Each test trains a model and its twin, one with torch's optimizer and plain gradients, and
compares weights and state.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_  # under these names, before any patch
from torch.utils.checkpoint import checkpoint

import satcompile
from satcompile.updates.kernels import sweep as sweeps
from satcompile.updates.optimizers import in_backward

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TOLERANCE = 1e-10


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Net(nn.Module):
    """A tied weight (first and last use), norms, and a parameter without a gradient."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.encode = nn.Linear(16, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.norm(self.encode(x)))
        hidden = hidden + torch.tanh(self.mix(hidden))
        return hidden @ self.encode.weight


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x))


class Pair:
    """A model with a fused optimizer, and its twin with torch's own."""

    def __init__(
        self,
        device: str,
        make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        model: nn.Module | None = None,
        options: dict[str, Any] | None = None,
        in_backward: bool = True,
        fuse: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        settings = {"lr": 1e-2, "weight_decay": 0.1, **settings}
        if make is not torch.optim.SGD:
            settings.setdefault("eps", 1e-4)  # noise of a gradient that is zero stays noise
        self.model = (model or Net()).double().to(device)
        self.twin = copy.deepcopy(self.model)
        self.optimizer = satcompile.fuse_optimizer(
            make(self.model.parameters(), **settings), in_backward, **(fuse or {})
        )
        self.plain = make(self.twin.parameters(), **settings)
        self.run = torch.compile(self.model, backend="sat", options=options or {})
        self.device = device

    def inputs(self, count: int = 1) -> list[torch.Tensor]:
        return [torch.randn(32, 16, dtype=torch.float64, device=self.device) for _ in range(count)]

    def sides(self) -> Iterator[tuple[Any, nn.Module, torch.optim.Optimizer]]:
        yield self.run, self.model, self.optimizer
        yield self.twin, self.twin, self.plain

    def step(self, x: torch.Tensor) -> None:
        """A whole step on both sides."""
        for run, _, optimizer in self.sides():
            run(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def no_gradients(self) -> bool:
        return all(parameter.grad is None for parameter in self.model.parameters())

    def check(self) -> None:
        """Same weights, same state."""
        pairs = list(zip(self.model.parameters(), self.twin.parameters(), strict=True))
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE)
            state, wanted = self.optimizer.state[mine], self.plain.state[theirs]
            assert state.keys() == wanted.keys()
            for key, value in wanted.items():
                if value is not None:
                    torch.testing.assert_close(
                        state[key], value, rtol=TOLERANCE, atol=TOLERANCE, check_dtype=False
                    )


def loss(run: Any, x: torch.Tensor) -> torch.Tensor:
    return run(x).square().mean()


# -- exact -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"amsgrad": True, "foreach": True}),
        (torch.optim.Adam, {"betas": (0.8, 0.95)}),
        (torch.optim.Adam, {"maximize": True, "weight_decay": 0.0}),
        (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.SGD, {}),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "-".join(value) or "plain",
)
@pytest.mark.parametrize("in_backward", [True, False], ids=["backward", "step"])
def test_twenty_steps_are_those_of_torch(
    device: str, make: Any, settings: dict[str, Any], in_backward: bool
) -> None:
    torch._dynamo.utils.counters.clear()
    pair = Pair(device, make, in_backward=in_backward, **settings)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 3, 0.7) for _, _, o in pair.sides()]
    for x in pair.inputs(20):
        loss(pair.run, x).backward()
        assert pair.no_gradients() == in_backward
        pair.optimizer.step()
        pair.optimizer.zero_grad()
        loss(pair.twin, x).backward()
        pair.plain.step()
        pair.plain.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
    pair.check()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "lr must not recompile"


def test_updates_within_a_budget(device: str) -> None:
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(6))
    )
    pair = Pair(device, model=model)
    x = torch.randn(512, 16, dtype=torch.float64, device=device)
    pair.step(x)
    graph = satcompile.report(pair.model).graphs[-1]
    budget_bytes = (graph.predicted_peak_bytes + graph.floor_bytes) // 2
    torch.compiler.reset()
    pair.run = torch.compile(pair.model, backend="sat", options={"memory_budget": budget_bytes})
    for _ in range(3):
        pair.step(x)
    pair.check()
    graph = satcompile.report(pair.model).graphs[-1]
    assert graph.recomputed and any(each.name == "fused_update" for each in graph.passes)
    peak_bytes = satcompile.measure_peak(lambda: loss(pair.run, x).backward(), x.device)
    pair.optimizer.step()
    assert graph.resident_bytes + peak_bytes <= budget_bytes


# -- orders of calls ---------------------------------------------------------------------------


def test_a_second_backward_without_step_is_refused(device: str) -> None:
    pair = Pair(device)
    first, second = pair.inputs(2)
    loss(pair.run, first).backward()
    loss(pair.twin, first).backward()
    with pytest.raises(satcompile.UpdateError, match=r"accumulate=N"):
        loss(pair.run, second).backward()
    pair.optimizer.step()
    pair.plain.step()
    pair.check()  # of the second nothing was applied


def test_two_forwards_then_two_backwards_are_summed(device: str) -> None:
    pair = Pair(device)
    pair.step(pair.inputs()[0])
    for x, y in [pair.inputs(2), pair.inputs(2)]:
        for run, _, optimizer in pair.sides():
            one, two = loss(run, x), loss(run, y)
            one.backward()
            two.backward()
            optimizer.step()
            optimizer.zero_grad()
        pair.check()
    pair.step(pair.inputs()[0])
    pair.check()


@pytest.mark.parametrize("in_backward", [True, False])
def test_accumulation_and_an_early_step(device: str, in_backward: bool) -> None:
    pair = Pair(device, in_backward=in_backward, fuse={"accumulate": 3})
    for backwards in (3, 3, 1, 3):
        inputs = pair.inputs(backwards)
        for run, _, optimizer in pair.sides():
            for x in inputs:
                (loss(run, x) / 3).backward()
            optimizer.step()
            optimizer.zero_grad()
    pair.check()


@pytest.mark.parametrize("in_backward", [True, False])
def test_clipping_is_torchs(device: str, in_backward: bool) -> None:
    limit = 1e-2
    pair = Pair(device, in_backward=in_backward, fuse={"max_grad_norm": limit})
    for x in pair.inputs(5):
        loss(pair.run, x).backward()
        pair.optimizer.step()
        pair.optimizer.zero_grad()
        loss(pair.twin, x).backward()
        norm = clip_grad_norm_(pair.twin.parameters(), limit)
        assert norm > limit
        pair.plain.step()
        pair.plain.zero_grad()
        torch.testing.assert_close(pair.optimizer.grad_norm, norm)
    pair.check()


@pytest.mark.parametrize(
    "clip", [lambda p: clip_grad_norm_(p, 1.0), lambda p: clip_grad_value_(p, 1.0)]
)
def test_torchs_clipping_does_not_pass_quietly(device: str, clip: Any) -> None:
    pair = Pair(device)
    loss(pair.run, pair.inputs()[0]).backward()
    with pytest.raises(satcompile.UpdateError, match=r"max_grad_norm"):
        clip(pair.model.parameters())
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    clip(other.parameters())  # nobody's business


def test_asking_for_the_norm_alone_is_answered_with_a_warning(
    device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(in_backward.BACKWARD_UPDATES, "_reported", set())
    pair = Pair(device)
    for x in pair.inputs(2):
        loss(pair.run, x).backward()
        norm = clip_grad_norm_(pair.model.parameters(), float("inf"))  # as Trainer, for its log
        assert norm == 0
        pair.optimizer.step()
    warnings = [r for r in caplog.records if "norm of gradients was asked for" in r.getMessage()]
    assert len(warnings) == 1


def test_clipping_what_is_left_of_the_gradients_does_not_pass_either(device: str) -> None:
    pair = Pair(device)
    pair.model.mix.weight.register_hook(lambda gradient: gradient)
    loss(pair.run, pair.inputs()[0]).backward()
    assert pair.model.mix.weight.grad is not None and pair.model.mix.bias.grad is None
    with pytest.raises(satcompile.UpdateError, match=r"misses gradients"):
        clip_grad_norm_(pair.model.parameters(), 1.0)


def test_a_scaled_loss(device: str) -> None:
    pair = Pair(device)
    for x in pair.inputs(3):
        for run, _, optimizer in pair.sides():
            scaler = torch.amp.GradScaler(device, init_scale=512.0)
            scaler.scale(loss(run, x)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    pair.check()


def test_scaled_losses_get_a_backward_that_returns_gradients(device: str) -> None:
    """Gradients that are kept cost a copy each; from the second step on they are not kept."""
    pair = Pair(device)
    scaler = torch.amp.GradScaler(device)

    def passes(scaled: bool) -> list[str]:
        value = loss(pair.run, x)
        (scaler.scale(value) if scaled else value).backward()
        pair.optimizer.step()
        pair.optimizer.zero_grad()
        return [each.name for each in satcompile.report(pair.model).graphs[-1].passes]

    x = pair.inputs()[0]
    for _ in range(2):  # whatever another model has scaled before is forgotten
        passes(False)
    assert "fused_update" in passes(True)
    assert "fused_update" not in passes(True)
    assert "fused_update" not in passes(False)
    assert "fused_update" in passes(False)


def test_an_id_that_is_given_again_is_not_mistaken(device: str) -> None:
    """Another model's parameter where, by its id, an optimizer's parameter had been."""
    pair = Pair(device)
    pair.step(pair.inputs()[0])
    owners = dict(in_backward.BACKWARD_UPDATES.owners())
    other = nn.Linear(24, 24, device=device).double()
    number = id(pair.model.mix.weight)
    with pytest.MonkeyPatch.context() as patch:
        swapped = {**owners, id(other.weight): owners[number]}
        patch.setattr(in_backward.BACKWARD_UPDATES, "_owners", swapped)
        before = other.weight.detach().clone()
        run = torch.compile(other, backend="sat")
        run(torch.ones(2, 24, dtype=torch.float64, device=device)).sum().backward()
    assert torch.equal(other.weight, before) and other.weight.grad is not None


def test_an_optimizer_that_is_gone_leaves_nothing(device: str) -> None:
    pair = Pair(device)
    x = pair.inputs()[0]
    pair.step(x)
    moment = weakref.ref(pair.optimizer.state[pair.model.mix.weight]["exp_avg"])
    gone = weakref.ref(pair.optimizer)
    pair.optimizer = None  # type: ignore[assignment]
    gc.collect()
    assert gone() is None and moment() is None
    loss(pair.run, x).backward()
    assert pair.model.mix.weight.grad is not None


def test_autograd_grad_gives_gradients_and_updates_nothing(device: str) -> None:
    pair = Pair(device)
    x = pair.inputs()[0]
    found, wanted = (
        torch.autograd.grad(loss(run, x), [m.encode.weight, m.mix.bias])
        for run, m, _ in pair.sides()
    )
    torch.testing.assert_close(found, wanted)
    pair.step(x)
    pair.check()


def test_backward_for_some_inputs_only(device: str) -> None:
    pair = Pair(device)
    x = pair.inputs()[0]
    for run, model, optimizer in pair.sides():
        torch.autograd.backward(loss(run, x), inputs=[model.mix.weight])
        optimizer.step()
        optimizer.zero_grad()
    pair.check()


def test_a_retained_graph(device: str) -> None:
    pair = Pair(device)
    x = pair.inputs()[0]
    for run, _, optimizer in pair.sides():
        value = loss(run, x)
        value.backward(retain_graph=True)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    pair.check()


@pytest.mark.parametrize("when", ["before", "between", "after a step"])
@pytest.mark.parametrize("kind", ["tensor", "post-accumulate"])
def test_hooks_see_their_gradient(device: str, when: str, kind: str) -> None:
    pair = Pair(device)
    x = pair.inputs()[0]
    seen: list[torch.Tensor] = []

    def double(gradient: torch.Tensor) -> torch.Tensor:
        seen.append(gradient.clone())
        return gradient * 2

    def double_in_place(parameter: torch.Tensor) -> None:
        seen.append(parameter.grad.clone())
        parameter.grad.mul_(2)

    def hook(model: nn.Module) -> None:
        if kind == "tensor":
            model.mix.weight.register_hook(double)
        else:
            model.mix.weight.register_post_accumulate_grad_hook(double_in_place)

    if when == "after a step":
        pair.step(x)
    for run, model, optimizer in pair.sides():
        if when != "between":
            hook(model)
        value = loss(run, x)
        if when == "between":
            hook(model)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1])
    pair.check()


def test_a_parameter_of_two_graphs(device: str) -> None:
    pair = Pair(device)
    other = [torch.compile(lambda w: w.sin().sum(), backend="sat"), lambda w: w.sin().sum()]
    for x in pair.inputs(2):
        for (run, model, optimizer), more in zip(pair.sides(), other, strict=True):
            (loss(run, x) + more(model.mix.weight)).backward()
            optimizer.step()
            optimizer.zero_grad()
    pair.check()


def test_an_uncompiled_use_of_an_updated_weight_is_told(device: str) -> None:
    pair = Pair(device)
    (loss(pair.run, pair.inputs()[0]) + pair.model.mix.weight.square().sum()).backward()
    with pytest.raises(satcompile.UpdateError, match="from outside that graph"):
        pair.optimizer.step()


def test_numbers_changed_between_backward_and_step_are_told(device: str) -> None:
    pair = Pair(device)
    loss(pair.run, pair.inputs()[0]).backward()
    pair.optimizer.param_groups[0]["lr"] = 1.0
    with pytest.raises(satcompile.UpdateError, match="before the backward"):
        pair.optimizer.step()


def test_gradients_dropped_before_step_are_told(device: str) -> None:
    pair = Pair(device)
    loss(pair.run, pair.inputs()[0]).backward()
    with pytest.raises(satcompile.UpdateError, match="cannot be dropped"):
        pair.optimizer.zero_grad()


def test_a_weight_changed_between_forward_and_backward(device: str) -> None:
    pair = Pair(device)
    x = pair.inputs()[0]
    for run, model, _ in pair.sides():
        value = loss(run, x)
        with torch.no_grad():
            model.mix.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()
    assert pair.no_gradients()


def test_an_update_is_a_change_to_whoever_saved_the_weight(device: str) -> None:
    pair = Pair(device)
    held = (pair.model.mix.weight * torch.ones(24, device=device).requires_grad_()).sum()
    loss(pair.run, pair.inputs()[0]).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        held.backward()


def test_a_gradient_that_is_not_finite(device: str) -> None:
    pair = Pair(device)
    x = pair.inputs()[0]
    x[0, 0] = float("inf")
    pair.step(x)
    for mine, theirs in zip(pair.model.parameters(), pair.twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True)
    assert pair.model.encode.weight.isnan().any()


def test_an_interrupted_backward_leaves_pairs_that_agree(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(device)
    x = pair.inputs()[0]
    pair.step(x)
    before = [parameter.detach().clone() for parameter in pair.model.parameters()]
    calls = 0

    def interrupted(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        sweeps.sweep(*args)

    monkeypatch.setattr(in_backward, "sweep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loss(pair.run, x).backward()
    monkeypatch.undo()
    loss(pair.twin, x).backward()
    pair.plain.step()
    ahead = 0
    triples = zip(pair.model.parameters(), pair.twin.parameters(), before, strict=True)
    for mine, theirs, old in triples:
        state = pair.optimizer.state.get(mine)
        if not state:
            continue
        if state["step"] == 2:  # ahead, with its moments
            ahead += 1
            torch.testing.assert_close(mine, theirs)
            torch.testing.assert_close(state["exp_avg"], pair.plain.state[theirs]["exp_avg"])
        else:
            assert torch.equal(mine, old)
            assert not torch.equal(state["exp_avg"], pair.plain.state[theirs]["exp_avg"])
    assert 0 < ahead < 5
    pair.optimizer.step()  # what there is; then training goes on
    loss(pair.run, x).backward()
    pair.optimizer.step()


# -- binding -----------------------------------------------------------------------------------


def test_two_instances_have_their_own_state(device: str) -> None:
    pairs = [Pair(device), Pair(device, make=torch.optim.SGD, momentum=0.9)]
    third = Pair(device, in_backward=False)
    for _ in range(3):
        for pair in (*pairs, third):
            pair.step(pair.inputs()[0])
    for pair in (*pairs, third):
        pair.check()


def test_six_compiled_blocks(device: str) -> None:
    model = nn.Sequential(*(Block() for _ in range(6)))
    pair = Pair(device, model=model)
    for block in model:
        block.compile(backend="sat")
    pair.run = model
    for x in pair.inputs(3):
        loss(pair.run, x).backward()
        assert pair.no_gradients()
        pair.optimizer.step()
        loss(pair.twin, x).backward()
        pair.plain.step()
        pair.plain.zero_grad()
    pair.check()


def test_fused_after_the_first_forward(device: str) -> None:
    pair = Pair(device, in_backward=False)
    pair.step(pair.inputs()[0])
    satcompile.fuse_optimizer(pair.optimizer, in_backward=True)
    x = pair.inputs()[0]
    loss(pair.run, x).backward()
    assert pair.no_gradients()
    pair.optimizer.step()
    loss(pair.twin, x).backward()
    pair.plain.step()
    pair.check()


def test_groups_added_and_state_loaded_on_the_way(device: str) -> None:
    pair = Pair(device)
    extra = [nn.Parameter(torch.ones(16, 16, dtype=torch.float64, device=device)) for _ in "ab"]
    for x in pair.inputs(2):
        pair.step(x)
    saved = copy.deepcopy(pair.optimizer.state_dict())
    pair.plain.load_state_dict(saved)  # ours into torch's
    pair.optimizer.load_state_dict(copy.deepcopy(pair.plain.state_dict()))  # and back
    for optimizer, parameter in zip((pair.optimizer, pair.plain), extra, strict=True):
        optimizer.add_param_group({"params": [parameter], "lr": 0.5})
    for x in pair.inputs(2):
        for (run, _, optimizer), parameter in zip(pair.sides(), extra, strict=True):
            loss(run, x @ parameter).backward()
            optimizer.step()
            optimizer.zero_grad()
    pair.check()
    torch.testing.assert_close(*extra)


def test_scheduler_made_before(device: str) -> None:
    model = nn.Linear(4, 4).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    fused = satcompile.fuse_optimizer(optimizer)
    assert fused is optimizer and isinstance(optimizer, torch.optim.AdamW)
    model(torch.ones(1, 4, device=device)).sum().backward()
    with pytest.warns() as caught:
        optimizer.step()
        scheduler.step()
        import warnings

        warnings.warn("one, so that pytest finds one", stacklevel=1)
    assert len(caught) == 1, "no complaint about the order of step() calls"
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.state[model.weight]["step"] == 1


def test_the_pass_can_be_left_out(device: str) -> None:
    pair = Pair(device, options={"disable_passes": ["fused_update"]})
    loss(pair.run, pair.inputs()[0]).backward()
    assert pair.model.mix.weight.grad is not None
    pair.optimizer.step()


def test_sizes_that_change(device: str) -> None:
    """With symbolic sizes, numbers stand among the graph's inputs, and not among its edges."""
    pair = Pair(device)
    pair.run = torch.compile(pair.model, backend="sat", dynamic=True)
    for rows in (32, 7, 50):
        x = torch.randn(rows, 16, dtype=torch.float64, device=device)
        loss(pair.run, x).backward()
        assert pair.no_gradients()
        pair.optimizer.step()
        loss(pair.twin, x).backward()
        pair.plain.step()
        pair.plain.zero_grad()
    pair.check()


@pytest.mark.parametrize("use_reentrant", [False])
def test_checkpointed_regions(device: str, use_reentrant: bool) -> None:
    class Checkpointed(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = checkpoint(self.encode, x, use_reentrant=use_reentrant)
            return checkpoint(self.mix, torch.tanh(hidden), use_reentrant=use_reentrant)

    pair = Pair(device, model=Checkpointed())
    for x in pair.inputs(3):
        pair.step(x)
    pair.check()


def test_checkpointing_around_a_compiled_model(device: str) -> None:
    pair = Pair(device)
    for x in pair.inputs(3):
        for run, _, optimizer in pair.sides():
            checkpoint(run, x, use_reentrant=False).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    pair.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_other_dtypes_are_those_of_step(device: str, dtype: torch.dtype, autocast: bool) -> None:
    """Inside the backward or by step(): the same gradients, the same kernel, the same bits."""
    start = Net().to(device, dtype)
    x = torch.randn(32, 16, device=device, dtype=dtype)
    found = []
    for inside in (False, True):
        torch.compiler.reset()
        model = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        satcompile.fuse_optimizer(optimizer, inside)
        run = torch.compile(model, backend="sat")
        for _ in range(4):
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                value = run(x).float().square().mean()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append([parameter.detach() for parameter in model.parameters()])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


# -- memory ------------------------------------------------------------------------------------


def test_gradients_need_not_coexist(device: str) -> None:
    """Where gradients set the peak, it falls by what need not be there together."""
    model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(8)))
    one = 256 * 256 * 8
    peaks = {}
    x = torch.randn(4, 256, dtype=torch.float64, device=device)
    for inside in (False, True):
        torch.compiler.reset()
        pair = Pair(device, model=copy.deepcopy(model), in_backward=inside)
        for _ in range(2):
            loss(pair.run, x).backward()
            pair.optimizer.step()
            pair.optimizer.zero_grad()
        run = pair.run
        peaks[inside] = satcompile.measure_peak(lambda run=run: loss(run, x).backward(), x.device)
        graph = satcompile.report(pair.model).graphs[-1]
        total = graph.resident_bytes + peaks[inside]
        assert total == pytest.approx(graph.predicted_peak_bytes, rel=0.01)
        pair.optimizer.step()
    assert peaks[False] > 8 * one
    assert peaks[True] < 2.2 * one
    assert graph.default_peak_bytes - graph.predicted_peak_bytes > 5.8 * one


def test_inputs_that_share_memory_are_updated_by_step(
    device: str, caplog: pytest.LogCaptureFixture
) -> None:
    pair = Pair(device)
    for run, model, optimizer in pair.sides():
        x = torch.ones(32, 16, dtype=torch.float64, device=device)
        both = torch.compile(joined, backend="sat") if run is pair.run else joined
        with caplog.at_level("WARNING", "satcompile"):
            both(model, x, x[:, :8]).backward()
        optimizer.step()
    pair.check()
    assert "some of its inputs share memory" in caplog.text


def joined(model: nn.Module, x: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Writes into a part of another input, so that AOTAutograd merges the two."""
    part.mul_(2)
    return model(x).square().mean()
