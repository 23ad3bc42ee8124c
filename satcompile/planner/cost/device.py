"""Devices and their rates, each with its source. Only ratios matter to a plan."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from satcompile.errors import OptionError
from satcompile.torch_compat.cuda import blas_workspace_bytes, blas_workspaces_stay


@dataclass(frozen=True)
class Device:
    """A device's rates for the roofline, and its memory.

    Attributes:
        name: as reports show it.
        kind: "cuda" or "cpu"; some operators take other memory on one than on the other.
        bytes_per_us: memory bandwidth.
        flops_per_us: dense multiply-adds (counted as two) by dtype; ``torch.float32`` is the
            fallback for dtypes not listed.
        kernel_us: fixed cost of starting a kernel.
        transcendental_flops: what one ``exp`` or ``tanh`` costs, in plain operations.
        source: where the figures come from.
        memory_bytes: memory of the device; None where that is the machine's business.
        workspace_bytes: bytes that torch gives its libraries for matrix products and does not take
            back, for the two threads of a training step, the user's and that of the backward.
        product_workspace_bytes: bytes that torch gives them for one product and takes back, from
            2.15 on.
        is_validated: whether predictions were compared with measurements on such a device.
    """

    name: str
    kind: str
    bytes_per_us: float
    flops_per_us: dict[torch.dtype, float] = field(hash=False)
    kernel_us: float
    transcendental_flops: float
    source: str
    memory_bytes: int | None = None
    workspace_bytes: int = 0
    product_workspace_bytes: int = 0
    is_validated: bool = False

    def rate(self, dtype: torch.dtype) -> float:
        return self.flops_per_us.get(dtype, self.flops_per_us[torch.float32])


_THREADS = 2  # that multiply in a training step: the user's, and autograd's for the device
# For each thread, for cuBLAS and cuBLASLt, by torch's rule of 2.11 to 2.15. On a card, we ask torch
# instead.
_WORKSPACE_BYTES = (8320 + 1024) * 1024
_LARGE_WORKSPACE_BYTES = (32 + 1) * 2**20  # Hopper; from torch 2.14 on Blackwell, too


def _gpu(
    name: str,
    gbytes: float,
    gbytes_s: float,
    bf16: float,
    tf32: float,
    fp64: float,
    source: str,
    fp16: float | None = None,
    large_workspace: bool = False,
) -> Device:
    flops = {
        torch.bfloat16: bf16 * 1e6,
        torch.float16: (bf16 if fp16 is None else fp16) * 1e6,
        torch.float32: tf32 * 1e6,
        torch.float64: fp64 * 1e6,
    }
    without = Device(
        name, "cuda", gbytes_s * 1e3, flops, 3.0, 4.0, source, memory_bytes=int(gbytes * 1e9)
    )
    return _with_workspaces(
        without, _LARGE_WORKSPACE_BYTES if large_workspace else _WORKSPACE_BYTES
    )


def _with_workspaces(device: Device, num_bytes: int) -> Device:
    """The device with its workspaces; ``num_bytes`` are for one thread."""
    if blas_workspaces_stay():
        return replace(device, workspace_bytes=_THREADS * num_bytes, product_workspace_bytes=0)
    return replace(device, workspace_bytes=0, product_workspace_bytes=num_bytes)


_gpu_of_large_workspace = partial(_gpu, large_workspace=True)  # Hopper and Blackwell
_RTX_50 = "NVIDIA RTX Blackwell architecture white paper"
_RTX_40 = "NVIDIA Ada architecture white paper"
_LAPTOP = "NVIDIA's laptop comparison; FLOP/s from cores and boost clock"

# Memory in GB of 10^9 bytes, which is the cautious reading; GB/s; and dense peaks in TFLOP/s
# (bf16, tf32 or fp32, fp64), from the vendor's data sheets. Half precision is with sums in float32,
# as training uses it. Cards without native bf16 (T4, V100) run it at the rate of float32. A card
# gets the first entry whose words are all in its name. Laptops come before desktops; if one name is
# part of another ("L4" of "L40S"), the longer one comes first.
_GPUS = {
    "GB200": _gpu_of_large_workspace(
        "GB200", 186, 8000, 2500, 1250, 40, "NVIDIA GB200 NVL72 data sheet, a GPU"
    ),
    "B200": _gpu_of_large_workspace(
        "B200", 180, 8000, 2250, 1125, 37, "NVIDIA HGX B200 data sheet, a GPU"
    ),
    "RTX PRO 6000": _gpu_of_large_workspace(
        "RTX PRO 6000",
        96,
        1597,
        503.8,
        251.9,
        1.97,
        "NVIDIA RTX PRO 6000 Blackwell data sheet, server edition",
    ),
    "5090 Laptop": _gpu_of_large_workspace("RTX 5090 Laptop", 24, 896, 82.5, 41.3, 0.5, _LAPTOP),
    "5090": _gpu_of_large_workspace("RTX 5090", 32, 1792, 209.5, 104.8, 1.64, _RTX_50),
    "5080": _gpu_of_large_workspace("RTX 5080", 16, 960, 112.6, 56.3, 0.88, _RTX_50),
    "MI325X": _gpu("MI325X", 256, 6000, 1307.4, 653.7, 163.4, "AMD Instinct MI325X data sheet"),
    "MI300X": _gpu("MI300X", 192, 5300, 1307.4, 653.7, 163.4, "AMD Instinct MI300X data sheet"),
    "H200": _gpu_of_large_workspace("H200", 141, 4800, 989, 494, 67, "NVIDIA H200 data sheet, SXM"),
    "H100": _gpu_of_large_workspace("H100", 80, 3350, 989, 494, 67, "NVIDIA H100 data sheet, SXM"),
    "A100-40GB": _gpu("A100-40GB", 40, 1555, 312, 156, 9.7, "NVIDIA A100 40GB data sheet, SXM"),
    "A100": _gpu("A100", 80, 2039, 312, 156, 19.5, "NVIDIA A100 80GB data sheet, SXM"),
    "L40S": _gpu("L40S", 48, 864, 362, 183, 1.4, "NVIDIA L40S data sheet"),
    "L4": _gpu("L4", 24, 300, 121, 60, 0.5, "NVIDIA L4 data sheet"),
    "A10": _gpu("A10", 24, 600, 125, 62.5, 0.98, "NVIDIA A10 data sheet"),
    "RTX A6000": _gpu(
        "RTX A6000", 48, 768, 154.8, 77.4, 1.21, "NVIDIA RTX A6000 data sheet, GA102 white paper"
    ),
    "RTX 6000 Ada": _gpu(
        "RTX 6000 Ada",
        48,
        960,
        364.2,
        182.1,
        1.42,
        "NVIDIA RTX 6000 Ada data sheet, half of the sparse rate",
    ),
    "4090 Laptop": _gpu("RTX 4090 Laptop", 16, 576, 79.4, 39.7, 0.62, _LAPTOP),
    "4080 Laptop": _gpu("RTX 4080 Laptop", 12, 432, 67.7, 33.8, 0.53, _LAPTOP),
    "4060 Laptop": _gpu("RTX 4060 Laptop", 8, 256, 29.1, 14.6, 0.23, _LAPTOP),
    "4090": _gpu("RTX 4090", 24, 1008, 165, 82.6, 1.29, _RTX_40),
    "3090": _gpu("RTX 3090", 24, 936, 71, 35.6, 0.56, "NVIDIA Ampere GA102 white paper"),
    "T4": _gpu("T4", 16, 320, 8.1, 8.1, 0.25, "NVIDIA T4 data sheet", fp16=65),
    "V100": _gpu("V100", 32, 900, 15.7, 15.7, 7.8, "NVIDIA V100 data sheet, SXM2", fp16=125),
}

# One core of a current server: AVX-512 or AVX2 at about 2.5 GHz for matrix products, and its
# share of the memory bandwidth. Rounded; measured on the machines of this project's CI.
_CPU_CORE_FLOPS_PER_US = 5e4
_CPU_CORE_BYTES_PER_US = 8e3


def cpu(num_threads: int) -> Device:
    """A CPU with this many threads; memory bandwidth saturates at eight cores' worth."""
    flops = _CPU_CORE_FLOPS_PER_US * num_threads
    return Device(
        f"cpu ({num_threads} threads)",
        "cpu",
        _CPU_CORE_BYTES_PER_US * min(num_threads, 8),
        {
            torch.float32: flops,
            torch.float64: flops / 2,
            torch.bfloat16: flops,
            torch.float16: flops / 2,
        },
        1.0,
        12.0,
        "rounded figures of one server core",
        is_validated=True,
    )


def device_of(device: torch.device) -> Device:
    """Rates of the device that the graph runs on."""
    if device.type == "cpu":
        return cpu(torch.get_num_threads())
    if device.type == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device)
        return _as_it_is(_listed(properties.name) or _unlisted(properties), properties)
    return _GPUS["A100"]


def _listed(name: str) -> Device | None:
    """The entry for what a driver calls a card ("NVIDIA GeForce RTX 4090 Laptop GPU")."""
    words = set(name.replace("-", " ").split())
    is_laptop = "Laptop" in words
    for key, known in _GPUS.items():
        if set(key.replace("-", " ").split()) <= words and ("Laptop" in key) == is_laptop:
            return known
    return None


def _as_it_is(known: Device, properties: Any) -> Device:
    """The device with the memory that the driver names, and torch's workspace for cuBLAS here."""
    asked = blas_workspace_bytes()
    found = known if asked is None else _with_workspaces(known, asked)
    return replace(found, memory_bytes=properties.total_memory)


def known_gpu(key: str) -> Device:
    """An entry of the table ("A100"), for plans that must not depend on the machine at hand.

    Raises:
        KeyError: the table has no such entry.
    """
    if key not in _GPUS:
        raise KeyError(f"no rates are known for {key!r}; known: {', '.join(_GPUS)}")
    return _GPUS[key]


def device_named(text: str) -> Device:
    """A device by a name that people type: "h200", "rtx 4090", "RTX4090", "cpu".

    Raises:
        OptionError: there is no device of that name.
    """
    wanted = _plain(text)
    if wanted == "cpu":
        return cpu(torch.get_num_threads())
    by_name = {_plain(key): gpu for key, gpu in _GPUS.items()}
    by_name |= {_plain(gpu.name): gpu for gpu in _GPUS.values()}
    if wanted in by_name:
        return by_name[wanted]
    close = difflib.get_close_matches(wanted, [*by_name, "cpu"], n=1, cutoff=0.5)
    nearest = f"Did you mean {close[0]!r}? " if close else ""
    raise OptionError(
        f"There are no figures for a device called {text!r}. {nearest}Devices: "
        f"{', '.join(gpu.name for gpu in _GPUS.values())}, cpu. For another GPU take the one that is "
        "nearest in bandwidth and FLOP/s, and give the memory as the budget."
    )


def all_gpus() -> tuple[Device, ...]:
    """All GPUs of the table."""
    return tuple(_GPUS.values())


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _unlisted(properties: Any) -> Device:
    """Rates of a GPU that is not in the table, scaled from the A100 by multiprocessors."""
    share = properties.multi_processor_count / 108
    known = _GPUS["A100"]
    return Device(
        properties.name,
        known.kind,
        known.bytes_per_us * share,
        {dtype: rate * share for dtype, rate in known.flops_per_us.items()},
        known.kernel_us,
        known.transcendental_flops,
        "scaled from the A100 by the number of multiprocessors",
        workspace_bytes=known.workspace_bytes,
        product_workspace_bytes=known.product_workspace_bytes,
    )
