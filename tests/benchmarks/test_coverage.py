"""The coverage benchmark: each of its checks can fail, nothing is lost, and a sample of its rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import satcompile
from benchmarks.coverage import command, records, tables
from benchmarks.coverage.architecture import Scored, loss_of
from benchmarks.coverage.architectures import ARCHITECTURES
from benchmarks.coverage.causes import Failure, Figures, failure_of, judged
from benchmarks.coverage.process import run_job
from benchmarks.coverage.rows import (
    BELOW_FLOOR,
    BUDGETS,
    CLEAN,
    CRASH,
    EXCEEDED,
    FLOOR,
    FLOOR_NOT_MET,
    NO_BUDGET,
    NOT_INSTALLED,
    PREDICTION_OFF,
    REFUSED,
    SHARE,
    TIME_OUT,
    TORCH_FAILS,
    WRONG,
    Job,
    Key,
    Record,
    by_age,
    key_of,
    wanted,
    worst,
)
from benchmarks.coverage.values import Distance, distance, least_precise
from benchmarks.coverage.variants import NotApplicable, applied
from benchmarks.coverage.worker import rows_of, settled
from benchmarks.models import forget

GOOD = Figures(
    distance=Distance(1e-12, ""), tolerance=1e-9, budget_bytes=10_000, resident_bytes=1_000,
    predicted_bytes=9_000, measured_bytes=9_000, over_bytes=-1_000, default_bytes=12_000,
)  # fmt: skip


def changed(**fields: object) -> Figures:
    return Figures(**{**vars(GOOD), **fields})


# -- what counts as what ---------------------------------------------------------------------


def test_what_is_right_within_budget_and_as_predicted_is_clean() -> None:
    assert judged(FLOOR, GOOD, None)["result"] == CLEAN


@pytest.mark.parametrize(
    ("figures", "result"),
    [
        (changed(distance=Distance(1e-8, "gradient of w")), WRONG),
        (changed(distance=Distance(float("inf"), "gradient of w")), WRONG),
        (changed(over_bytes=1), EXCEEDED),
        (changed(predicted_bytes=9_081), PREDICTION_OFF),
        (changed(predicted_bytes=8_919), PREDICTION_OFF),
        (changed(predicted_bytes=9_080), CLEAN),
        (changed(predicted_bytes=1_000, graphs=2), CLEAN),
        (changed(over_bytes=1, graphs=2), EXCEEDED),
    ],
)
def test_each_fault_has_its_bound(figures: Figures, result: str) -> None:
    record = judged(FLOOR, figures, None)
    assert record["result"] == result
    assert bool(record["detail"]) == (result != CLEAN)


def test_a_row_is_counted_under_its_worst_fault_and_tells_all() -> None:
    figures = changed(distance=Distance(1.0, "the loss"), over_bytes=5, predicted_bytes=1)
    record = judged(FLOOR, figures, None)
    assert record["result"] == WRONG
    assert record["faults"] == [WRONG, EXCEEDED, PREDICTION_OFF]
    assert worst([PREDICTION_OFF, CRASH]) == CRASH


def test_errors_are_told_apart() -> None:
    low = satcompile.BudgetError("too low", budget_bytes=1, floor_bytes=2, floor_op="x")
    assert judged(SHARE, failure_of(low), None)["result"] == BELOW_FLOOR
    assert judged(FLOOR, failure_of(low), None)["faults"] == [FLOOR_NOT_MET]
    named = judged(NO_BUDGET, failure_of(satcompile.UnsupportedError("not this")), None)
    assert named["result"] == REFUSED and not named["faults"]
    broken = failure_of(satcompile.VerificationError("a pass broke it"))
    assert judged(NO_BUDGET, broken, None)["faults"] == [CRASH]
    assert (
        judged(NO_BUDGET, failure_of(ValueError("?")), Failure("as well"))["result"] == TORCH_FAILS
    )


def test_a_gradient_that_is_wrong_or_missing_is_far_from_eager_s() -> None:
    right = {"gradient of a": torch.ones(4), "gradient of b": None, "buffer n": torch.tensor(3)}
    assert distance(dict(right), right).share == 0.0
    off = distance(right | {"gradient of a": torch.tensor([1.0, 1.0, 1.0, 1.1])}, right)
    assert off.share == pytest.approx(0.1) and off.where == "gradient of a"
    for broken in (
        {"gradient of a": None},
        {"gradient of b": torch.zeros(4)},
        {"gradient of a": torch.full((4,), float("nan"))},
        {"gradient of a": torch.ones(4, dtype=torch.float64)},
        {"buffer n": torch.tensor(4)},
    ):
        assert distance(right | broken, right).share == float("inf"), broken


def test_gradients_that_are_rounding_alone_are_held_against_the_largest() -> None:
    right = {"gradient of a": torch.ones(4), "gradient of key.bias": torch.full((4,), 1e-9)}
    found = right | {"gradient of key.bias": torch.full((4,), -1e-9)}
    assert distance(found, right).share == pytest.approx(2e-6)


def test_a_model_is_as_precise_as_its_least_precise_operation() -> None:
    value = torch.ones(3, dtype=torch.float64)
    assert least_precise(lambda: value * 2) == torch.float64
    assert least_precise(lambda: value.float().exp().double()) == torch.float32


# -- nothing is lost -------------------------------------------------------------------------


def row(architecture: str, budget: str = NO_BUDGET, result: str = CLEAN, when: str = "1") -> Record:
    return {
        "architecture": architecture, "family": "a family", "variant": "plain", "budget": budget,
        "result": result, "faults": [result] if result == CRASH else [], "detail": "a | b",
        "when": when, "compile_s": 3.0, "torch_compile_s": 2.0, "step_ratio": 1.1, "graphs": 1,
    }  # fmt: skip


def test_rows_that_never_ran_come_first_then_the_oldest() -> None:
    jobs = wanted(["a", "b", "c"], variants=["plain"], budgets_asked=[NO_BUDGET])
    known = {key_of(r): r for r in (row("a", when="2026-11-28"), row("b", when="2026-11-27"))}
    assert [job.architecture for job in by_age(jobs, known)] == ["c", "b", "a"]


def test_patterns_choose_architectures_and_rows() -> None:
    assert [job.architecture for job in wanted(["qwen3", "qwen3-moe"], ["qwen3"])] == ["qwen3"] * 4
    (job,) = wanted(["qwen3", "bert"], ["*/LoRA/floor + 1%"])[:1]
    assert job == Job("qwen3", "LoRA", (FLOOR,))


def test_a_result_replaces_its_earlier_one_and_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "coverage.json"
    assert records.load(file) == {}
    known = {key_of(r): r for r in (row("b"), row("a"))}
    records.save(file, known)
    again = records.load(file)
    assert again == known
    again[Key("a", "plain", NO_BUDGET)] = row("a", result=CRASH)
    records.save(file, again)
    assert [r["result"] for r in json.loads(file.read_text())["rows"]] == [CRASH, CLEAN]
    assert os.listdir(tmp_path) == ["coverage.json"]


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "coverage.json"
    records.save(file, {key_of(row("a")): row("a")})
    before = file.read_text()
    broken = row("b") | {"detail": object()}
    with pytest.raises(TypeError):
        records.save(file, {key_of(broken): broken})
    assert file.read_text() == before


def test_a_process_that_dies_or_hangs_costs_the_row_it_was_at() -> None:
    job = Job("no such architecture", "plain", (NO_BUDGET,))
    (died,) = run_job(job, "none", limit_s=300)
    assert died["result"] == CRASH and "KeyError" in died["detail"]
    late = list(run_job(Job("mlp", "plain", (NO_BUDGET, FLOOR)), "none", limit_s=0.05))
    assert [(r["budget"], r["result"]) for r in late] == [(NO_BUDGET, TIME_OUT), (FLOOR, TIME_OUT)]


def test_the_page_counts_and_names_what_is_not_clean() -> None:
    found = [row("a"), row("b", result=CRASH), row("c", result=NOT_INSTALLED)]
    page = tables.page(found, {"date": "today"}, planned=10)
    assert "2 rows of 2 architectures ran; 1 more" in page
    assert "7 of 10 rows never ran" in page
    assert "| b/plain/none | crash | a \\| b |" in page and "- crash: 1 rows" in page
    assert tables.missed_goals([row("a")]) == []
    slow = row("a") | {"compile_s": 3.1}
    assert tables.missed_goals([slow]) == ["compile time: 1.55x in the median, wanted 1.5x"]


def test_the_command_lists_rows_and_names_what_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--list", "--only", "mlp", "--output", str(tmp_path)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 16 and listed[0] == "mlp/plain/none: never run"
    assert command.main(["--only", "mlpp", "--output", str(tmp_path)]) == 2
    assert "no row is named mlpp" in capsys.readouterr().err


# -- architectures and variants --------------------------------------------------------------


def test_there_are_a_hundred_architectures_of_every_kind() -> None:
    assert len(ARCHITECTURES) >= 100
    assert len({architecture.family for architecture in ARCHITECTURES.values()}) >= 12


def test_variants_that_mean_nothing_are_not_applicable() -> None:
    for variant in ("checkpointed", "LoRA"):
        with pytest.raises(NotApplicable):
            applied(variant, nn.Sequential(nn.Conv1d(2, 2, 1)))


def test_adapters_alone_are_trained_and_shared_heads_are_left() -> None:
    torch.manual_seed(0)
    model = applied("LoRA", ARCHITECTURES["gpt2"].build())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)


def test_a_forward_without_a_loss_is_given_one() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * 2, x.argmax()

    x = torch.tensor([1.0, 3.0], requires_grad=True)
    assert loss_of(Scored(Two())(x=x)).item() == 20.0


# -- a sample of the rows --------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[None]:
    with settled():
        yield
    forget()


def clean(architecture: str, variant: str, budget: str) -> None:
    """The row as the benchmark runs it, in this process."""
    (record,) = rows_of(architecture, variant, [budget])
    assert record["result"] in (CLEAN, BELOW_FLOOR, REFUSED), record
    if budget == NO_BUDGET:
        assert record["result"] == CLEAN, record


FAST = [
    ("mlp", "LoRA", NO_BUDGET),
    ("mlp", "bf16 autocast", NO_BUDGET),
]
SLOW = [
    ("mlp", "plain", FLOOR),
    ("graph-attention", "plain", NO_BUDGET),
    ("fno", "plain", NO_BUDGET),
    ("nn-encoder", "checkpointed", NO_BUDGET),
    ("qwen3-moe", "plain", NO_BUDGET),
]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", FAST, ids="/".join)
def test_rows(name: tuple[str, str, str]) -> None:
    clean(*name)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", SLOW, ids="/".join)
def test_more_rows(name: tuple[str, str, str]) -> None:
    architecture = ARCHITECTURES[name[0]]
    if architecture.missing:
        pytest.skip(f"{', '.join(architecture.missing)}: {NOT_INSTALLED}")
    clean(*name)


def test_every_sampled_row_exists() -> None:
    for name, variant, budget in FAST + SLOW:
        assert wanted([name], variants=[variant], budgets_asked=[budget]), name
        assert name in ARCHITECTURES and budget in BUDGETS
