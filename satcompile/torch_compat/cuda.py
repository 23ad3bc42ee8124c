"""What torch's libraries take on a GPU."""

from __future__ import annotations

import ctypes
import os

import torch

from satcompile.torch_compat.versions import version


def blas_workspace_bytes() -> int | None:
    """What torch takes for cuBLAS and cuBLASLt in each thread that multiplies on the current CUDA
    device, and keeps; where workspaces do not stay, the most that it takes for one product. Torch's own
    answer, the user's settings (CUBLAS_WORKSPACE_CONFIG and others) among its reasons. None where it
    cannot be asked.

    No Python name leads to these two functions; the library exports them. Where both libraries share
    one workspace, as from 2.12 on, the second is counted too many: 1 MiB. 2.11, 2.14 (CUDA builds).
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
    """Whether torch keeps what it has given cuBLAS and cuBLASLt. From 2.15 on (pull request 194311) it
    takes a workspace for each product and gives it back behind it, unless the user asks for the cache.
    2.11, 2.14, 2.15 (CUDA builds)."""
    return version() < (2, 15) or os.environ.get("TORCH_CUBLAS_WORKSPACE_CACHE") == "1"


_BLAS_WORKSPACE_SIZES = (
    "_ZN2at4cuda22getChosenWorkspaceSizeEv",
    "_ZN2at4cuda26getCUDABlasLtWorkspaceSizeEv",
)
