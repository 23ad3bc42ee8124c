"""What changes while a plan runs is kept beside the plan, for each graph that runs one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import satcompile
from satcompile.compile.generation import Backward
from satcompile.runtime import registry
from satcompile.runtime.plan_in_use import PlanInUse


def plans_of(compiled: nn.Module) -> list[PlanInUse]:
    """The plan that the latest call of each of a model's graphs ran by."""
    found = [record for record in registry._records if registry._belongs(record, compiled)]
    return [record.decided.plan for record in found]  # type: ignore[union-attr]


def trained(**options: object) -> tuple[nn.Module, torch.Tensor]:
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    compiled = torch.compile(model, backend="sat", options=options)
    return compiled, compiled(torch.randn(4, 8)).sum()


def test_a_backward_tells_when_it_begins() -> None:
    compiled, loss = trained(memory_budget="1GiB")
    (plan,) = plans_of(compiled)
    began: list[bool] = []
    told_before = plan.on_backward
    assert told_before is not None  # the step's calls

    def begins() -> None:
        began.append(True)
        told_before()

    plan.on_backward = begins
    loss.backward()
    assert began == [True]


def test_what_the_latest_backward_returned_is_known_once_it_has_run() -> None:
    torch.compiler.reset()
    model = nn.Linear(8, 8)
    optimizer = satcompile.fuse_optimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), in_backward=True
    )
    compiled = torch.compile(model, backend="sat")
    loss = compiled(torch.randn(4, 8)).sum()
    (plan,) = plans_of(compiled)
    assert plan.returned is None
    hook = model.bias.register_hook(lambda gradient: None)
    loss.backward()
    hook.remove()
    (reason,) = plan.returned.values()  # type: ignore[union-attr]
    assert "hook" in reason
    del optimizer


def test_a_backward_that_no_plan_in_use_took_over_is_an_error() -> None:
    """It would run without masks and updates."""
    with pytest.raises(AssertionError, match="no plan in use"):
        Backward(lambda args: args)([])


def test_a_plan_without_tiles_has_nothing_in_front_of_its_forward() -> None:
    compiled, loss = trained(memory_budget="1GiB")
    (plan,) = plans_of(compiled)
    assert plan.forward is plan.generated.compiled
    loss.backward()


def test_two_compilations_of_a_model_have_states_of_their_own() -> None:
    torch.compiler.reset()
    model = nn.Linear(8, 8)
    first, second = (torch.compile(model, backend="sat", dynamic=flag) for flag in (False, True))
    for compiled in (first, second):
        compiled(torch.randn(4, 8)).sum().backward()
    found = {id(plan) for compiled in (first, second) for plan in plans_of(compiled)}
    assert len(found) == len({id(record) for record in registry._records})
