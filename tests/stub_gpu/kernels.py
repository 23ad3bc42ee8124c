"""Whole graphs' kernels, built for a card by Triton as Inductor asks for it, and what they take there.

STUB_CAPABILITY=80|90|100 python -m tests.stub_gpu.kernels BUDGET CASE [CASE ...]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import torch
import triton

from satcompile.runtime import registry
from tests.stub_gpu.walk import measured
from tests.stub_gpu.zoo import CASES

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Recorder:
    """Stands before Triton's compiler, and keeps what it makes of generated kernels and of ours."""

    def __init__(self) -> None:
        self.built: list[Any] = []
        self._compile: Callable[..., Any] = triton.compile
        triton.compile = triton.compiler.compile = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.built.append(self._compile(*args, **kwargs))
        return self.built[-1]


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and the bytes of its stack: what was spilled for want of registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [str(CUOBJDUMP), "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    used = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    assert used is not None, said
    return {"registers": int(used[1]), "spilled_bytes": int(used[2]) + int(used[3])}


def main() -> None:
    budget, *names = sys.argv[1:]
    torch.backends.cudnn.enabled = False  # the stub has none
    torch.backends.cuda.enable_cudnn_sdp(False)
    recorder = Recorder()
    for name in names:
        torch.compiler.reset()
        registry.forget_all()
        recorder.built.clear()
        torch.manual_seed(0)
        measured(CASES[name], budget)
        rows = [
            {"kernel": built.metadata.name, "arch": built.metadata.target.arch}
            | resources(built.asm["cubin"])
            for built in recorder.built
        ]
        print(json.dumps({"case": name, "kernels": rows}), flush=True)
    os._exit(0)  # what torch does at exit asks the device for more


if __name__ == "__main__":
    main()
