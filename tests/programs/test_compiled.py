"""Random programs, compiled: right, within their budgets, and their floors are met."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

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
