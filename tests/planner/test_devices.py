"""Which rates and how much memory a graphics card is taken to have."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from satcompile.backend import _refuse_cuda_graphs, _refuse_devices, _refuse_streams
from satcompile.errors import UnsupportedError
from satcompile.options import parse
from satcompile.planner.cost import device as devices
from satcompile.planner.cost.device import Device, all_gpus, device_named, device_of
from satcompile.torch_compat import cuda, dynamo
from satcompile.torch_compat.cuda import blas_workspaces_stay

# What drivers call cards, and the entry of each.
NAMES = {
    "NVIDIA GB200": "GB200",
    "NVIDIA B200": "B200",
    "NVIDIA H200": "H200",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100-SXM4-40GB": "A100-40GB",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
    "NVIDIA RTX A6000": "RTX A6000",
    "NVIDIA L40S": "L40S",
    "NVIDIA L4": "L4",
    "NVIDIA A10": "A10",
    "NVIDIA GeForce RTX 5090": "RTX 5090",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "RTX 4090 Laptop",
    "NVIDIA GeForce RTX 4060 Laptop GPU": "RTX 4060 Laptop",
    "Tesla T4": "T4",
    "Tesla V100-SXM2-32GB": "V100",
    "AMD Instinct MI300X": "MI300X",
    "AMD Instinct MI325X": "MI325X",
}
UNLISTED = ("NVIDIA GeForce RTX 3070 Laptop GPU", "NVIDIA A10G", "NVIDIA GH200 480GB")


def on_a_card(
    name: str, monkeypatch: pytest.MonkeyPatch, workspace_bytes: int | None = None
) -> Device:
    card = SimpleNamespace(name=name, total_memory=10**10, multi_processor_count=54)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(devices, "blas_workspace_bytes", lambda: workspace_bytes)
    return device_of(torch.device("cuda"))


@pytest.mark.parametrize(("called", "entry"), NAMES.items())
def test_a_card_is_known_by_what_its_driver_calls_it(
    called: str, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = on_a_card(called, monkeypatch)
    listed = device_named(entry)
    assert (found.name, found.flops_per_us) == (listed.name, listed.flops_per_us)
    assert found.memory_bytes == 10**10  # of the card that is there
    assert found.workspace_bytes == listed.workspace_bytes
    assert found.product_workspace_bytes == listed.product_workspace_bytes
    assert found.workspace_bytes + found.product_workspace_bytes > 0


@pytest.mark.parametrize("name", UNLISTED)
def test_another_card_is_scaled_from_one_that_is_known(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, known = on_a_card(name, monkeypatch), device_named("A100")
    assert found.name == name and "scaled" in found.source
    assert found.bytes_per_us == known.bytes_per_us / 2


@pytest.mark.parametrize("asked", [None, 5000])
def test_workspaces_are_what_torch_says_in_both_threads_or_in_one_product(
    asked: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> tuple[int, int]:
        card = on_a_card("NVIDIA H100 80GB HBM3", monkeypatch, asked)
        return card.workspace_bytes, card.product_workspace_bytes

    in_one = 33 * 2**20 if asked is None else asked
    if asked is None:  # from the table, which is as this torch is
        assert found() == ((2 * in_one, 0) if blas_workspaces_stay() else (0, in_one))
        return
    monkeypatch.setattr(devices, "blas_workspaces_stay", lambda: True)
    assert found() == (2 * in_one, 0)
    monkeypatch.setattr(devices, "blas_workspaces_stay", lambda: False)
    assert found() == (0, in_one)


def test_workspaces_stay_up_to_2_14_and_where_the_user_wants_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCH_CUBLAS_WORKSPACE_CACHE", raising=False)
    monkeypatch.setattr(cuda, "version", lambda: (2, 14))
    assert blas_workspaces_stay()
    monkeypatch.setattr(cuda, "version", lambda: (2, 15))
    assert not blas_workspaces_stay()
    monkeypatch.setenv("TORCH_CUBLAS_WORKSPACE_CACHE", "1")
    assert blas_workspaces_stay()


@pytest.mark.parametrize("gpu", all_gpus(), ids=lambda gpu: gpu.name)
def test_every_entry_is_whole_and_plausible(gpu: Device) -> None:
    assert gpu.source and gpu.memory_bytes and device_named(gpu.name) == gpu
    half, single = gpu.flops_per_us[torch.float16], gpu.flops_per_us[torch.float32]
    assert 1 <= half / single <= 10
    assert 0.2 <= gpu.bytes_per_us / 1e6 <= 8  # TB/s
    assert 20 <= half / gpu.bytes_per_us <= 600  # operations a byte


def on(kind: str) -> torch.fx.GraphModule:
    """A graph of Dynamo's with a value on such a device."""
    graph = torch.fx.Graph()
    with FakeTensorMode():
        x = graph.placeholder("x")
        x.meta["example_value"] = torch.empty(4, device=kind)
    graph.output(x)
    return torch.fx.GraphModule({}, graph)


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_a_budget_on_a_device_that_was_never_counted_is_refused_by_name(kind: str) -> None:
    module = on(kind)
    _refuse_devices(module, parse({}))
    with pytest.raises(UnsupportedError, match=f"'1GiB' was asked for a model on {kind}"):
        _refuse_devices(module, parse({"memory_budget": "1GiB"}))


@pytest.mark.parametrize(
    "asked", [{"memory_budget": "1GiB"}, {"sparsity": {"density": 0.5}}], ids=lambda asked: next(iter(asked))
)  # fmt: skip
def test_cuda_graphs_are_refused_beside_what_was_never_tried_with_them(
    asked: dict[str, Any],
) -> None:
    recorded = {"inductor": {"triton.cudagraphs": True}}
    _refuse_cuda_graphs(on("cuda"), parse(asked))
    _refuse_cuda_graphs(on("cuda"), parse(recorded))
    _refuse_cuda_graphs(on("cpu"), parse(asked | recorded))
    (name,) = asked
    with pytest.raises(UnsupportedError, match=f"{name} was asked for together with CUDA graphs"):
        _refuse_cuda_graphs(on("cuda"), parse(asked | recorded))


@pytest.mark.parametrize("asked", [{"memory_budget": "1GiB"}, {"sparsity": {"density": 0.5}}])
@pytest.mark.parametrize("overload", [True, False])
def test_streams_are_refused_beside_a_plan(asked: dict[str, Any], overload: bool) -> None:
    importlib.import_module("torch._dynamo.variables.streams")  # defines the operators
    record = torch.ops.streams.record_event
    graph = fx.Graph()
    graph.call_function(record.default if overload else record, (0, 1))
    module = fx.GraphModule(torch.nn.Module(), graph)
    _refuse_streams(module, parse({}))
    _refuse_streams(on("cpu"), parse(asked))
    with pytest.raises(UnsupportedError, match=f"{next(iter(asked))} .* streams of its own"):
        _refuse_streams(module, parse(asked))


def test_streams_are_known_behind_aotautograd_too() -> None:
    def is_of_streams(name: str) -> bool:
        return dynamo.is_of_streams(SimpleNamespace(op="call_function", target=_Named(name)))

    assert is_of_streams("control_deps") and is_of_streams("streams.wait_event.default")
    assert not is_of_streams("aten.add.Tensor")


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_torch_can_be_asked_for_its_workspaces() -> None:
    assert devices.blas_workspace_bytes() is not None
