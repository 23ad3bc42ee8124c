"""What is counted as alive before a step, and that counting changes nothing."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import satcompile
from satcompile.compile import rounds
from satcompile.runtime.known_optimizers import OPTIMIZERS
from satcompile.runtime.residency import measure_residency


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


def _counted(layer: torch.nn.Linear) -> int:
    return measure_residency(list(layer.parameters())).optimizer_state


def _step(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    layer(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_an_optimizer_made_after_the_question_is_told_of(layer: torch.nn.Linear) -> None:
    assert _counted(layer) == 0
    before = OPTIMIZERS.version
    optimizer = torch.optim.AdamW(layer.parameters())
    assert OPTIMIZERS.version != before
    counted, version = _counted(layer), OPTIMIZERS.version
    _step(layer, optimizer)
    assert counted == _counted(layer) == _state_bytes(optimizer) > 0
    assert OPTIMIZERS.version == version  # it is what was predicted: nothing is to be looked at


def test_parameters_that_are_added_and_optimizers_that_go_are_told_of(
    layer: torch.nn.Linear,
) -> None:
    optimizer = torch.optim.AdamW([layer.weight])
    of_weight = _counted(layer)
    optimizer.add_param_group({"params": [layer.bias]})
    assert _counted(layer) > of_weight
    del optimizer
    gc.collect()
    assert _counted(layer) == 0


def test_copies_which_nobody_constructs_are_told_of(layer: torch.nn.Linear) -> None:
    optimizer = torch.optim.AdamW(layer.parameters())
    _step(layer, optimizer)
    twin_layer, twin = copy.deepcopy((layer, optimizer))
    assert _counted(twin_layer) == _state_bytes(twin) > 0


def test_state_that_grows_later_is_counted_before_the_next_forward(layer: torch.nn.Linear) -> None:
    class Late(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            for parameter in layer.parameters():
                times = self.state[parameter].get("times", 0) + 1
                self.state[parameter]["times"] = times
                if times == 3:
                    self.state[parameter]["slow"] = parameter.detach().clone()

    optimizer = Late(layer.parameters())
    for _ in range(2):
        _step(layer, optimizer)
        assert _counted(layer) == 0
    _step(layer, optimizer)
    assert _counted(layer) == sum(p.nbytes for p in layer.parameters())


def test_state_that_is_still_to_come_does_not_exist_yet(layer: torch.nn.Linear) -> None:
    optimizer = torch.optim.AdamW(layer.parameters())
    parameters = list(layer.parameters())
    assert (
        measure_residency(parameters).optimizer_state > OPTIMIZERS.existing_bytes(parameters) == 0
    )
    layer(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert OPTIMIZERS.existing_bytes(parameters) == _state_bytes(optimizer) > 0


def test_auto_leaves_room_for_state_that_is_still_to_come(
    layer: torch.nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was counted on top of what is free was more than there is."""
    monkeypatch.setattr(rounds, "_free_bytes", lambda device: 1_000_000)
    optimizer = torch.optim.AdamW(layer.parameters())
    run = torch.compile(layer, backend="sat", options={"memory_budget": "auto"})
    x = torch.ones(2, 8)
    run(x).sum().backward()
    graph = satcompile.report(run).graphs[0]
    assert graph.resident["optimizer_state"] > 0 == len(optimizer.state)
    there_bytes = graph.resident["parameters"] + graph.resident["inputs"]
    assert graph.budget_bytes == there_bytes + int(1_000_000 * (1 - rounds.AUTO_MARGIN))
