"""What changed between two reports: two budgets, two versions of a model, two files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import satcompile
from satcompile import FileError
from satcompile.commands.cli import main
from satcompile.report.comparison import Decision
from satcompile.report.data import PassRow, Report, ValueRow
from satcompile.report.saved import compare_files, load_report
from satcompile.report.timeline import Allocation, Timeline
from tests.report.browser import PHONE, chromium, opened
from tests.report.test_report import MIB, graph, value


def layers(count: int, source: str = "model.py:12", **changed) -> list[ValueRow]:
    return [value(f"addmm_{i}", f"h.{i}.mlp", source=source, **changed) for i in range(count)]


def code(*sources: str) -> Timeline:
    """A timeline of a model with these source lines."""
    found = tuple(Allocation(f"a{i}", 1, 0, 0, "saved", "", s) for i, s in enumerate(sources))
    return Timeline(("op",), ("forward",), (1.0,), (len(found),), found)


def compared(before: dict, after: dict):
    (found,) = Report([graph(**before)]).compare(Report([graph(**after)])).graphs
    return found


# -- values ------------------------------------------------------------------------------------


def test_nothing_changed_is_said_so():
    found = Report([graph()]).compare(Report([graph()]))
    assert (found.graphs[0].values, found.graphs[0].passes) == ([], [])
    assert "every value is treated as before" in str(found)


def test_layers_that_are_recomputed_now_are_one_row():
    rows = layers(4)
    (change,) = compared(
        {"saved": rows, "recomputed": []},
        {"saved": rows[:1], "recomputed": [value(r.name, r.module, copies=2) for r in rows[1:]]},
    ).values
    assert (change.name, change.module, change.source) == ("addmm_*", "h.*.mlp", "model.py:12")
    assert change.before == Decision(4, 0, 16 * MIB)
    assert change.after == Decision(1, 3, 4 * MIB)
    assert change.more_saved_bytes == -12 * MIB
    assert (str(change.before), str(change.after)) == ("4 saved", "1 saved, 3 recomputed")


def test_a_value_that_is_neither_now_keeps_its_place():
    (change,) = compared(
        {"saved": layers(1), "recomputed": []}, {"saved": [], "recomputed": []}
    ).values
    assert (change.name, change.module) == ("addmm_0", "h.0.mlp")
    assert str(change.after) == "neither"


def test_a_larger_batch_is_the_same_value():
    (change,) = compared(
        {"saved": layers(2), "recomputed": []},
        {"saved": layers(2, shape=(2048, 1024), num_bytes=8 * MIB), "recomputed": []},
    ).values
    assert change.shape == (2048, 1024)
    assert change.more_saved_bytes == 8 * MIB


def test_lines_that_moved_are_the_same_values_where_the_code_was_edited():
    before = {"saved": layers(2), "recomputed": [], "_default_timeline": code("model.py:12")}
    after = {"saved": layers(2, "model.py:15"), "recomputed": []}
    assert compared(before, {**after, "_default_timeline": code("model.py:15")}).values == []
    both = code("model.py:12", "model.py:15")  # one code, two lines of it
    found = compared({**before, "_default_timeline": both}, {**after, "_default_timeline": both})
    assert [(str(v.before), str(v.after)) for v in found.values] == [
        ("2 saved", "neither"), ("neither", "2 saved"),
    ]  # fmt: skip


def test_the_largest_change_comes_first():
    small, large = value("mm", "head", num_bytes=MIB), value("gelu", "act", num_bytes=9 * MIB)
    found = compared({"saved": [small, large], "recomputed": []}, {"saved": [], "recomputed": []})
    assert [change.name for change in found.values] == ["gelu", "mm"]


# -- figures, passes, graphs -------------------------------------------------------------------


def test_figures_are_side_by_side():
    found = compared({}, {"budget_bytes": None, "recompute_time_us": 150.0})
    rows = {row[0]: row[1:] for row in found.rows()}
    assert rows["budget"] == ("6.00 GiB", "none", "")
    assert rows["time added"] == ("100 us", "150 us", "+50.0%")
    assert rows["predicted peak"] == ("5.00 GiB", "5.00 GiB", "same")


def test_passes_that_did_something_else_are_listed():
    old = [PassRow("recompute", 1.0, "3 saved"), PassRow("verify", 1.0, "fine")]
    new = [PassRow("verify", 9.0, "fine"), PassRow("chunked_loss", 1.0, "4 chunks")]
    found = compared({"passes": old}, {"passes": new}).passes
    assert [(p.name, p.before, p.after) for p in found] == [
        ("recompute", "3 saved", None), ("chunked_loss", None, "4 chunks"),
    ]  # fmt: skip


def test_graphs_are_paired_by_their_functions():
    old = Report([graph(name="step [0/0]"), graph(name="gone [1/0]"), graph(name="lost [3/0]")])
    new = Report([graph(name="new [0/0]"), graph(name="step [2/1]")])
    found = old.compare(new)
    assert [(g.before.name, g.after.name) for g in found.graphs] == [("step [0/0]", "step [2/1]")]
    assert (found.only_before, found.only_after) == (["gone [1/0]", "lost [3/0]"], ["new [0/0]"])
    assert "only in before: gone [1/0], lost [3/0]" in str(found)


def test_a_renamed_function_is_compared_all_the_same():
    found = Report([graph(name="old [0/0]")]).compare(Report([graph(name="new [0/0]")]))
    assert [(g.before.name, g.after.name) for g in found.graphs] == [("old [0/0]", "new [0/0]")]


def test_no_line_of_the_text_is_wider_than_a_terminal():
    rows = [value("name_" * 20, "module." * 30, source="file_of_a_long_name.py:12345" * 2)]
    found = Report([graph(saved=rows)]).compare(Report([graph(saved=[])]), ("one " * 9, "other"))
    assert max(map(len, str(found).splitlines())) <= 110


# -- of a real model ---------------------------------------------------------------------------


class Layered(torch.nn.Module):
    """Compiled in seconds, most of its step activations of identical layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.nn.functional.gelu(torch.tanh(layer(x)))
        return x


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Reports of a model under two budgets."""
    folder, found = tmp_path_factory.mktemp("compare"), []
    for share in (90, 70):
        torch.compiler.reset()
        model, options = Layered(), {"memory_budget": f"{share}% of default"}
        compiled = torch.compile(model, backend="sat", options=options)
        compiled(torch.randn(4096, 32)).sum().backward()
        found.append(folder / f"at {share}.json")
        satcompile.report(model).save(found[-1])
    return found


def test_a_lower_budget_saves_less_and_recomputes_more(files):
    found = compare_files(*files)
    assert found.names == ("at 90", "at 70")
    (pair,) = found.graphs
    before, after = pair.figures["predicted_peak_bytes"]
    assert after < before
    assert pair.figures["recompute_time_us"][0] < pair.figures["recompute_time_us"][1]
    # Changes add up to the whole: nothing is lost or counted twice.
    saved = [sum(row.num_bytes for row in g.saved) for g in (pair.before, pair.after)]
    assert sum(value.more_saved_bytes for value in pair.values) == saved[1] - saved[0] < 0
    assert any("layers.*" in value.module for value in pair.values)
    assert {"recompute", "partition"} <= {each.name for each in pair.passes}
    text = str(found)
    assert "at 90" in text and "saved" in text and "recomputed" in text


def test_its_data_is_plain_and_saved_as_it_is(files, tmp_path):
    found = compare_files(*files)
    found.save(tmp_path / "changes.json")
    data = json.loads((tmp_path / "changes.json").read_text())
    assert data == json.loads(json.dumps(found.to_dict()))
    assert {"format", "names", "graphs", "only_before", "only_after"} == set(data)
    (pair,) = data["graphs"]
    assert {"before", "after"} == set(pair["saved_bytes"])
    keys = {"name", "module", "source", "dtype", "shape", "before", "after"}
    assert all(keys == set(row) for row in pair["values"])


@pytest.mark.skipif(chromium() is None, reason="chromium and chromedriver are not installed")
def test_the_page_shows_both_in_one_chart(files, tmp_path):
    changes = compare_files(*files)
    changes.save(tmp_path / "changes.html")
    last = len(changes.graphs[0].after.timeline.labels) - 1  # later than any point of the other
    with opened() as browser:
        browser.show(tmp_path / "changes.html", PHONE, dark=True)
        assert browser.complaints() == []
        assert browser.texts("h1") == ["What changed from at 90 to at 70"]
        names = "return document.querySelector('.plotly-graph-div').data.map(each => each.name)"
        assert browser.run(names) == ["at 90", "at 70"]
        assert "alive, at 70" in browser.hover_point("graph-0-memory", 1, last)
        assert browser.run("return document.scrollingElement.scrollWidth") <= PHONE


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "graphs": [{}]}'])
def test_a_file_that_holds_no_report_is_named(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(FileError, match="holds no report") as raised:
        load_report(path)
    assert repr(str(path)) in str(raised.value) and ".json" in str(raised.value)


def test_a_file_of_a_later_format_is_named(tmp_path):
    path = tmp_path / "later.json"
    path.write_text('{"format": 2, "graphs": []}')
    with pytest.raises(FileError, match="format 2"):
        load_report(path)


def test_a_missing_file_is_named(files, tmp_path):
    with pytest.raises(FileError, match="could not be read") as raised:
        compare_files(files[0], tmp_path / "missing.json")
    assert "missing.json" in str(raised.value)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [tmp_path / folder / "plan.json" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        Report([graph()]).save(path)
    assert compare_files(*paths).names == (str(paths[0]), str(paths[1]))


# -- the command --------------------------------------------------------------------------------


def test_the_command_prints_and_writes_what_changed(files, tmp_path, capsys):
    before, after = files
    page = tmp_path / "changes.html"
    assert main(["compare", str(before), str(after), "--output", str(page)]) == 0
    assert capsys.readouterr().out == str(compare_files(before, after))
    assert "plotly" in page.read_text()


def test_the_command_names_a_file_that_is_not_there(files, tmp_path, capsys):
    assert main(["compare", str(files[0]), str(tmp_path / "nothing.json")]) == 1
    assert "nothing.json" in capsys.readouterr().err
