"""Builds the stub, and runs scripts on it in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = os.environ.get("SATCOMPILE_CUDA_PYTHON", "")


@dataclass(frozen=True)
class Stub:
    """A built stub; ``folder`` has its libraries, and caches that no other process shares."""

    folder: Path

    def environment(self, **settings: str) -> dict[str, str]:
        library = str(self.folder / "libcuda.so.1")
        inherited = dict(os.environ)
        inherited.pop("CUBLAS_WORKSPACE_CONFIG", None)  # set for the tests of this process
        return {
            **inherited,
            "STUB_LIBRARY": library,
            "LD_PRELOAD": library,
            "LD_LIBRARY_PATH": str(self.folder),
            "TRITON_LIBCUDA_PATH": str(self.folder),
            "TRITON_CACHE_DIR": str(self.folder / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **settings,
        }

    def run(self, script: str, *arguments: str, **settings: str) -> list[dict[str, Any]]:
        """The lines of JSON that ``tests/stub_gpu/script`` prints."""
        done = self._python("-m", f"tests.stub_gpu.{script}", *arguments, **settings)
        if done.returncode != 0:
            raise AssertionError(f"exit status {done.returncode}:\n{done.stderr[-3000:]}")
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines]

    def pytest(self, *arguments: str, **settings: str) -> str:
        """The last line of tests that want a GPU."""
        plugin = ("-p", "tests.stub_gpu.plugin", "-p", "no:cacheprovider", "-q", "--tb=short")
        done = self._python("-m", "pytest", *plugin, *arguments, **settings)
        if done.returncode != 0:
            raise AssertionError(f"exit status {done.returncode}:\n{done.stdout[-6000:]}")
        return done.stdout.strip().splitlines()[-1]

    def _python(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PYTHON, *arguments], env=self.environment(**settings), cwd=ROOT, capture_output=True,
            text=True, timeout=800, check=False,
        )  # fmt: skip


def build(folder: Path) -> Stub:
    """Compile driver and NVML, with the headers of torch's own packages and the two beside them."""
    packages = _packages_of(PYTHON)
    include = packages / "nvidia" / "cu13" / "include"
    compiler = [os.environ.get("CXX", "g++"), "-O1", "-w", "-fPIC", "-shared"]
    _run(
        [*compiler, "-std=c++17", f"-I{include}", f"-I{include / 'cccl'}", str(HERE / "fake_cuda.cpp"),
         "-o", str(folder / "libcuda.so.1"), "-ldl"]
    )  # fmt: skip
    _run([*compiler, "-xc", str(HERE / "fake_nvml.c"), "-o", str(folder / "libnvidia-ml.so.1")])
    return Stub(folder)


def _packages_of(python: str) -> Path:
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
