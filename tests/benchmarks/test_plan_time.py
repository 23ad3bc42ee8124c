"""The benchmark of planning itself: what it measures, and that its goals can be missed."""

from __future__ import annotations

import pytest

from benchmarks.plan_time import LARGE, measure, missed_goals

GOOD = {"satcompile plan": LARGE, "elapsed_s": 179.0, "processor_s": 200.0, "resident_gib": 11.9}


def test_each_goal_can_be_missed() -> None:
    assert missed_goals([GOOD]) == []
    assert len(missed_goals([GOOD | {"elapsed_s": 180.0}])) == 1
    assert len(missed_goals([GOOD | {"resident_gib": 12.0}])) == 1
    assert missed_goals([GOOD | {"satcompile plan": "another", "elapsed_s": 1e4}]) == []


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="exit status 1"):
        measure("no-such-model")
