"""What can be fused, what is refused by name, and that the optimizer stays what it was."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import satcompile


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes or ((5, 3), (7,), ())]


def set_gradients(*sides: list[nn.Parameter]) -> None:
    for each in zip(*sides, strict=True):
        gradient = torch.randn(each[0].shape).to(each[0].dtype)
        for parameter in each:
            parameter.grad = gradient.clone()


def test_it_is_the_same_object_with_the_same_groups_and_state() -> None:
    optimizer = torch.optim.AdamW(parameters())
    groups, state = optimizer.param_groups, optimizer.state
    assert satcompile.fuse_optimizer(optimizer) is optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups is groups and optimizer.state is state
    assert satcompile.fuse_optimizer(optimizer, in_backward=True) is optimizer  # other settings


def test_step_hooks_and_closures_work() -> None:
    mine = parameters()
    optimizer = satcompile.fuse_optimizer(torch.optim.SGD(mine, lr=0.1))
    called = []
    optimizer.register_step_pre_hook(lambda *args: called.append("before"))
    optimizer.register_step_post_hook(lambda *args: called.append("after"))

    def closure() -> float:
        called.append("closure")
        assert torch.is_grad_enabled()
        set_gradients(mine)
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert called == ["before", "closure", "after"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_alone(copied: Any) -> None:
    mine = parameters()
    optimizer = satcompile.fuse_optimizer(torch.optim.AdamW(mine), max_grad_norm=1.0)
    set_gradients(mine)
    optimizer.step()
    twin = copied(optimizer)
    theirs = twin.param_groups[0]["params"]
    set_gradients(mine, theirs)
    for each in (optimizer, twin):
        each.step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert twin.grad_norm is not None


def test_state_goes_to_torch_and_back_through_a_file() -> None:
    mine, theirs = parameters(), parameters()
    fused = satcompile.fuse_optimizer(torch.optim.Adam(mine, amsgrad=True))
    plain = torch.optim.Adam(theirs, amsgrad=True)
    with torch.no_grad():
        for a, b in zip(mine, theirs, strict=True):
            b.copy_(a)
    for writer, reader in ((fused, plain), (plain, fused)):
        for _ in range(2):
            set_gradients(mine, theirs)
            fused.step()
            plain.step()
        file = io.BytesIO()
        torch.save(writer.state_dict(), file)
        file.seek(0)
        reader.load_state_dict(torch.load(file))
    set_gradients(mine, theirs)
    fused.step()
    plain.step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)
        assert fused.state[a]["step"] == plain.state[b]["step"] == 5


def test_groups_have_their_own_numbers_and_lr_may_be_a_tensor() -> None:
    sides = [parameters((3,), (4,)) for _ in range(2)]
    made = []
    for side in sides:
        with torch.no_grad():
            for parameter in side:
                parameter.fill_(1.0)
        groups = [
            {"params": [side[0]], "lr": torch.tensor(0.1), "betas": (0.5, 0.7)},
            {"params": [side[1]], "weight_decay": 0.5, "name": "of the user's own"},
        ]
        made.append(torch.optim.AdamW(groups, lr=0.01, foreach=False))
    satcompile.fuse_optimizer(made[0])
    for _ in range(3):
        set_gradients(*sides)
        for optimizer in made:
            optimizer.step()
    for a, b in zip(*sides, strict=True):
        torch.testing.assert_close(a, b)


def test_parameters_without_a_gradient_stay_without_state() -> None:
    mine = parameters((2,), (3,))
    optimizer = satcompile.fuse_optimizer(torch.optim.AdamW(mine))
    mine[0].grad = torch.ones(2)
    before = mine[1].detach().clone()
    optimizer.step()
    assert mine[1] not in optimizer.state and torch.equal(mine[1], before)


def test_layouts_of_gradients_and_loaded_moments_may_differ() -> None:
    mine, theirs = [nn.Parameter(torch.arange(12.0).reshape(3, 4).t()) for _ in "ab"]
    fused = satcompile.fuse_optimizer(torch.optim.AdamW([mine], lr=0.1))
    plain = torch.optim.AdamW([theirs], lr=0.1)
    for _ in range(2):
        mine.grad = theirs.grad = torch.randn(4, 3)
        fused.step()
        plain.step()
        state = copy.deepcopy(plain.state_dict())
        state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].contiguous()
        fused.load_state_dict(state)
    torch.testing.assert_close(mine, theirs)


def test_in_place_updates_are_seen_by_autograd() -> None:
    (weight,) = parameters((3,))
    optimizer = satcompile.fuse_optimizer(torch.optim.SGD([weight], lr=0.1))
    held = (weight * weight).sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        held.backward()


# -- refusals ----------------------------------------------------------------------------------


class Own(torch.optim.AdamW):
    pass


@pytest.mark.parametrize("make", [torch.optim.RMSprop, torch.optim.NAdam, Own])
def test_other_classes_are_refused_by_name(make: Any) -> None:
    optimizer = make(parameters(), lr=0.1)
    with pytest.raises(satcompile.UnsupportedError, match=make.__name__):
        satcompile.fuse_optimizer(optimizer)
    assert type(optimizer) is make


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"capturable": True}, "capturable"),
        ({"differentiable": True}, "differentiable"),
        ({"betas": (torch.tensor(0.9), torch.tensor(0.99)), "capturable": False}, "betas"),
    ],
)
def test_settings_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    optimizer = torch.optim.AdamW(parameters(), foreach=False)
    optimizer.param_groups[0].update(settings)
    with pytest.raises(satcompile.UnsupportedError, match=named):
        satcompile.fuse_optimizer(optimizer)


@pytest.mark.parametrize(
    ("parameter", "named"),
    [
        (nn.Parameter(torch.ones(2, dtype=torch.complex64)), "complex64"),
        (nn.Parameter(torch.ones(4, 4)[:, :2]), "strides"),
    ],
)
def test_parameters_are_refused_by_name(parameter: nn.Parameter, named: str) -> None:
    with pytest.raises(satcompile.UnsupportedError, match=named):
        satcompile.fuse_optimizer(torch.optim.SGD([parameter], lr=0.1))


@pytest.mark.parametrize(
    "settings",
    [
        {"in_backward": 1},
        {"accumulate": 0},
        {"accumulate": True},
        {"accumulate": 2.5},
        {"max_grad_norm": 0},
        {"max_grad_norm": -1.0},
        {"max_grad_norm": "1"},
    ],
    ids=str,
)
def test_impossible_values_are_refused(settings: dict[str, Any]) -> None:
    optimizer = torch.optim.AdamW(parameters())
    with pytest.raises(satcompile.OptionError, match=next(iter(settings))):
        satcompile.fuse_optimizer(optimizer, **settings)
    assert type(optimizer) is torch.optim.AdamW


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(satcompile.OptionError, match="Linear"):
        satcompile.fuse_optimizer(nn.Linear(2, 2))  # type: ignore[type-var]


def test_what_comes_later_is_refused_and_nothing_is_lost() -> None:
    mine = parameters()
    optimizer = satcompile.fuse_optimizer(torch.optim.AdamW(mine))
    set_gradients(mine)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(satcompile.UnsupportedError, match="complex64"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1
    foreign = copy.deepcopy(state)
    foreign["param_groups"][0]["capturable"] = True
    foreign["state"][0]["exp_avg"].fill_(9.0)
    with pytest.raises(satcompile.UnsupportedError, match="capturable"):
        optimizer.load_state_dict(foreign)
    assert not (optimizer.state[mine[0]]["exp_avg"] == 9.0).any()


def test_a_replaced_step_is_refused() -> None:
    optimizer = torch.optim.AdamW(parameters())
    optimizer.step = lambda: None  # type: ignore[method-assign]
    with pytest.raises(satcompile.UnsupportedError, match="replaced"):
        satcompile.fuse_optimizer(optimizer)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = satcompile.fuse_optimizer(torch.optim.SGD(embedding.parameters(), lr=0.1))
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(satcompile.UnsupportedError, match="sparse=False"):
        optimizer.step()
