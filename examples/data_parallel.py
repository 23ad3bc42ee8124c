"""DistributedDataParallel: two processes on the CPU, each within the budget.

    python -m examples.data_parallel

With a launcher of your own (torchrun), keep ``main`` and drop ``start``. Three things to know:

1. Compile the model first, then wrap it: ``DistributedDataParallel(torch.compile(model, ...))``.
   The other way round, Dynamo cuts the model at DDP's buckets: one graph becomes several, and the
   budget must then be shared among them.
2. DDP keeps buckets of gradients, as many bytes as the gradients themselves. No compiled graph knows
   of them: set them aside with ``reserve``. ``gradient_as_bucket_view=True`` makes gradients
   live in the buckets after the first step, and saves the second copy.
3. Give the budget in bytes or as a share, not "auto": each process would take what its own device
   has free, and plans could differ. From the same budget, all processes make the same plan.
"""

from __future__ import annotations

import os
import socket

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import satcompile
from examples.tiny import BATCH, LENGTH, gpt2, say_what_it_took, windows

PROCESSES = 2
STEPS = 4
BUDGET = "12MB"


def main(rank: int, port: int) -> None:
    """What every process runs."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    model = gpt2()
    buckets = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    options = {"memory_budget": BUDGET, "reserve": buckets}
    compiled = torch.compile(model, backend="sat", options=options)
    parallel = DistributedDataParallel(compiled, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    each = BATCH // PROCESSES
    losses = []
    for number in range(STEPS):
        batch = windows(number * BATCH + rank * each, each)  # every process has its own
        loss = parallel(input_ids=batch, labels=batch).loss
        loss.backward()  # DDP averages gradients as they appear
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(mean := loss.detach() / PROCESSES)
        losses.append(mean.item())

    def step() -> object:
        output = parallel(input_ids=batch, labels=batch)
        output.loss.backward()
        return output

    satcompile.measure_peak(step)
    if rank == 0:
        print("losses:", " ".join(f"{loss:.4f}" for loss in losses))
        print(f"{PROCESSES} processes, {each} x {LENGTH} bytes each")
    check_alike(model)
    for number in range(PROCESSES):
        if rank == number:
            say_what_it_took(model)
        dist.barrier()
    dist.destroy_process_group()


def check_alike(model: torch.nn.Module) -> None:
    """All processes have the same weights."""
    for parameter in model.parameters():
        copies = [torch.empty_like(parameter) for _ in range(PROCESSES)]
        dist.all_gather(copies, parameter.detach())
        assert all(torch.equal(copies[0], other) for other in copies)


def start() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(main, args=(port,), nprocs=PROCESSES)


if __name__ == "__main__":
    start()
