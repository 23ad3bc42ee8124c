"""Kernels that are our own: C++ for the CPU, Triton for the GPU."""
