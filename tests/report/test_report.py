"""The report as data and as text, from reports made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from satcompile import NotCompiledError
from satcompile.planner.curve import CurvePoint
from satcompile.report.data import GraphReport, PassRow, Report, ValueRow
from satcompile.report.folding import fold
from satcompile.report.terminal import render
from satcompile.report.timeline import Timeline
from satcompile.runtime import registry
from satcompile.runtime.measure import Measured
from satcompile.sizes import format_bytes, format_time

KIB, MIB, GIB = 2**10, 2**20, 2**30


def value(name: str, module: str = "", **changed) -> ValueRow:
    fields = {
        "num_bytes": 4 * MIB, "dtype": "float32", "shape": (1024, 1024), "source": "model.py:12",
        "copies": 1,
    }  # fmt: skip
    return ValueRow(name=name, module=module, **{**fields, **changed})


def graph(**changed) -> GraphReport:
    fields = {
        "name": "forward [0/0]",
        "budget_bytes": 6 * GIB,
        "reserve_bytes": 512 * MIB,
        "resident": {"parameters": GIB, "inputs": MIB, "gradients": 0, "optimizer_state": 2 * GIB},
        "predicted_peak_bytes": 5 * GIB,
        "prediction": "generated code",
        "_default": (8 * GIB - (3 * GIB + MIB), "simulation"),
        "saved_bytes": 700 * MIB,
        "forward_time_us": 2_000.0,
        "recompute_time_us": 100.0,
        "optimality_gap": 0.001,
        "bound_kind": "two-phase",
        "saved": [value("addmm_3", "h.0.mlp")],
        "recomputed": [value("gelu", "h.0.mlp.act", copies=2)],
        "passes": [PassRow("recompute", 1_500.0, "3 values saved, 2 operations recomputed")],
        "_floor": GIB // 2,
    }
    return GraphReport(**{**fields, **changed})


# -- figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (10 * MIB, "10.00 MiB"),
        (3 * GIB // 2, "1.50 GiB"),
        (2048 * GIB, "2048.00 GiB"),
        (-3 * MIB, "-3.00 MiB"),
    ],
)
def test_bytes_are_printed_in_binary_units(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("time_us", "text"), [(0, "0 us"), (999, "999 us"), (1_500, "1.5 ms"), (2_500_000, "2.50 s")]
)
def test_times_are_printed_in_the_unit_that_suits(time_us, text):
    assert format_time(time_us) == text


# -- folding ---------------------------------------------------------------------------------


def counted(rows: Sequence[ValueRow]) -> list[tuple[ValueRow, int]]:
    return [(each.row, len(each.members)) for each in fold(rows)]


def test_identical_layers_are_one_row_with_a_count():
    rows = [value("addmm_3", "h.0.mlp"), value("addmm_7", "h.1.mlp"), value("addmm", "h.11.mlp")]
    ((row, count),) = counted(rows)
    assert (row.name, row.module, count) == ("addmm_*", "h.*.mlp", 3)
    assert (row.num_bytes, row.shape, row.source) == (4 * MIB, (1024, 1024), "model.py:12")


def test_a_value_alone_keeps_its_name_and_module():
    row = value("addmm_3", "h.0.mlp")
    assert counted([row]) == [(row, 1)]


@pytest.mark.parametrize(
    "other",
    [
        value("addmm_7", "h.1.mlp", shape=(1024, 512)),
        value("addmm_7", "h.1.mlp", dtype="bfloat16"),
        value("addmm_7", "h.1.mlp", source="model.py:13"),
        value("addmm_7", "h.1.attn"),
        value("mm_7", "h.1.mlp"),
    ],
)
def test_what_differs_in_more_than_numbers_is_not_folded(other):
    assert len(counted([value("addmm_3", "h.0.mlp"), other])) == 2


def test_digits_inside_a_word_tell_modules_apart():
    assert len(counted([value("mm", "conv1.x"), value("mm_1", "conv2.x")])) == 2


def test_rows_come_largest_sum_first():
    single = value("mm", "head", num_bytes=10 * MIB)
    layers = [value(f"addmm_{i}", f"h.{i}.mlp") for i in range(3)]
    assert [row.name for row, _ in counted([single, *layers])] == ["addmm_*", "mm"]


def test_nothing_folds_to_nothing():
    assert counted([]) == []


# -- text ------------------------------------------------------------------------------------


def test_the_text_says_what_was_decided():
    text = render(Report([graph()]))
    for part in (
        "graph forward [0/0]", "6.00 GiB, 512.00 MiB of it reserved", "5.00 GiB  (by generated code)",
        "8.00 GiB  (by simulation; ours is 62.5%)", "parameters 1.00 GiB", "optimizer_state 2.00 GiB",
        "700.00 MiB", "100 us, 5.0% of the forward's 2.0 ms", "0.100% of the forward", "(two-phase)",
        "addmm_3", "h.0.mlp.act", "1024x1024", "model.py:12", "3 values saved, 2 operations recomputed",
    ):  # fmt: skip
        assert part in text, part
    assert "gradients" not in text  # none are resident
    assert "measured" not in text  # nothing was
    assert str(Report([graph()])) == text


def test_the_text_says_that_there_is_no_budget():
    assert "no more memory and no more time" in render(Report([graph(budget_bytes=None)]))


def test_the_text_compares_with_what_was_measured():
    text = render(Report([graph(predicted_peak_bytes=99 * MIB, measured_peak_bytes=100 * MIB)]))
    assert "100.00 MiB  (prediction -1.00%)" in text


def test_every_graph_and_every_note_is_in_the_text():
    text = render(
        Report([graph(name="one [0/0]"), graph(name="two [1/0]", notes=["[bold] words"])])
    )
    assert "one [0/0]" in text
    assert "two [1/0]" in text
    assert "note: [bold] words" in text  # as it is, not as markup


def test_rows_beyond_the_first_are_added_up():
    rows = [value(f"op{i}x", f"module{i}x", num_bytes=(20 - i) * KIB) for i in range(15)]
    text = render(Report([graph(saved=rows, recomputed=[])]))
    assert "op11x" in text
    assert "op12x" not in text
    (line,) = (line for line in text.splitlines() if "others" in line)
    assert line.split() == ["others", "21.00", "KiB", "3"]


def test_no_line_is_wider_than_asked():
    long = "model.decoder.layers.with.a.very.long.path.indeed." * 4
    rows = [value("a_name_that_goes_on_" * 8, long, source="file_with_a_long_name.py:123456")]
    wide = graph(
        name="forward_of_" * 30,
        saved=rows,
        recomputed=rows,
        notes=["a note of many words " * 30, "a_note_without_spaces_" * 20],
        passes=[PassRow("recompute", 1.0, "changed much " * 30)],
        bound_kind="a bound of " * 30,
        resident=dict.fromkeys(("parameters", "inputs", "gradients", "optimizer_state"), GIB),
        measured_peak_bytes=5 * GIB,
    )
    assert max(map(len, render(Report([wide])).splitlines())) <= 110
    assert max(map(len, render(Report([wide]), width=80).splitlines())) <= 80


# -- data ------------------------------------------------------------------------------------

KEYS = [
    "name", "budget_bytes", "reserve_bytes", "resident_bytes", "resident", "predicted_peak_bytes",
    "prediction", "measured_peak_bytes", "default_peak_bytes", "default_prediction", "floor_bytes",
    "saved_bytes", "forward_time_us", "recompute_time_us", "optimality_gap", "bound_kind", "saved",
    "recomputed", "passes", "beside_bytes", "rounds", "notes", "sparsity", "timeline",
    "default_timeline", "curve",
]  # fmt: skip


def test_keys_are_added_but_never_renamed_or_dropped():
    data = Report([graph()]).to_dict()
    assert data["format"] == 1
    assert set(KEYS) <= set(data["graphs"][0])
    row_keys = {"name", "bytes", "dtype", "shape", "module", "source", "copies"}
    assert row_keys <= set(data["graphs"][0]["saved"][0])
    assert {"name", "time_us", "changed"} <= set(data["graphs"][0]["passes"][0])


def test_figures_in_the_data_are_plain_bytes():
    data = Report([graph()]).to_dict()["graphs"][0]
    assert data["resident_bytes"] == 3 * GIB + MIB
    assert data["floor_bytes"] == 3 * GIB + MIB + GIB // 2
    assert data["saved"][0]["bytes"] == 4 * MIB
    assert data["measured_peak_bytes"] is None


def test_the_floor_is_computed_when_first_asked_for():
    asked = []

    def floor() -> int:
        asked.append(1)
        return 7

    report = graph(_floor=floor)
    assert asked == []
    assert (report.floor_bytes, report.floor_bytes) == (3 * GIB + MIB + 7,) * 2
    assert asked == [1]


def test_the_least_peak_is_part_of_the_data_where_it_is_known():
    assert graph().least_peak_bytes is None
    report = graph(_least=lambda: 5)
    assert report.to_dict(ask=False)["least_peak_bytes"] is None
    assert report.to_dict()["least_peak_bytes"] == 3 * GIB + MIB + 5


def test_the_curve_is_made_when_somebody_asks_and_is_data_from_then_on():
    asked = []

    def curve() -> list[CurvePoint]:
        asked.append(1)
        return [CurvePoint(5, 4, 30.0, True)]

    resident = 3 * GIB + MIB
    report = graph(_curve=curve)
    assert report.to_dict()["curve"] is None and asked == []
    assert report.curve == report.curve == (CurvePoint(resident + 5, resident + 4, 30.0, True),)
    assert asked == [1]
    (point,) = report.to_dict()["curve"]
    assert point == {
        "limit_bytes": resident + 5, "peak_bytes": resident + 4, "time_added_us": 30.0,
        "is_chosen": True,
    }  # fmt: skip


def test_memory_over_the_step_stands_on_what_is_resident():
    line = Timeline(("op",), ("forward",), (1.0,), (7,), ())
    report = graph(_timeline=lambda: line, beside_bytes=10)
    base_bytes = 3 * GIB + MIB + 10
    assert (report.timeline.base_bytes, report.timeline.alive_bytes) == (
        base_bytes,
        (base_bytes + 7,),
    )
    assert report.to_dict()["timeline"] == report.timeline.to_dict()
    assert report.to_dict()["default_timeline"] is None


def test_a_saved_report_reads_back_as_its_data(tmp_path):
    report = Report([graph()])
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(
        json.dumps(report.to_dict())
    )


@pytest.mark.parametrize("name", ["report.txt", "report", "report.json.gz", "json"])
def test_other_endings_are_refused_by_name(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.json") as raised:
        Report([graph()]).save(tmp_path / name)
    assert repr(name) in str(raised.value)
    assert not (tmp_path / name).exists()


# -- whose report ----------------------------------------------------------------------------


def recorded(code, parameters=()) -> registry.GraphRecord:
    record = registry.GraphRecord("a graph", code, parameters)
    record.decided = SimpleNamespace(report=graph())
    return record


@pytest.fixture
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_records", [])


def never_compiled(x):
    return x


@pytest.mark.usefixtures("empty_registry")
def test_a_process_that_compiled_nothing_is_told_what_to_do():
    with pytest.raises(NotCompiledError, match="No training graph was compiled") as raised:
        registry.report()
    assert "backend='sat'" in str(raised.value)
    assert "no_grad" in str(raised.value)


@pytest.mark.usefixtures("empty_registry")
@pytest.mark.parametrize(
    ("asked", "name"), [(never_compiled, "never_compiled"), (torch.nn.Linear(2, 2), "Linear")]
)
def test_what_was_never_compiled_is_named(asked, name):
    record = recorded(registry.report.__code__)
    registry.add(record)
    with pytest.raises(NotCompiledError, match=name) as raised:
        registry.report(asked)
    assert "torch.compile(..., backend='sat')" in str(raised.value)
    assert "satcompile.report()" in str(raised.value)


def test_not_compiled_is_a_lookup_error():
    assert issubclass(NotCompiledError, LookupError)


@pytest.mark.usefixtures("empty_registry")
def test_a_graph_belongs_to_every_module_that_it_was_called_with():
    one, two, other = (torch.nn.Linear(2, 2) for _ in range(3))
    record = recorded(None, [0, 1])
    registry.add(record)
    for module in (one, two):
        record.observe([module.weight, module.bias, torch.ones(2)])
    assert registry.report(one).graphs == registry.report(two).graphs == [record.report]
    with pytest.raises(NotCompiledError):
        registry.report(other)


@pytest.mark.usefixtures("empty_registry")
def test_a_graph_belongs_to_the_function_of_its_code():
    record = recorded(never_compiled.__code__)
    registry.add(record)
    assert registry.report(never_compiled).graphs == [record.report]
    with pytest.raises(NotCompiledError):
        registry.report(value)


@pytest.mark.usefixtures("empty_registry")
def test_a_measured_step_is_noted_in_the_reports_of_what_ran_in_it():
    ran, idle = (recorded(None) for _ in range(2))
    with registry.observing_steps() as steps:
        ran.observe([])
    steps.record(Measured(100, 2000, 3000))
    assert ran.report.measured_peak_bytes == ran.report.resident_bytes + 100
    assert ran.report.measured_allocated_bytes == 2000
    assert "1.95 KiB allocated, 2.93 KiB reserved" in render(Report([ran.report]), ask=False)
    assert idle.report.measured_peak_bytes is None
