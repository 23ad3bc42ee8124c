"""What a plan leaves in torch's log and in its structured trace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from satcompile.report.trace import RECOMPUTED
from satcompile.runtime import journal
from tests.report.test_report import KEYS, graph
from tests.report.test_trace import check_format

STEP = """
import torch

model = torch.nn.Sequential(
    torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.GELU()
)
compiled = torch.compile(model, backend="sat", options={"memory_budget": "90% of default"})
compiled(torch.ones(256, 32)).sum().backward()
"""


def run(code: str, **environment: str) -> str:
    """What a new Python says on stderr; torch reads its settings when it is imported."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TORCH_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
        env=inherited | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A step's log at DEBUG and the trace beside it."""
    trace = tmp_path_factory.mktemp("trace")
    log = run(STEP, TORCH_LOGS="+satcompile", TORCH_TRACE=str(trace))
    return SimpleNamespace(log=log, trace=trace)


UPDATED = """
import satcompile
import torch

model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
satcompile.fuse_optimizer(optimizer, in_backward=True)
torch.compile(model, backend="sat")(torch.ones(256, 32)).sum().backward()
"""

REFUSED = """
import satcompile
import torch

model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
try:
    torch.compile(model, backend="sat", options={"memory_budget": 1})(torch.ones(256, 32))
except satcompile.BudgetError:
    pass
else:
    raise SystemExit("a byte was enough")
"""


# -- the log ---------------------------------------------------------------------------------


def test_the_log_has_a_decision_and_its_passes(told: SimpleNamespace) -> None:
    decisions = [line for line in told.log.splitlines() if line.startswith("I")]
    assert len(decisions) == 1
    for part in ("[0/0]", "budget ", "predicted peak ", "time added ", " recomputed, "):
        assert part in decisions[0]
    passes = [line for line in told.log.splitlines() if line.startswith("V")]
    for name in ("recompute", "partition", "verify"):
        assert any(f"pass {name}, " in line for line in passes)


@pytest.mark.parametrize("setting", ["satcompile", "+satcompile"])
def test_torch_knows_the_log_by_name_without_importing_the_backend(setting: str) -> None:
    code = (
        "import sys, torch, logging; "
        "assert 'satcompile.backend' not in sys.modules; "
        "print(logging.getLogger('satcompile').getEffectiveLevel(), file=sys.stderr)"
    )
    assert (
        run(code, TORCH_LOGS=setting).strip() == {"satcompile": "20", "+satcompile": "10"}[setting]
    )


def test_nothing_is_said_unasked() -> None:
    """We say nothing: torch may warn of an old Python, or of a GPU's absence."""
    plain = re.sub(r"torch\.compile\(model, .*\)\n", "torch.compile(model)\n", STEP)
    assert plain != STEP
    said = [[_without_time(line) for line in run(code).splitlines()] for code in (STEP, plain)]
    assert said[0] == said[1]


def _without_time(line: str) -> str:
    return re.sub(r"^[WIE]\d{4} [\d:.]+ \d+ ", "", line)


def test_a_decision_is_a_line() -> None:
    line = journal.decision(graph(rounds=2))
    assert line == (
        "forward [0/0]: budget 6.00 GiB, predicted peak 5.00 GiB (by generated code), time added "
        "5.0% of the forward (cost model), 1 values saved, 1 recomputed, 2 compilations"
    )
    assert "no budget, " in journal.decision(graph(budget_bytes=None))


# -- the trace -------------------------------------------------------------------------------


def tlparse(trace: Path, out: Path) -> Path:
    """The folder with the files that tlparse makes of a trace."""
    files = metadata.files("tlparse") or []
    program = next(Path(str(f.locate())) for f in files if f.name.startswith("tlparse"))
    (log,) = trace.iterdir()
    subprocess.run([program, "--no-browser", "--strict-compile-id", "-o", out, log], check=True)
    return out


@pytest.fixture(scope="module")
def parsed(told: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tlparse(told.trace, tmp_path_factory.mktemp("parsed") / "out")


def artifact(parsed: Path, name: str, ending: str) -> str:
    """The only one of its name, which stands under the id of the graph's compilation."""
    (path,) = parsed.rglob(f"satcompile_{name}_*.{ending}")
    assert path.parent.name == "-_0_0_0"
    assert path.name in (parsed / "index.html").read_text()
    return path.read_text()


def test_tlparse_shows_the_report(parsed: Path, told: SimpleNamespace) -> None:
    (data,) = json.loads(artifact(parsed, "report", "json"))["graphs"]
    assert set(KEYS) <= set(data)
    assert 0 < data["predicted_peak_bytes"] <= data["budget_bytes"] < data["default_peak_bytes"]
    assert data["recomputed"]
    text = artifact(parsed, "report", "txt")
    assert data["name"] in text
    assert data["name"] in told.log


def test_tlparse_shows_the_updates(tmp_path: Path) -> None:
    (tmp_path / "trace").mkdir()
    run(UPDATED, TORCH_TRACE=str(tmp_path / "trace"), TORCHINDUCTOR_FX_GRAPH_CACHE="0")
    parsed = tlparse(tmp_path / "trace", tmp_path / "out")
    assert "satcompile.update_" in artifact(parsed, "updated_backward_graph", "txt")
    assert "satcompile.update_" not in artifact(parsed, "backward_graph", "txt")


def test_a_refused_budget_is_told_in_both(tmp_path: Path) -> None:
    (tmp_path / "trace").mkdir()
    log = run(REFUSED, TORCH_LOGS="satcompile", TORCH_TRACE=str(tmp_path / "trace"))
    (line,) = [line for line in log.splitlines() if "is below the floor of" in line]
    assert "[0/0]" in line
    data = json.loads(artifact(tlparse(tmp_path / "trace", tmp_path / "out"), "refused", "json"))
    assert data["message"] in line
    assert data["budget_bytes"] == 1 < data["floor_bytes"] == sum(data["breakdown"].values())
    assert data["floor_op"] in data["message"]


def test_tlparse_shows_the_graphs(parsed: Path) -> None:
    joint, forward, backward = (
        artifact(parsed, f"{which}_graph", "txt") for which in ("joint", "forward", "backward")
    )
    assert "primals_1" in joint
    assert "tangents_1" in joint
    assert "primals_1" in forward
    assert "tangents_1" not in forward
    assert "tangents_1" in backward


def test_tlparse_hands_out_the_step_for_perfetto(parsed: Path) -> None:
    step = json.loads(artifact(parsed, "step", "json"))
    check_format(step)
    (figures,) = step["otherData"]["graphs"]
    alive = [e["args"]["alive"] for e in step["traceEvents"] if e["name"] == "memory"]
    assert max(alive) == figures["simulated_peak_bytes"]
    assert any(e.get("cat") == RECOMPUTED for e in step["traceEvents"])


def test_reports_are_traced_without_planning_or_compiling_for_them() -> None:
    def asked() -> Any:
        raise AssertionError("something was computed for the trace")

    lazy = graph(_default=asked, _floor=asked)
    data = lazy.to_dict(ask=False)
    assert data["floor_bytes"] is data["default_peak_bytes"] is data["default_prediction"] is None
    simulated = graph(_default=asked, _floor=asked, _simulated_default_bytes=7)
    data = simulated.to_dict(ask=False)
    assert data["default_peak_bytes"] == simulated.resident_bytes + 7
    assert data["default_prediction"] == "simulation"


def test_what_is_known_is_told_unasked() -> None:
    report = graph()
    assert report.to_dict(ask=False) == report.to_dict()


REPLANNED = """
import torch

model = torch.nn.Sequential(
    torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.GELU()
)
compiled = torch.compile(
    model, backend="sat", dynamic=True, options={"memory_budget": "900KiB"}
)
for batch in (256, 640):
    compiled(torch.ones(batch, 64)).sum().backward()
    model.zero_grad()
"""


@pytest.mark.slow
def test_what_is_planned_anew_stands_under_the_same_id(tmp_path: Path) -> None:
    log = run(REPLANNED, TORCH_LOGS="satcompile", TORCH_TRACE=str(tmp_path / "trace"))
    lines = [line for line in log.splitlines() if "predicted peak" in line]
    assert len(lines) == 2
    assert "planning anew" in log
    assert all("[0/0] " in line for line in log.splitlines())
    out = tlparse(tmp_path / "trace", tmp_path / "out")
    assert len(list(out.glob("-_0_0_0/satcompile_report_*.json"))) == 2
    assert len(list(out.rglob("satcompile_*"))) == len(list(out.glob("-_0_0_0/satcompile_*")))


# -- who is told -----------------------------------------------------------------------------


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    def tell(planned: Any) -> list[str]:
        said: list[str] = []
        monkeypatch.setattr(journal, "is_tracing", lambda: False)
        monkeypatch.setattr(journal.log, "info", lambda form, *args: said.append(form % args))
        compilation: Any = SimpleNamespace(named=nullcontext)
        journal.tell(planned, compilation, graph)
        return said

    return tell


def test_a_plan_is_told_once(telling: Callable[[Any], list[str]]) -> None:
    planned = SimpleNamespace(is_told=False)
    assert len(telling(planned)) == 1
    assert telling(planned) == []


def test_no_report_is_made_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> Any:
        raise AssertionError("nobody listens")

    monkeypatch.setattr(journal, "is_tracing", lambda: False)
    monkeypatch.setattr(journal.log, "isEnabledFor", lambda level: False)
    planned: Any = SimpleNamespace(is_told=False)
    journal.tell(planned, SimpleNamespace(), made)  # type: ignore[arg-type]
    assert planned.is_told
