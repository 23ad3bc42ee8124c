"""What benchmarks hold to be a miss, and that each of their checks can fail."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import floor, overhead, peak, save_results, tile_mm
from benchmarks.peak import Row

RESIDENT, DEFAULT = 1000, 10_000


def ours(budget: int | None, measured: int | None, **changes: Any) -> Row:
    """A plan of ours; the budget and the peak are of the step alone."""
    row = Row(
        model="a model", kind="sat", torch_budget=None,
        budget_bytes=None if budget is None else RESIDENT + budget,
        floor_bytes=RESIDENT + 2000, resident_bytes=RESIDENT, gradient_bytes=500,
        default_peak_bytes=DEFAULT, peak_bytes=measured, predicted_bytes=measured,
        predicted_default_bytes=DEFAULT,
    )  # fmt: skip
    return replace(row, **changes)


def torchs(budget: float, measured: int) -> Row:
    return ours(None, measured, kind="torch budget", torch_budget=budget)


GOOD = [ours(None, 10_000), ours(10_000, 9_990), ours(5_000, 5_000), ours(2_000, 1_990)]


def test_what_holds_is_no_miss() -> None:
    assert peak.missed_goals(GOOD) == []


def test_one_byte_over_the_budget_is_a_miss() -> None:
    assert peak.missed_goals([*GOOD, ours(3_000, 3_001)]) == [
        "a model, sat 30.0%: 1 bytes over its budget"
    ]


def test_a_refused_budget_is_a_miss_with_its_reason() -> None:
    (line,) = peak.missed_goals([*GOOD, ours(3_000, None, note="BudgetError: below the floor")])
    assert "refused" in line and "below the floor" in line


@pytest.mark.parametrize(("predicted", "misses"), [(5_049, 0), (4_951, 0), (5_051, 1), (4_949, 1)])
def test_predictions_have_one_percent_both_ways(predicted: int, misses: int) -> None:
    row = ours(5_000, 5_000, predicted_bytes=predicted)
    assert len(peak.missed_goals([*GOOD, row])) == misses


@pytest.mark.parametrize(
    ("predicted", "misses"), [(10_099, 0), (9_901, 0), (10_101, 1), (9_899, 1)]
)
def test_the_default_s_peak_has_one_percent_both_ways(predicted: int, misses: int) -> None:
    row = ours(5_000, 5_000, predicted_default_bytes=predicted)
    found = peak.missed_goals([*GOOD, row])
    assert len(found) == misses
    assert all("default_peak_bytes" in line for line in found)


def test_resident_bytes_do_not_dilute_deviations() -> None:
    row = ours(5_000, 5_000, predicted_bytes=5_100, resident_bytes=10**6, budget_bytes=10**7)
    assert len(peak.badly_predicted([row])) == 1


def test_a_lower_budget_with_a_higher_peak_is_a_miss_in_any_order() -> None:
    rows = [ours(4_000, 3_900), ours(9_000, 3_800), ours(6_000, 5_000)]
    (line,) = [line for line in peak.missed_goals(rows) if "higher" in line and "0.4 " in line]
    assert line == "a model, sat: at 0.4 the peak is 2.6% higher than at 0.9"
    assert len(peak.rises(rows)) == 2  # 0.6 as well


def test_one_percent_of_a_rise_is_tolerated() -> None:
    assert peak.rises([ours(9_000, 5_000), ours(6_000, 5_050)]) == []
    assert peak.rises([ours(9_000, 5_000), ours(6_000, 5_051)])


def test_the_plan_without_a_budget_is_on_no_curve() -> None:
    assert peak.rises([ours(None, 4_000), ours(9_000, 5_000)]) == []


def test_torch_s_curve_is_shown_and_is_no_goal_of_ours() -> None:
    rows = [torchs(0.1, 3_000), torchs(0.05, 6_000)]
    assert peak.rises(rows) == ["at 0.05 the peak is 100.0% higher than at 0.1"]
    assert peak.missed_goals([*GOOD, *rows]) == []
    assert peak.curve(rows) == "0.1: 0.300, 0.05: 0.600"


def test_models_are_judged_apart() -> None:
    other = ours(9_000, 4_000, model="another")
    assert peak.missed_goals([*GOOD, other]) == []


@pytest.mark.parametrize(
    ("time_ratio", "activation_bytes", "missed"),
    [(1.05, 2_850, 0), (1.10, 2_850, 1), (1.11, 2_850, 2), (1.0, 2_851, 2)],
)
def test_marks_of_the_large_models(time_ratio: float, activation_bytes: int, missed: int) -> None:
    row = ours(9_000, activation_bytes + 500, time_ratio=time_ratio, model="llama-1b")
    assert len(peak.missed_marks([row])) == missed
    assert peak.missed_marks([replace(row, model="a tiny one")]) == []
    assert peak.missed_marks([replace(row, time_ratio=None)]) == []


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_budgets_include_both_ends(count: int) -> None:
    budgets = peak.spread(1_003, 9_997, count)
    assert len(budgets) == count and budgets[0] == 1_003
    assert count == 1 or budgets[-1] == 9_997
    steps = [high - low for low, high in pairwise(budgets)]
    assert not steps or max(steps) - min(steps) <= 1


def test_tables_show_totals_and_files_keep_bytes(tmp_path: Path) -> None:
    refused = ours(2_000, None, note="BudgetError: too low")
    rows = [*GOOD, torchs(0.1, 3_000), refused]
    shown = [peak.table_row(row) for row in rows]
    assert shown[2]["measured_mb"] == "0.006"  # 1,000 resident and 5,000 of the step
    assert shown[2]["budget_mb"] == "0.006"
    assert shown[-1]["measured_mb"] is None and shown[-1]["off"] is None
    data = [{"peak_bytes": row.peak_bytes} for row in rows]
    save_results("peak", data, {}, ["a goal"], tmp_path, shown)
    assert '"peak_bytes": 9990' in (tmp_path / "peak.json").read_text()
    written = (tmp_path / "peak.md").read_text()
    assert "torch budget 0.1" in written and "- a goal" in written


def test_rows_are_added_to_those_of_other_models_and_conditions_must_agree(tmp_path: Path) -> None:
    asked = peak.parse(["--models", "gpt2", "--output", str(tmp_path), "--rounds", "3", "--add"])
    assert peak.earlier_rows(asked) == []
    rows = [replace(row, model=name) for name in ("gpt2", "bert") for row in GOOD]
    peak.save(rows, asked)
    assert peak.earlier_rows(asked) == rows[len(GOOD) :]
    asked.rounds = 4
    with pytest.raises(ValueError, match="rounds 3, not 4"):
        peak.earlier_rows(asked)


@pytest.mark.parametrize(
    ("density", "ours_us", "misses"),
    [(0.3, 35.0, 0), (0.3, 36.0, 1), (77 / 256, 36.0, 1), (0.1, 36.0, 0)],
)
def test_products_of_tiles_miss_below_the_goal_at_its_density(
    density: float, ours_us: float, misses: int
) -> None:
    layer = tile_mm.Layer((4096, 4096, 8192), "bfloat16")
    row = tile_mm.row_of("tile_mm", layer, density, [(ours_us, 100.0)])
    assert row.share == pytest.approx(density * 100.0 / ours_us)
    missed = tile_mm.missed_goals([row])
    assert len(missed) == misses
    assert all("tile_mm, 4096x4096x8192, bfloat16: 0.8" in line for line in missed)


def test_chunks_miss_over_their_budget_and_near_the_floor_of_whole_logits() -> None:
    row = floor.Row("GPT-2", "in chunks, at their floor", 95.0, 95.0, 0.44, 1.6, 867.0)
    assert floor.missed_goals([row, floor.Row("GPT-2", "Liger", note="not run")]) == []
    (over,) = floor.missed_goals([replace(row, peak_mb=95.5)])
    assert "0.50 MB over its budget" in over
    (near,) = floor.missed_goals([replace(row, of_whole_floor=0.8)])
    assert "0.800 of the floor of whole logits" in near


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_products_of_tiles_need_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert tile_mm.main([]) == 2
    assert "on a GPU; torch sees none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step_us", "added_us", "misses"), [(500, 50, 0), (500, 51, 1), (3000, 50, 0), (2499, 50, 0)]
)
def test_overhead_has_a_bound_a_call(step_us: float, added_us: float, misses: int) -> None:
    row = overhead.Row("breaks", "plenty", 1, step_us, added_us, added_us / step_us)
    assert len(overhead.missed_goals([row])) == misses


def test_overhead_has_a_bound_by_the_step_where_that_is_long_enough() -> None:
    row = overhead.Row("breaks", "none", 6, 3000, 20, 120 / 3000)
    assert overhead.missed_goals([row]) == ["breaks, budget none: 4.0% of the step, wanted 2%"]


def test_classes_with_their_own_code_share_no_graphs() -> None:
    one, other = (overhead.with_own_code(overhead.Block) for _ in range(2))
    assert one.forward.__code__ is not other.forward.__code__
    assert one.forward.__code__.co_code == other.forward.__code__.co_code
    assert one()(torch.ones(2, overhead.WIDTH)).shape == (2, overhead.WIDTH)


def test_overhead_names_the_cases_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        overhead.main(["--only", "nothing"])
    assert "sizes that never return" in capsys.readouterr().err
