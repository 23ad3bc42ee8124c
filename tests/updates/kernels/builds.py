"""Builds kernels for GPUs that are not there, exactly as a launch with these arguments would."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Build:
    """What the compiler made of a kernel.

    Attributes:
        ptx: its assembly.
        registers: of a thread.
        spilled_bytes: of a thread, stored to memory and loaded from it for want of registers.
    """

    ptx: str
    registers: int
    spilled_bytes: int


class _Target:
    """As much of a driver as compiling needs. Kernels are kept apart by the device's number."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return 1000 + self._capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)


class _Recorder:
    """Stands in for a kernel: builds it for its launch's arguments, and does not launch it."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.built: list[Any] = []

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **settings: Any) -> None:
            self.built.append(self._kernel.warmup(*arguments, grid=grid, **settings))

        return launch


@contextmanager
def building(
    monkeypatch: pytest.MonkeyPatch, capability: int, cache: Path
) -> Iterator[list[Build]]:
    """Every launch within is a build for sm_``capability``; the builds are there at the end.

    ``monkeypatch`` holds it together until it is undone.
    """
    from triton.runtime import driver

    from satcompile.updates.kernels import device_code, device_code_sparse

    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    recorders = []
    for module, name in (
        (device_code, "sweep_kernel"),
        (device_code_sparse, "tile_mm_kernel"),
        (device_code_sparse, "masked_mm_kernel"),
    ):
        recorders.append(_Recorder(getattr(module, name)))
        monkeypatch.setattr(module, name, recorders[-1])
    builds: list[Build] = []
    monkeypatch.setattr(driver, "_active", _Target(capability))
    yield builds
    kernels = [kernel for recorder in recorders for kernel in recorder.built]
    builds.extend(_assembled(kernel, capability, cache) for kernel in kernels)


def _assembled(kernel: Any, capability: int, folder: Path) -> Build:
    from triton import knobs

    folder.mkdir(exist_ok=True)
    source = folder / "kernel.ptx"
    source.write_text(kernel.asm["ptx"])
    name = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    command = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={name}", str(source), "-o", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    used = re.search(r"Used (\d+) registers", said)
    assert used is not None and len(spills) == 2, said
    return Build(kernel.asm["ptx"], int(used[1]), sum(map(int, spills)))
