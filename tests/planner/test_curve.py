"""Plans at several limits: which of them make the curve."""

from __future__ import annotations

import pytest
import torch

from satcompile.compile.planning import PlannedGraphs
from satcompile.planner.curve import CurvePoint, best, curve
from tests.partitions import planned_tightly
from tests.zoo import build


@pytest.fixture(scope="module")
def vit() -> PlannedGraphs:
    torch.compiler.reset()
    return planned_tightly(*build("vit"), 0.7)


def point(peak_bytes: int, time_us: float, **more) -> CurvePoint:
    return CurvePoint(peak_bytes, peak_bytes, time_us, **more)


def test_points_that_others_beat_in_both_are_left_out():
    points = [point(5, 1.0), point(3, 4.0), point(4, 4.0), point(4, 2.0), point(6, 2.0)]
    assert best(points) == [point(3, 4.0), point(4, 2.0), point(5, 1.0)]


def test_the_plan_in_use_stays_and_stands_for_its_equals():
    used = point(6, 2.0, is_chosen=True)
    assert best([point(5, 1.0), used]) == [point(5, 1.0), used]
    used = point(5, 1.0, is_chosen=True)
    assert best([point(5, 1.0), used]) == [used]


def test_less_memory_takes_more_time_along_the_curve(vit):
    points = curve(vit.problem, 200, vit.plan, limits=4)
    peaks = [each.peak_bytes for each in points]
    times = [each.time_added_us for each in points]
    assert len(points) >= 3
    assert peaks == sorted(set(peaks))
    assert times == sorted(set(times), reverse=True)
    assert all(each.peak_bytes <= each.limit_bytes for each in points)
    (chosen,) = (each for each in points if each.is_chosen)
    assert chosen.peak_bytes == vit.plan.profile.peak_bytes
    assert chosen.time_added_us == vit.plan.time_us
    assert peaks[-1] <= vit.plan.default_profile.peak_bytes


def test_the_same_problem_gives_the_same_curve(vit):
    first = curve(vit.problem, 200, limits=2)
    assert first == curve(vit.problem, 200, limits=2)
    assert not any(each.is_chosen for each in first)
    later = curve(vit.problem, 200, limits=2, more_us=5.0)
    assert [each.time_added_us - 5.0 for each in later] == pytest.approx(
        [each.time_added_us for each in first]
    )


def test_resident_bytes_move_the_curve():
    assert point(5, 1.0).above(10) == CurvePoint(15, 15, 1.0)
