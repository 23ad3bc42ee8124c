"""Planned graphs of random programs compute what eager and the joint graph do."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from tests.programs import interpreted
from tests.programs.failures import Failure, unless_known
from tests.programs.program import Program
from tests.programs.strategy import programs


@settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(programs(max_size=5))
def test_plans_of_random_programs_compute_what_eager_does(program: Program) -> None:
    try:
        interpreted.check(program)
    except Failure as error:
        unless_known(error)
