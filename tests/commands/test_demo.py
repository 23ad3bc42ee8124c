"""The demo: its data and its verdicts. CI runs all of it, by the README's command."""

from __future__ import annotations

import io
import math
import sys

import pytest
import torch
from rich.console import Console

from satcompile.commands import cli, demo
from satcompile.commands.demo import Settings, Variant
from satcompile.report.data import GraphReport, Report


def quiet() -> Console:
    return Console(file=io.StringIO(), width=110)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def variant(*losses: float) -> Variant:
    """A variant with these losses behind it; its model is a stand-in."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    return Variant("one", model, optimizer, model.forward, losses=list(losses))


def graph_report(measured_bytes: int | None, budget_bytes: int | None) -> Report:
    graph = GraphReport(
        name="a graph", budget_bytes=budget_bytes, reserve_bytes=0, resident={},
        predicted_peak_bytes=0, prediction="simulation", saved_bytes=0, forward_time_us=0.0,
        recompute_time_us=0.0, optimality_gap=0.0, bound_kind="", saved=[], recomputed=[],
        passes=[], measured_peak_bytes=measured_bytes,
        _default=(0, "simulation"),
    )  # fmt: skip
    return Report([graph])


def test_the_text_is_of_python_s_own_library() -> None:
    text = demo.library_text()
    assert text.dtype == torch.uint8
    assert b"import" in bytes(text[:100_000].tolist())


def test_batches_are_windows_of_the_text_and_the_same_for_the_same_seed() -> None:
    settings = Settings(steps=3, batch=2, length=5)
    text = torch.arange(100, dtype=torch.uint8)
    first, second = (list(demo._batches(text, settings)) for _ in range(2))
    assert len(first) == 3
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    for batch in first:
        assert batch.shape == (2, 5) and batch.dtype == torch.int64
        assert torch.equal(batch.diff(), torch.ones(2, 4, dtype=torch.int64))


def test_too_little_text_is_answered_with_how_much_there_is() -> None:
    text = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(demo.DemoError, match=r"found 3 bytes .* more than 128"):
        next(demo._batches(text, Settings()))


def test_resident_bytes_are_parameters_state_and_batch() -> None:
    one = variant()
    batch = torch.zeros(2, 3, dtype=torch.int64)
    parameters = 4 * (16 + 4)
    assert one.resident_bytes(batch) == parameters + 8 * 6
    one.model(torch.ones(1, 4)).sum().backward()
    one.optimizer.step()
    counters = 2 * 4  # AdamW keeps its count of steps as one float for each parameter
    assert one.resident_bytes(batch) == 3 * parameters + counters + 8 * 6


def test_step_time_is_a_median_without_the_warm_up() -> None:
    one = variant()
    one.times_s = [50.0, 9.0, 1.0, 2.0, 30.0]
    assert one.step_time_s == 2.0


@pytest.mark.parametrize(
    ("losses", "agree"),
    [((3.0, 2.0), True), ((3.0, 2.01), True), ((3.0, 2.5), False), ((3.0, math.nan), False)],
)
def test_losses_are_compared_step_by_step(losses: tuple[float, ...], agree: bool) -> None:
    console = quiet()
    assert demo._check_losses([variant(3.0, 2.0), variant(*losses)], console) is agree
    assert ("THE LOSSES DIFFER" in printed(console)) is not agree


@pytest.mark.parametrize(
    ("measured", "budget", "within"),
    [(100, 100, True), (101, 100, False), (None, 100, False)],
)
def test_the_measured_peak_is_compared_with_the_budget(
    measured: int | None, budget: int, within: bool
) -> None:
    console = quiet()
    assert demo._check_budget(graph_report(measured, budget), console) is within
    assert ("THE BUDGET WAS EXCEEDED" in printed(console)) is not within


def test_without_transformers_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert cli.main(["demo"]) == 1
    assert 'pip install "satcompile[demo]"' in capsys.readouterr().err


def test_each_variant_has_code_of_its_own() -> None:
    models = [torch.nn.Linear(1, 1) for _ in range(2)]
    first, second = (demo._forward(model, "a") for model in models)
    assert first.__code__ is not second.__code__
