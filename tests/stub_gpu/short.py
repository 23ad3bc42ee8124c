"""A few steps on a device that may be too small, with ``memory_budget="auto"``: they run, or are refused.

python -m tests.stub_gpu.short BATCH
"""

from __future__ import annotations

import json
import os
import sys
import warnings

os.environ["TRITON_INTERPRET"] = "1"
warnings.filterwarnings("ignore")

import torch  # noqa: E402

import satcompile  # noqa: E402
from tests.stub_gpu.walk import skip_kernels  # noqa: E402
from tests.stub_gpu.zoo import TOKENS, VOCABULARY, Llama  # noqa: E402


def main() -> None:
    skip_kernels()
    batch = int(sys.argv[1])
    model = Llama(layers=4).cuda()
    tokens = torch.randint(0, VOCABULARY, (batch, TOKENS), device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    run = torch.compile(model, backend="sat", options={"memory_budget": "auto"})
    ended = "trained"
    try:
        for _ in range(4):
            run(tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
    except (satcompile.BudgetError, torch.OutOfMemoryError) as error:
        ended = type(error).__name__
    found = {"ended": ended, "retries": torch.cuda.memory_stats()["num_alloc_retries"]}
    found |= {"total_bytes": torch.cuda.mem_get_info()[1]}
    if ended == "trained":
        graph = satcompile.report(run).graphs[-1]
        found |= {
            "budget_bytes": graph.budget_bytes,
            "predicted_bytes": graph.predicted_peak_bytes,
            "default_bytes": graph.default_peak_bytes,
            "allocated_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
