"""Memory that torch's libraries take on a GPU."""

from __future__ import annotations

import ctypes
import os

import torch

from satcompile.torch_compat.versions import version


def blas_workspace_bytes() -> int | None:
    """Bytes that torch takes and keeps for cuBLAS and cuBLASLt in each thread that multiplies on
    the current CUDA device. Where workspaces do not stay, the most bytes that it takes for one
    product. Torch itself gives the figures, which depend on the user's settings
    (CUBLAS_WORKSPACE_CONFIG and others). None where torch cannot be asked.

    No Python name leads to these two functions; the library exports them. Where both libraries
    share one workspace, as from 2.12 on, the second adds 1 MiB too much.
    2.11, 2.14 (CUDA builds).
    """
    library = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cuda.so")
    try:
        loaded = ctypes.CDLL(library)
        sizes = [getattr(loaded, name) for name in _BLAS_WORKSPACE_SIZES]
    except (OSError, AttributeError):
        return None
    for size in sizes:
        size.restype = ctypes.c_size_t
    chosen_bytes, lt_bytes = (int(size()) for size in sizes)
    if not blas_workspaces_stay():
        return max(chosen_bytes, lt_bytes)
    return chosen_bytes + (lt_bytes if chosen_bytes else 0)


def blas_workspaces_stay() -> bool:
    """Whether torch keeps the workspaces of cuBLAS and cuBLASLt. From 2.15 on (pull request 194311)
    it takes a workspace for each product and frees it afterwards, unless the user asks for the
    cache. 2.11, 2.14, 2.15 (CUDA builds)."""
    return version() < (2, 15) or os.environ.get("TORCH_CUBLAS_WORKSPACE_CACHE") == "1"


_BLAS_WORKSPACE_SIZES = (
    "_ZN2at4cuda22getChosenWorkspaceSizeEv",
    "_ZN2at4cuda26getCUDABlasLtWorkspaceSizeEv",
)
