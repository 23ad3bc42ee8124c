"""Calls of a step added up, against the sum over every call that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from satcompile.generated_code import Figures
from satcompile.residency import Residency
from satcompile.steps import Share, step_peak_bytes, stretch_of


@st.composite
def shares(draw: st.DrawFn) -> Share:
    few = st.integers(0, 60)
    residency = Residency(draw(few), draw(few), draw(few), draw(few))
    output_bytes = draw(few)
    held_bytes = output_bytes + draw(few)
    peaks = (held_bytes + draw(few), held_bytes + draw(few))
    return Share(residency, Figures(*peaks, held_bytes, output_bytes, draw(few)))


def _peak_by_definition(calls: Sequence[Share]) -> int:
    """Forwards in order, then backwards in the opposite order, beside what the others hold."""
    lasting = sum(call.residency.total_bytes - call.residency.inputs for call in calls)
    peaks = [0]
    for position, call in enumerate(calls):
        later = calls[position + 1 :]
        before = sum(c.figures.held_bytes for c in calls[:position])
        before += sum(c.residency.inputs for c in calls[: position + 1])
        after = sum(c.figures.gradient_bytes for c in later)
        after += later[-1].figures.output_bytes if later else 0
        peaks += [before + call.figures.forward_bytes, before + call.figures.backward_bytes + after]
    return lasting + max(peaks)


@given(st.lists(shares(), min_size=1, max_size=6))
def test_a_step_s_peak_is_that_of_its_calls(calls: list[Share]) -> None:
    assert step_peak_bytes(calls) == _peak_by_definition(calls)


@given(st.lists(shares(), max_size=6), st.integers(0, 6))
def test_it_does_not_matter_where_a_step_is_cut(calls: list[Share], cut: int) -> None:
    assert stretch_of(calls[:cut]).then(stretch_of(calls[cut:])) == stretch_of(calls)
