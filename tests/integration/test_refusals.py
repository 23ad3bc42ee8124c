"""What cannot be honoured is answered by name, never by an eager run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import satcompile
from satcompile import backend
from satcompile.compile import planning
from satcompile.errors import OptionError, UnsupportedError
from satcompile.torch_compat import dynamo, versions
from tests.integration.test_use import Net


def _train(options: dict[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    model = Net()
    torch.compile(model, backend="sat", options=options, **kwargs)(
        torch.randn(64, 16)
    ).sum().backward()
    return model


def test_updates_in_the_backward_are_refused_beside_cuda_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "is_on_cpu", lambda gm: False)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    satcompile.fuse_optimizer(optimizer, in_backward=True)
    options = {"inductor": {"triton.cudagraphs": True}}
    run = torch.compile(model, backend="sat", options=options)
    with pytest.raises(UnsupportedError, match=r"in_backward=True.*CUDA graphs"):
        run(torch.randn(64, 16)).sum().backward()


def test_streams_are_refused_beside_updates_in_the_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dynamo, "is_of_streams", lambda node: True)  # no CPU has any
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    satcompile.fuse_optimizer(optimizer, in_backward=True)
    run = torch.compile(model, backend="sat")
    with pytest.raises(UnsupportedError, match=r"in_backward=True.*streams of its own"):
        run(torch.randn(64, 16)).sum().backward()


def test_a_newer_torch_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda: (2, 99))
    backend._warn_of_untested_torch.cache_clear()
    with pytest.warns(UserWarning, match="up to 2.15, not with this torch") as told:
        for _ in range(2):
            torch.compiler.reset()
            _train()
    assert len([each for each in told if "satcompile" in str(each.message)]) == 1
    backend._warn_of_untested_torch.cache_clear()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"memory_budgt": "1GiB"}, "Did you mean 'memory_budget'"),
        ({"memory_budget": "-1GB"}, "'-1GB', which is not a size"),
        ({"memory_budget": "12 apples"}, "'12 apples', which is not a size"),
        ({"memory_budget": 0}, "must be above 0"),
        ({"memory_budget": float("nan")}, "is nan"),
    ],
)
def test_options_are_refused_through_torch_compile(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        _train(options)


def test_a_mode_is_refused() -> None:
    with pytest.raises(OptionError, match="takes no mode"):
        _train(mode="max-autotune")


def test_suppressed_errors_are_refused_and_do_not_run_eager() -> None:
    with (
        torch._dynamo.config.patch(suppress_errors=True),
        pytest.raises(UnsupportedError, match="suppress_errors is on"),
    ):
        _train()


def test_compiled_autograd_is_refused() -> None:
    with (
        torch._dynamo.config.patch(compiled_autograd=True),
        pytest.raises(UnsupportedError, match="Compiled autograd is on"),
    ):
        _train()


def test_torchs_own_budget_is_refused_beside_ours() -> None:
    from torch._functorch import config

    with (
        config.patch(activation_memory_budget=0.5),
        pytest.raises(UnsupportedError, match=r"activation_memory_budget is 0\.5"),
    ):
        _train()


def test_a_budget_below_the_floor_names_it() -> None:
    with pytest.raises(satcompile.BudgetError) as caught:
        _train({"memory_budget": "20KB"})
    error = caught.value
    assert error.budget_bytes == 20_000 < error.floor_bytes
    assert error.floor_op in str(error) and "Raise the budget" in str(error)


def test_a_budget_under_fsdp2_is_refused(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        sharded, plain = Net(), Net()
        for model in (sharded, plain):
            model.compile(backend="sat", options={"memory_budget": "1GiB"})
        fully_shard(sharded, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
        with pytest.raises(UnsupportedError, match=r"FSDP2.*Leave memory_budget out"):
            sharded(torch.randn(64, 16))
        plain(torch.randn(64, 16)).sum().backward()  # beside it: nobody's shards
    finally:
        dist.destroy_process_group()


def test_reserve_counts_against_the_budget() -> None:
    with pytest.raises(satcompile.BudgetError, match="reserve"):
        _train({"memory_budget": "1MB", "reserve": 999_000})


def test_auto_takes_what_is_free() -> None:
    graph = satcompile.report(_train({"memory_budget": "auto"})).graphs[0]
    assert graph.budget_bytes > 100 * graph.predicted_peak_bytes


def test_a_verification_failure_stops_the_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    from satcompile.compile import pipeline
    from satcompile.compile.partition import partition

    def broken(graph: Any, plan: Any) -> Any:
        parts = partition(graph, plan)
        node = next(n for n in parts.backward.graph.nodes if n.target is torch.ops.aten.mul.Tensor)
        node.target = torch.ops.aten.add.Tensor
        return parts

    monkeypatch.setattr(pipeline, "partition", broken)
    with pytest.raises(satcompile.VerificationError, match="nothing was run"):
        _train()


def test_a_report_of_what_was_never_compiled() -> None:
    with pytest.raises(satcompile.NotCompiledError, match="no_grad"):
        satcompile.report()
    _train()
    with pytest.raises(satcompile.NotCompiledError, match="No training graph of Linear"):
        satcompile.report(nn.Linear(2, 2))


def test_measuring_under_a_running_profiler_is_refused() -> None:
    from torch.profiler import profile

    with contextlib.ExitStack() as stack:
        stack.enter_context(profile())
        with pytest.raises(UnsupportedError, match="profiler"):
            satcompile.measure_peak(lambda: torch.ones(10))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_of_embeddings_are_refused_by_name(kind: Any) -> None:
    table = kind(10, 4, sparse=True)
    indices = torch.arange(6).reshape(2, 3)
    torch.compiler.reset()
    with pytest.raises(UnsupportedError, match=r"sparse=True.*sparse=False"):
        torch.compile(table, backend="sat")(indices)
    with torch.no_grad():  # nothing has a gradient here
        torch.compile(table, backend="sat")(indices)
