"""The CUDA path without a GPU: torch's CUDA build over a device that is not there.

``fake_cuda.cpp`` is that device. Torch's CUDA build is another than the one that the other tests run
on, and so these run in processes of another Python: SATCOMPILE_CUDA_PYTHON names it.
"""
