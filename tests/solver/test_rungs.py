"""The grid of limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from satcompile.solver.training.rungs import RUNG, rung_above, rung_below

peaks = st.integers(1, 10**12)


@given(peaks, st.floats(0.001, 1.5))
def test_rungs_stand_on_both_sides_of_a_limit(default_bytes: int, share: float) -> None:
    limit_bytes = int(share * default_bytes)
    below, above = rung_below(limit_bytes, default_bytes), rung_above(limit_bytes, default_bytes)
    assert below <= limit_bytes <= above
    if limit_bytes >= default_bytes or limit_bytes <= 0:
        assert below == above == limit_bytes
    else:
        assert above <= default_bytes
        assert below >= RUNG * limit_bytes - 2 and above <= limit_bytes / RUNG + 2


@given(peaks, st.floats(0.01, 1.0))
def test_two_limits_between_the_same_rungs_are_one(default_bytes: int, share: float) -> None:
    below = rung_below(int(share * default_bytes), default_bytes)
    if below > 0:
        assert rung_below(below, default_bytes) == below
        assert rung_below(below - 1, default_bytes) < below
