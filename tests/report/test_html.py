"""The HTML report in Chromium: it renders offline, says what is alive, and escapes names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from selenium.common.exceptions import NoAlertPresentException

import satcompile
from satcompile import FileError, OptionError, SatcompileError
from satcompile.planner.curve import CurvePoint
from satcompile.report.data import GraphReport, PassRow, Report
from satcompile.report.page import diff_lines
from satcompile.report.sparsity import DenseRow, SavedSparsity, TiledRow
from satcompile.report.timeline import Allocation, Timeline
from satcompile.report.updates import SavedUpdates, UpdateRow
from tests.report.browser import PHONE, Browser, chromium, opened
from tests.report.test_report import GIB, MIB, graph, value

EVIL = "<script>alert(1)</script>"

needs_chromium = pytest.mark.skipif(
    chromium() is None, reason="chromium and chromedriver are not installed"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened() as found:
        yield found


class Change:
    """A graph's texts, as a pass keeps them."""

    def before(self) -> str:
        return "a\nb\n"

    def after(self) -> str:
        return f"a\n{EVIL}\n"

    def diff(self) -> str:
        return f"--- before\n+++ after\n@@ -1,2 +1,2 @@\n a\n-b\n+{EVIL}"


def line(positions: int, name: str, module: str = "h.0.mlp", num_bytes: int = MIB) -> Timeline:
    """Half a step up and half a step down, a value at each position."""
    half = positions // 2
    allocations = tuple(
        Allocation(f"{name}_{i}", num_bytes, i, positions - 1 - i, "saved", module)
        for i in range(half)
    )
    heights = [min(i + 1, positions - i) for i in range(positions)]
    alive_bytes = tuple(min(height, half) * num_bytes for height in heights)
    phases = ("forward",) * half + ("backward",) * (positions - half)
    labels = tuple(f"{name}_{i}" for i in range(positions))
    return Timeline(labels, phases, (100.0,) * positions, alive_bytes, allocations)


def sparsity() -> SavedSparsity:
    rows = [
        TiledRow(name, (256, 256), (128, 128), 4, 0.25, 1.0, 1e9, 7.5e8, "")
        for name in ("h.0.mlp.weight", f"{EVIL}.weight")
    ]
    return SavedSparsity(10, 500, 0.25, 6e9, 0.25, rows, [DenseRow(EVIL, (8,), "a vector")])


def updates() -> SavedUpdates:
    rows = [
        UpdateRow("h.0.mlp.weight", (256, 256), MIB, "AdamW", True, ""),
        UpdateRow(f"{EVIL}.bias", (256,), 1024, "AdamW", False, "a hook is to see it"),
    ]
    return SavedUpdates(True, MIB, 1024, 0, rows)


def full_graph(name: str = "forward [0/0]", **changed) -> GraphReport:
    points = [CurvePoint(GIB, GIB, 90.0), CurvePoint(2 * GIB, 2 * GIB - MIB, 30.0, True)]
    fields = {
        "name": name,
        "resident": {"parameters": MIB, "inputs": 0, "gradients": 0, "optimizer_state": 0},
        "budget_bytes": 100 * MIB,
        "measured_peak_bytes": 5 * GIB + MIB,
        "saved": [value(f"addmm_{i}", f"h.{i}.mlp") for i in range(3)] + [value("mm", "head")],
        "passes": [PassRow("partition", 1.0, "two graphs", Change()), PassRow("verify", 1.0, "ok")],
        "notes": ["a note"],
        "sparsity": sparsity(),
        "_updates": updates(),
        "_curve": points,
        "_timeline": line(40, "ours"),
        "_default_timeline": line(60, "theirs", EVIL, 2 * MIB),
    }
    return graph(**{**fields, **changed})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    Report([full_graph(), full_graph(EVIL, sparsity=None, budget_bytes=None)]).save(path)
    return path


# -- the file ----------------------------------------------------------------------------------


def test_updates_say_who_applies_what_and_why(page):
    text = page.read_text()
    assert "gradients of 1.00 MiB are applied as they appear" in text
    assert "<td>in the backward</td>" in text
    assert "by step(): a hook is to see it" in text


def test_one_file_carries_everything_and_asks_for_nothing(page):
    text = page.read_text()
    assert text.count("plotly.js v") == 1
    ours = re.sub(r"<script>/\*\*\n\* plotly\.js v.*?</script>", "", text, flags=re.DOTALL)
    assert len(ours) < 300_000  # plotly's script is gone from it
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", ours)
    assert "http" not in ours
    assert EVIL not in ours


def test_it_is_built_for_readers_and_their_machines(page):
    text = page.read_text()
    assert '<html lang="en">' in text
    assert "<title>satcompile: forward [0/0] and 1 more</title>" in text
    assert text.count("<h1>") == 1
    assert 'scope="col"' in text and 'scope="row"' in text
    assert "width=device-width" in text


def test_long_diffs_are_cut_with_a_count():
    lines, more = diff_lines("\n".join(["@@ -1 +1 @@", "-a", "+b", " c"] + ["+x"] * 5_000))
    assert [kind for kind, _ in lines[:4]] == ["place", "removed", "added", ""]
    assert (len(lines), more) == (3_000, 2_004)


def test_what_is_not_known_is_left_out(tmp_path):
    Report([graph(saved=[], recomputed=[])]).save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Nothing was measured yet" in text and "Nothing is saved" in text
    for part in ("Memory over the step", "Memory against time", "Sparsity per parameter"):
        assert f"<h3>{part}</h3>" not in text


@pytest.mark.parametrize("name", ["report.txt", "report", "report.htm", "html"])
def test_other_endings_name_both_that_are_possible(tmp_path, name):
    for thing in (Report([graph()]), Report([graph()]).compare(Report([graph()]))):
        with pytest.raises(OptionError, match=r"\.html.*\.json") as raised:
            thing.save(tmp_path / name)
        assert repr(name) in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["html", "json"])
def test_a_folder_that_cannot_be_written_to_is_an_error_that_stands_alone(tmp_path, ending):
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "missing", tmp_path / "file"):
        path = folder / f"report.{ending}"
        with pytest.raises(FileError, match="could not be written") as raised:
            Report([full_graph()]).save(path)
        assert isinstance(raised.value, SatcompileError) and isinstance(raised.value, OSError)
        assert repr(str(path)) in str(raised.value)
        assert "folder" in str(raised.value) and "Errno" not in str(raised.value)
        assert raised.value.errno
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("an older one")

    def full_disk(*names: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full_disk)
        with pytest.raises(FileError, match="No space left"):
            Report([full_graph()]).save(path)
    assert path.read_text() == "an older one"
    assert list(tmp_path.iterdir()) == [path]
    Report([full_graph()]).save(path)
    assert path.read_text().startswith("<!doctype html>")


# -- in a browser ------------------------------------------------------------------------------


@needs_chromium
def test_every_part_is_there_and_the_console_is_silent(browser, page):
    browser.show(page)
    assert browser.complaints() == []
    assert browser.texts("h1") == ["What satcompile decided"]
    assert browser.texts("h2") == ["Graph forward [0/0]", f"Graph {EVIL}"]
    parts = [
        "Memory over the step", "Memory against time", "Predicted against measured",
        "Decisions by layer", "Passes", "Fused updates", "Sparsity per parameter",
    ]  # fmt: skip
    assert browser.texts("#graph-0 h3") == parts
    assert browser.texts("#graph-1 h3") == parts[:-1]
    drawn = "return document.querySelectorAll('.plotly-graph-div .main-svg').length > 0"
    assert browser.run(drawn)
    assert browser.run("return document.querySelectorAll('.plotly-graph-div').length") == 4 + 3
    assert "budget" in browser.texts("#graph-0-memory .annotation-text")
    assert browser.texts("#graph-1-memory .annotation-text") == []  # there is none


@needs_chromium
def test_hover_names_what_is_alive(browser, page):
    browser.show(page)
    text = browser.hover_point("graph-0-memory", 0, 5)
    assert "ours_5 (forward)" in text
    alive = [f"1.00 MiB saved: ours_{i} in h.0.mlp" for i in range(6)]
    assert all(each in text for each in alive)
    assert "ours_6 in" not in text
    default = browser.hover_point("graph-0-memory", 1, 30)
    assert default.count("2.00 MiB saved: theirs_") == 8
    assert EVIL in default
    assert "in use: peak 2.00 GiB" in browser.hover_point("graph-0-curve", 1, 0)
    assert browser.complaints() == []


@needs_chromium
def test_names_from_models_are_text(browser, page):
    browser.show(page)
    with pytest.raises(NoAlertPresentException):
        browser.driver.switch_to.alert  # noqa: B018
    assert browser.run("return [...document.scripts].some(s => s.text === 'alert(1)')") is False
    assert EVIL in browser.texts("nav a")[1]
    assert f"{EVIL}.weight" in browser.texts("#graph-0 tbody th")


@needs_chromium
def test_layers_and_diffs_unfold(browser, page):
    browser.show(page)
    assert "addmm_* in 3 places" in browser.texts("#graph-0 summary")
    browser.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    members = browser.texts("#graph-0 details li")
    assert members == [f"addmm_{i} in h.{i}.mlp" for i in range(3)]
    assert browser.texts("#graph-0 pre .added")[1:] == [f"+{EVIL}"]
    assert browser.texts("#graph-0 pre .removed")[1:] == ["-b"]


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling(browser, page, dark):
    browser.show(page, PHONE, dark)
    assert browser.run("return document.scrollingElement.scrollWidth") <= PHONE
    widths = browser.run(
        "return [...document.querySelectorAll('.plotly-graph-div')].map(c => c._fullLayout.width)"
    )
    assert widths and all(200 < width <= PHONE for width in widths)
    assert browser.complaints() == []


def luminance(colour: str) -> float:
    """The luminance of "rgb(1, 2, 3)" or "#010203", by WCAG 2."""
    hexadecimal = re.fullmatch(r"#(..)(..)(..)", colour)
    numbers = (
        [int(part, 16) for part in hexadecimal.groups()]
        if hexadecimal
        else [int(part) for part in re.findall(r"\d+", colour)[:3]]
    )
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in (number / 255 for number in numbers)]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_text_and_charts_can_be_read_in_the_readers_colours(browser, page, dark):
    browser.show(page, dark=dark)
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.1) == dark
    for selector in ("body", "figcaption", "small", "#graph-0-memory .xtick text"):
        property_name = "fill" if "text" in selector else "color"
        colour = browser.run(
            "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]",
            selector, property_name,
        )  # fmt: skip
        assert contrast(colour, paper) >= 4.5, selector
    lines = browser.run(
        "return document.getElementById('graph-0-memory').data.map(each => each.line.color)"
    )
    assert all(contrast(colour, paper) >= 3 for colour in lines)


@needs_chromium
def test_charts_follow_when_the_reader_turns_the_light_off(browser, page):
    browser.show(page)
    ask = "return document.getElementById('graph-0-memory').layout.font.color"
    light = browser.run(ask)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.wait(f"{ask} !== {light!r}")
    assert luminance(browser.run(ask)) > luminance(light)


@needs_chromium
def test_a_large_model_stays_usable(browser, tmp_path):
    path = tmp_path / "large.html"
    count = 5_000
    rows = [value(f"op{i}x", f"model.layers.{i}x.self_attn.o_proj") for i in range(count)]
    Report(
        [
            full_graph(
                saved=rows,
                _timeline=line(count, "a_name_of_some_length", "model.layers.39.self_attn.o_proj"),
                _default_timeline=line(count, "another_name", "h.0.mlp", 2 * MIB),
            )
        ]
    ).save(path)
    assert path.stat().st_size < 15e6
    browser.show(path)
    text = browser.hover_point("graph-0-memory", 0, count // 2)
    assert text.count("1.00 MiB saved: a_name_of_some_length_") == 8
    assert browser.run("return document.querySelectorAll('#graph-0 tbody tr').length") >= count
    assert browser.complaints() == []


# -- of a real model ---------------------------------------------------------------------------


class Evil(torch.nn.Module):
    """Three layers, one of them named by somebody who means harm."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(EVIL, torch.nn.Linear(64, 256))
        self.more = torch.nn.ModuleList(torch.nn.Linear(256, 256) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(getattr(self, EVIL)(x))
        for layer in self.more:
            x = torch.nn.functional.gelu(layer(x))
        return x


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    torch.compiler.reset()
    torch.manual_seed(0)
    model, x = Evil(), torch.randn(512, 64)
    compiled = torch.compile(model, backend="sat", options={"memory_budget": "75% of default"})

    def step() -> torch.Tensor:
        loss = compiled(x).sum()
        loss.backward()
        return loss

    step()
    model.zero_grad()
    satcompile.measure_peak(step)
    report = satcompile.report(model)
    path = tmp_path_factory.mktemp("evil") / "report.html"
    report.save(path)
    return report, path


@needs_chromium
def test_a_real_model_is_shown_as_it_was_decided(browser, evil):
    report, path = evil
    (found,) = report.graphs
    browser.show(path)
    assert browser.complaints() == []
    assert any(EVIL in text for text in browser.texts("td.name"))
    position = found.timeline.peak_position
    text = browser.hover_point("graph-0-memory", 0, position)
    largest = found.timeline.alive_at(position, 8)
    assert largest and all(each.name in text for each in largest)
    rows = browser.texts("#graph-0 tbody th")
    assert any(found.saved[0].name.split("_")[0] in row for row in rows)
    assert len([point for point in found.curve if point.is_chosen]) == 1


def test_the_data_of_a_real_model_reads_back_exactly(evil, tmp_path):
    report, _ = evil
    path = tmp_path / "report.json"
    report.save(path)
    again = satcompile.load_report(path)
    assert again.to_dict() == report.to_dict()
    assert again.graphs[0].timeline == report.graphs[0].timeline
    assert again.graphs[0].curve == report.graphs[0].curve
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_simulated_and_predicted_peaks_are_told_apart(evil):
    report, path = evil
    (found,) = report.graphs
    differs = found.timeline.peak_bytes != found.predicted_peak_bytes
    text = path.read_text()
    assert ("the code that runs allocates to" in text) == differs
    assert ("Its peak is the predicted one" in text) != differs
