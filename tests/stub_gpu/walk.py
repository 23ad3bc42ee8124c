"""Predicted against requested: no kernel is run, none built in vain, the allocator is torch's own.

python -m tests.stub_gpu.walk BUDGET CASE [CASE ...], a budget of "-" for none
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import nullcontext
from typing import Any

# Triton's interpreter builds no kernels; none is run, either.
os.environ.setdefault("TRITON_INTERPRET", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402

import satcompile  # noqa: E402
from satcompile.runtime import registry  # noqa: E402
from satcompile.torch_compat import cuda  # noqa: E402
from tests.stub_gpu.zoo import CASES, Case  # noqa: E402


def skip_kernels() -> None:
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from triton.runtime.interpreter import GridExecutor

    def build_at_most(self, *args, **kwargs) -> None:
        """Inductor asks a fused kernel that it has just timed for its launcher."""
        if not self.triton_interpret and not self.launchers:
            self.precompile()
            self.launchers = self.launchers[:1]

    CachingAutotuner.run = build_at_most
    # Our own kernels, too: the interpreter keeps what it is given until the collector comes.
    GridExecutor.__call__ = lambda self, *args, **kwargs: None


def measured(case: Case, budget: str) -> dict[str, Any]:
    model, inputs = case.build()
    model = model.to("cuda", case.dtype).train()
    inputs = {
        name: value.to("cuda", case.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if case.fuse is not None:
        satcompile.fuse_optimizer(optimizer, **case.fuse)
    options = dict(case.options) | ({} if budget == "-" else {"memory_budget": budget})
    run = torch.compile(model, backend="sat", options=options, dynamic=case.dynamic)

    def forward_backward() -> None:
        with torch.autocast("cuda", torch.bfloat16) if case.autocast else nullcontext():
            output = run(**inputs)
        loss = output if isinstance(output, torch.Tensor) else output.loss
        loss.backward()

    def update() -> None:
        if case.fuse is not None:
            optimizer.step()
        optimizer.zero_grad()

    torch.use_deterministic_algorithms(case.deterministic)
    for _ in range(2):
        forward_backward()
        update()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    forward_backward()
    after = torch.cuda.memory_stats()
    (graph,) = satcompile.report(run).graphs
    return {
        "requested_bytes": after["requested_bytes.all.peak"]
        - before["requested_bytes.all.current"],
        "allocated_bytes": after["allocated_bytes.all.peak"]
        - before["allocated_bytes.all.current"],
        "predicted_bytes": graph.predicted_peak_bytes - graph.resident_bytes,
        "resident_bytes": graph.resident_bytes,
        "workspaces_stay": cuda.blas_workspaces_stay(),
        "workspace_bytes": graph.resident["workspaces"],
        "budget_bytes": graph.budget_bytes,
        "prediction": graph.prediction,
        "notes": graph.notes,
    }


def main() -> None:
    budget, *names = sys.argv[1:]
    skip_kernels()
    torch.backends.cudnn.enabled = False  # the stub has none
    torch.backends.cuda.enable_cudnn_sdp(False)
    for name in names:
        torch.compiler.reset()
        registry.forget_all()
        torch.manual_seed(0)
        print(json.dumps({"case": name} | measured(CASES[name], budget)), flush=True)
    os._exit(0)  # what torch does at exit asks the device for more


if __name__ == "__main__":
    main()
