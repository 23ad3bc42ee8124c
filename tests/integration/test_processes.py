"""What takes more than one process: warm caches, and data-parallel training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import satcompile
from tests.integration.test_use import Net

_CACHED = """
import json, sys, torch, satcompile
from tests.integration.test_use import Net
torch.manual_seed(0)
model, x = Net().double(), torch.randn(64, 16, dtype=torch.float64)
budget = json.loads(sys.argv[1])
options = {"memory_budget": budget} if budget else {}
torch.compile(model, backend="sat", options=options)(x).square().sum().backward()
report = satcompile.report(model).to_dict()
for graph in report["graphs"]:
    for row in graph["passes"]:
        del row["time_us"]
gradients = [p.grad.flatten().tolist() for p in model.parameters()]
from torch._dynamo.utils import counters
hits = counters["inductor"]["fxgraph_cache_hit"]
print(json.dumps({"report": report, "gradients": gradients, "hits": hits}))
"""


def _run(cache: Path, budget: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", _CACHED, json.dumps(budget)],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_warm_cache_gives_the_same_plan_gradients_and_report(tmp_path: Path) -> None:
    cold = _run(tmp_path, "85% of default")
    warm = _run(tmp_path, "85% of default")
    assert cold["hits"] == 0 and warm["hits"] == 2
    assert warm["report"] == cold["report"]
    assert warm["gradients"] == cold["gradients"]
    other = _run(tmp_path, None)
    assert other["hits"] == 0
    unlimited, limited = other["report"]["graphs"][0], cold["report"]["graphs"][0]
    assert unlimited["budget_bytes"] is None
    assert unlimited["saved_bytes"] > limited["saved_bytes"]


def _train_one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Net().double()
    parallel = nn.parallel.DistributedDataParallel(model)
    compiled = torch.compile(parallel, backend="sat", options={"memory_budget": "90% of default"})
    x = torch.randn(2, 64, 16, dtype=torch.float64)[rank]
    for _ in range(2):
        model.zero_grad()
        compiled(x).square().mean().backward()
    report = satcompile.report(model).to_dict()["graphs"]
    torch.save(
        {
            "gradients": [p.grad for p in model.parameters()],
            "plan": [[row["name"] for row in graph["saved"]] for graph in report],
        },
        f"{folder}/rank{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_data_parallel_processes_get_exact_gradients_and_equal_plans(tmp_path: Path) -> None:
    mp.spawn(_train_one_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert ranks[0]["plan"] == ranks[1]["plan"]
    torch.manual_seed(0)
    model = Net().double()
    x = torch.randn(2, 64, 16, dtype=torch.float64)
    model(x).square().mean().backward()
    for rank in ranks:
        for found, parameter in zip(rank["gradients"], model.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-11, atol=1e-13)


def _fuse_on_one_rank(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Net().double()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
    satcompile.fuse_optimizer(optimizer, in_backward=True)
    compiled = torch.compile(parallel, backend="sat")
    x = torch.randn(2, 64, 16, dtype=torch.float64)[rank]
    for _ in range(3):
        compiled(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save([p.detach() for p in model.parameters()], f"{folder}/rank{rank}.pt")
    sharded = fully_shard(Net())
    try:
        satcompile.fuse_optimizer(torch.optim.AdamW(sharded.parameters()))
    except satcompile.UnsupportedError as error:
        assert "DTensor" in str(error) and "FSDP2" in str(error)
    else:
        raise AssertionError("FSDP2 must be refused")
    dist.destroy_process_group()


@pytest.mark.slow
def test_data_parallel_processes_update_by_the_mean_and_fsdp2_is_refused(tmp_path: Path) -> None:
    mp.spawn(_fuse_on_one_rank, args=(str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    model = Net().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
    x = torch.randn(2, 64, 16, dtype=torch.float64)
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for rank in range(2):
        for found, wanted in zip(
            torch.load(tmp_path / f"rank{rank}.pt"), model.parameters(), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def _lose_scores_of_first_weight() -> None:
    from satcompile.updates.sparsity.masks import Mask

    original = Mask.take_incoming
    chosen: list[Mask] = []

    def take(self: Mask, weight: torch.Tensor) -> torch.Tensor | None:
        found = original(self, weight)
        chosen.append(self)
        return None if self is chosen[0] else found

    Mask.take_incoming = take  # type: ignore[method-assign]


def _sparsify_on_one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Net().double()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = satcompile.fuse_optimizer(torch.optim.AdamW(model.parameters(), lr=1e-2))
    if rank:  # one process that has no scores for a weight must not keep the other waiting
        _lose_scores_of_first_weight()
    sparsity = {"density": 0.3, "block": 4, "interval": 2}
    compiled = torch.compile(parallel, backend="sat", options={"sparsity": sparsity})
    torch.manual_seed(rank)
    for _ in range(6):
        x = torch.randn(64, 16, dtype=torch.float64) * (1 + rank)  # they would choose otherwise
        compiled(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = satcompile.sparsity_state(model)
    weights = [p.detach() for p in model.parameters()]
    torch.save({"masks": state.masks, "weights": weights}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_data_parallel_processes_freeze_the_same_tiles(tmp_path: Path) -> None:
    mp.spawn(_sparsify_on_one_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert first["masks"] and first["masks"].keys() == second["masks"].keys()
    assert all(torch.equal(mask, second["masks"][name]) for name, mask in first["masks"].items())
    assert not all(mask.all() for mask in first["masks"].values())
    for mine, theirs in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(mine, theirs)


def test_no_op_source_change_changes_the_cache_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from satcompile.compile import generation
    from satcompile.options import parse
    from satcompile.planner.request import Request, Subject

    def no_partition(*args, **kwargs):
        raise AssertionError

    def key(options: dict, limit_bytes: int | None = None) -> str:
        request = Request(parse(options), Subject(0), limit_bytes)
        return generation.Partitioner(request, False, no_partition).uuid()

    base = key({})
    assert key({}) == base
    assert key({"reserve": 1}) != base
    assert key({}, limit_bytes=100) != base
    assert key({"memory_budget": "1GiB"}) != key({"memory_budget": "2GiB"})
    monkeypatch.setattr(generation, "source_digest", lambda: "another source")
    assert key({}) != base
