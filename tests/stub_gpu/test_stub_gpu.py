"""What a first user on a GPU would meet, with torch's own CUDA stack over the stub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.stub_gpu.stub import Stub

SMALL_WORKSPACES = {"CUBLAS_WORKSPACE_CONFIG": ":0:0"}  # beside which small budgets mean something
MIB = 2**20

# By three, so that two processes have as much to do: a process imports torch for 10 seconds.
GROUPS = (
    ("dense", "dropout", "convolutions", "llama", "llama, bf16", "llama, autocast"),
    ("llama, dynamic", "llama, deterministic", "llama, adapters", "llama, tied", "gpt2", "experts"),
    (
        "llama, updates in the backward", "reductions", "dense, memory planning",
        "dense, combo kernels", "dense, cooperative", "dense, partitions", "llama, sparse",
    ),
)  # fmt: skip


def check_prediction(found: dict[str, Any]) -> None:
    """To the byte, but for what operators take inside: that is known in units of 512."""
    name = found["case"]
    assert found["prediction"] == "generated code" and not found["notes"], name
    # What is predicted of a sparse step is one that scores tiles, which takes strips of a weight. The
    # first time, products are timed, for which a list of tiles is made.
    is_sparse = "sparse" in name
    least_bytes, most_bytes = (-512, 0.01 * found["requested_bytes"]) if is_sparse else (0, 2048)
    assert least_bytes <= found["predicted_bytes"] - found["requested_bytes"] <= most_bytes, name
    assert found["allocated_bytes"] <= 1.01 * found["predicted_bytes"], name


@pytest.mark.slow
@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_predictions_are_what_is_requested(gpu: Stub, names: tuple[str, ...]) -> None:
    found = gpu.run("walk", "-", *names)
    assert [each["case"] for each in found] == list(names)
    for each in found:
        check_prediction(each)
        held_bytes = 2 * (32 + 1) * MIB  # of a card with capability 9.0
        assert each["workspace_bytes"] == (held_bytes if each["workspaces_stay"] else 0)


@pytest.mark.slow
def test_budgets_hold_on_a_gpu(gpu: Stub) -> None:
    names = ("dense", "llama, bf16", "llama, autocast", "llama, updates in the backward")
    found = gpu.run("walk", "90% of default", *names, **SMALL_WORKSPACES)
    assert [each["case"] for each in found] == list(names)
    for each in found:
        check_prediction(each)
        assert each["workspace_bytes"] == 0
        assert each["resident_bytes"] + each["requested_bytes"] <= each["budget_bytes"]


@pytest.mark.slow
def test_tuned_products_are_predicted(gpu: Stub) -> None:
    """Templates are built, which the interpreter cannot."""
    (found,) = gpu.run(
        "walk", "90% of default", "dense, tuned", TRITON_INTERPRET="0", **SMALL_WORKSPACES
    )
    check_prediction(found)
    assert found["resident_bytes"] + found["requested_bytes"] <= found["budget_bytes"]


NUMBERS = (
    ("budget", "updates in the backward", "chunked", "dropout"),
    ("convolutions", "sparse", "autocast", "updates by step"),
)


@pytest.mark.slow
@pytest.mark.parametrize("names", NUMBERS, ids=lambda names: names[0])
def test_numbers_are_those_of_the_cpu(gpu: Stub, names: tuple[str, ...]) -> None:
    """Generated kernels and our own ones run in whole steps, with the CPU's operators beside them."""
    for found in gpu.run("numbers", *names, STUB_NUMBERS="1", **SMALL_WORKSPACES):
        name, tolerance = found["case"], 0.03 if found["case"] == "autocast" else 2e-5
        assert found["losses"] == pytest.approx(found["expected_losses"], rel=tolerance), name
        assert found["updates"] < 5 * tolerance, name
        if name == "updates in the backward":
            assert found["gradients"] is None, name
            assert found["passes"]["fused_update"].startswith("15 gradients"), name
        else:
            assert found["gradients"] < tolerance, name
        if name == "chunked":
            assert "in 16 chunks" in found["passes"]["chunked_loss"]
        if name == "sparse":
            assert found["tiled"] == 6
        if name not in ("sparse", "updates by step"):
            assert found["recomputed"] > 0, name


# One of so many of the tests that want a GPU; the others run there by hand (CONTRIBUTING.md).
SAMPLES = {
    "tests/updates/kernels/test_gpu.py": "7",
    "tests/integration/test_updates.py": "3",
    "tests/integration/test_run.py": "12",
}


@pytest.mark.slow
@pytest.mark.parametrize("file", SAMPLES)
def test_a_sample_of_the_tests_that_want_a_gpu(gpu: Stub, file: str) -> None:
    settings = {"STUB_NUMBERS": "1", "TRITON_INTERPRET": "1", "STUB_EVERY": SAMPLES[file]}
    last_line = gpu.pytest(file, "-k", "cuda or gpu", **settings, **SMALL_WORKSPACES)
    assert " passed" in last_line and "skipped" not in last_line


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_all_kernels_of_a_graph_build_and_none_has_to_spill(gpu: Stub, capability: int) -> None:
    """Inductor tries some ways to cut a kernel's work, and takes the fastest."""
    settings = {"STUB_CAPABILITY": str(capability), "TRITON_CACHE_DIR": str(gpu.folder / "built")}
    names = ("llama, bf16", "llama, sparse")
    found = gpu.run("kernels", "95% of default", *names, **settings, **SMALL_WORKSPACES)
    assert [each["case"] for each in found] == list(names)
    ours: set[str] = set()
    for each in found:
        least: dict[str, int] = {}
        for kernel in each["kernels"]:
            assert kernel["arch"] == capability
            name, spilled_bytes = kernel["kernel"], kernel["spilled_bytes"]
            least[name] = min(spilled_bytes, least.get(name, spilled_bytes))
        assert not [name for name, spilled_bytes in least.items() if spilled_bytes], each["case"]
        assert len(least) > 10, each["case"]
        ours |= {name for name in least if not name.startswith("triton_")}
    assert {"sweep_kernel", "tile_mm_kernel"} <= ours


# The default takes 229 MB of a device that would be large enough (267 with a torch below 2.15).
@pytest.mark.slow
@pytest.mark.parametrize(
    ("megabytes", "segments"), [(205, "False"), (205, "True"), (60, "False")], ids=str
)
def test_a_device_that_is_too_small_for_the_default(
    gpu: Stub, megabytes: int, segments: str
) -> None:
    settings = {
        "STUB_BYTES": str(megabytes * 10**6),
        "PYTORCH_ALLOC_CONF": f"expandable_segments:{segments}",
    }
    (found,) = gpu.run("short", "64", **settings)
    assert found["ended"] == ("trained" if megabytes > 100 else "BudgetError")
    if found["ended"] == "trained":
        assert found["budget_bytes"] < found["total_bytes"] < found["default_bytes"]
        assert found["predicted_bytes"] <= found["budget_bytes"]
        assert found["reserved_bytes"] <= found["total_bytes"]


@pytest.mark.slow
def test_the_command_for_a_gpu_runs_to_its_end(gpu: Stub, tmp_path: Path) -> None:
    """Times mean nothing there, and that is said."""
    only = ("rates", "tile products")
    (found,) = gpu.run("bench", "--output", str(tmp_path), "--only", *only)
    assert found["exit_status"] in (0, 1)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert "meaningless" in results["environment"]["times"]
    assert [row["section"] for row in results["rows"]] == list(only)
    assert all(row["result"].startswith("done") for row in results["rows"])


@pytest.mark.slow
def test_what_the_stub_has_not_ends_a_process_by_name(gpu: Stub) -> None:
    with pytest.raises(AssertionError, match="stub GPU: cuMemcpyPeerAsync is not there"):
        gpu.run("missing")
