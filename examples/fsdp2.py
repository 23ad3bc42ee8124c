"""FSDP2 (``fully_shard``), today: ``backend="sat"`` trains it, but not within a budget.

    python -m examples.fsdp2

FSDP2 gathers the parameters of a block before it runs and scatters its gradients afterwards, between
the compiled graphs and in memory that these do not see. A ``memory_budget`` is therefore refused, by
name; and ``satcompile.fuse_optimizer`` refuses the shards (DTensors). What is left is
``torch.compile``'s own plan, block by block, with torch's own optimizer, and torch's own ways to
save memory beside it (``torch.utils.checkpoint``). Where every process can hold the parameters, use
DistributedDataParallel, beside which a budget holds: ``examples/data_parallel.py``.
"""

from __future__ import annotations

import os
import socket

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import satcompile
from examples.tiny import BATCH, gpt2, windows

PROCESSES = 2
STEPS = 4


def sharded(backend: str | None, **how: object) -> torch.nn.Module:
    """The GPT-2 over all processes, its blocks compiled one by one unless ``backend`` is None."""
    model, mesh = gpt2(), init_device_mesh("cpu", (PROCESSES,))
    for block in model.transformer.h:
        if backend is not None:
            block.compile(backend=backend, **how)
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model: torch.nn.Module, rank: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    each, losses = BATCH // PROCESSES, []
    for number in range(STEPS):
        batch = windows(number * BATCH + rank * each, each)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def refused(rank: int) -> list[str]:
    """What the two refusals say."""
    model = sharded("sat", options={"memory_budget": "80% of default"})
    messages = []
    try:
        train(model, rank)
    except satcompile.UnsupportedError as error:
        messages.append(str(error).partition("\n")[0])
    try:
        satcompile.fuse_optimizer(torch.optim.AdamW(model.parameters()))
    except satcompile.UnsupportedError as error:
        messages.append(str(error))
    return messages


def main(rank: int, port: int) -> None:
    """What every process runs."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    compiled, eager = train(sharded("sat"), rank), train(sharded(None), rank)
    messages = refused(rank)
    if rank == 0:
        print("losses:", " ".join(f"{loss:.4f}" for loss in compiled))
        print("eager:", " ".join(f"{loss:.4f}" for loss in eager))
        for message in messages:
            print("refused:", message)
    dist.destroy_process_group()


def start() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(main, args=(port,), nprocs=PROCESSES)


if __name__ == "__main__":
    start()
