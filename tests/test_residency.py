"""What is counted as alive before a step, and that counting changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator

from satcompile.residency import measure_residency


@pytest.fixture
def layer() -> torch.nn.Linear:
    return torch.nn.Linear(8, 4)


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize("has_stepped", [False, True])
def test_a_wrapped_optimizer_is_counted_once_and_left_alone(
    layer: torch.nn.Linear, has_stepped: bool
) -> None:
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.25)
    wrapper = Accelerator(cpu=True).prepare(optimizer)
    if has_stepped:
        layer(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    groups, state = copy.copy(optimizer.param_groups), copy.deepcopy(optimizer.state_dict())

    counted = measure_residency(list(layer.parameters())).optimizer_state

    assert wrapper.optimizer is optimizer
    assert all(now is then for now, then in zip(optimizer.param_groups, groups, strict=True))
    assert str(optimizer.state_dict()) == str(state)
    if not has_stepped:
        layer(torch.ones(2, 8)).sum().backward()
        optimizer.step()
    assert counted == _state_bytes(optimizer) > 0
