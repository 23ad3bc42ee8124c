"""Random programs, compiled: right, within their budgets, and their floors are met."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import satcompile
from tests.programs import compiled
from tests.programs.failures import Failure, unless_known
from tests.programs.program import Program
from tests.programs.strategy import programs


@pytest.mark.slow
@settings(
    max_examples=6,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(programs(max_size=8))
def test_random_programs_train_within_their_budgets(program: Program) -> None:
    try:
        compiled.check(program)
    except Failure as error:
        unless_known(error)


def test_tokens_of_effects_are_no_results() -> None:
    """A check whose result nobody reads is kept by a token, which AOTAutograd takes out of the
    forward's results once they were counted."""

    class Checked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(6, 8, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.linalg.cholesky(x @ x.T + 6 * torch.eye(6, dtype=x.dtype))
            return (x * self.weight).sin().mean()

    torch.manual_seed(0)
    x = torch.randn(6, 8, dtype=torch.float64)
    for budget in ({}, {"memory_budget": "1GiB"}):
        torch.compiler.reset()
        model = Checked()
        torch.compile(model, backend="sat", options=budget)(x).backward()
        wanted = (x * model.weight.detach()).cos() * x / x.numel()
        torch.testing.assert_close(model.weight.grad, wanted)
        (graph,) = satcompile.report(model).graphs
        assert graph.prediction == "generated code"
