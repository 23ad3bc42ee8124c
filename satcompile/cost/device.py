"""Devices and their rates, each with its source. Only ratios matter to a plan."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field

import torch

from satcompile.errors import OptionError


@dataclass(frozen=True)
class Device:
    """What the roofline needs to know, and how much memory there is.

    Attributes:
        name: as reports show it.
        kind: "cuda" or "cpu"; some operators take other memory on one than on the other.
        bytes_per_us: memory bandwidth.
        flops_per_us: dense multiply-adds (counted as two) by dtype; ``torch.float32`` is the
            fallback for dtypes not listed.
        kernel_us: fixed cost of starting a kernel.
        transcendental_flops: what one ``exp`` or ``tanh`` costs, in plain operations.
        source: where the figures come from.
        memory_bytes: of the device; None where that is the machine's business.
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
    is_validated: bool = False

    def rate(self, dtype: torch.dtype) -> float:
        return self.flops_per_us.get(dtype, self.flops_per_us[torch.float32])


def _gpu(
    name: str, gbytes: float, gbytes_s: float, bf16: float, tf32: float, fp64: float, source: str
) -> Device:
    flops = {
        torch.bfloat16: bf16 * 1e6,
        torch.float16: bf16 * 1e6,
        torch.float32: tf32 * 1e6,
        torch.float64: fp64 * 1e6,
    }
    return Device(
        name, "cuda", gbytes_s * 1e3, flops, 3.0, 4.0, source, memory_bytes=int(gbytes * 1e9)
    )


# Memory in GB of 10^9 bytes, which is the cautious reading; GB/s; and dense peaks in TFLOP/s
# (bf16, tf32 or fp32, fp64), from the vendor's data sheets. Of two names of which one is part of
# the other ("L40S" and "L4", "A100" and "A10") the longer one comes first.
_GPUS = {
    "H200": _gpu("H200", 141, 4800, 989, 494, 67, "NVIDIA H200 data sheet, SXM"),
    "H100": _gpu("H100", 80, 3350, 989, 494, 67, "NVIDIA H100 data sheet, SXM"),
    "A100-40GB": _gpu("A100-40GB", 40, 1555, 312, 156, 9.7, "NVIDIA A100 40GB data sheet, SXM"),
    "A100": _gpu("A100", 80, 2039, 312, 156, 19.5, "NVIDIA A100 80GB data sheet, SXM"),
    "L40S": _gpu("L40S", 48, 864, 362, 183, 1.4, "NVIDIA L40S data sheet"),
    "L4": _gpu("L4", 24, 300, 121, 60, 0.5, "NVIDIA L4 data sheet"),
    "A10": _gpu("A10", 24, 600, 125, 62.5, 0.98, "NVIDIA A10 data sheet"),
    "4090": _gpu("RTX 4090", 24, 1008, 165, 82.6, 1.29, "NVIDIA Ada architecture white paper"),
    "3090": _gpu("RTX 3090", 24, 936, 71, 35.6, 0.56, "NVIDIA Ampere GA102 white paper"),
}

# One core of a current server: AVX-512 or AVX2 at about 2.5 GHz for matrix products, and its
# share of the memory bandwidth. Rounded; measured on the machines of this project's CI.
_CPU_CORE_FLOPS_PER_US = 5e4
_CPU_CORE_BYTES_PER_US = 8e3


def cpu(num_threads: int) -> Device:
    """A CPU with so many threads; memory bandwidth saturates at eight cores' worth."""
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
        name = torch.cuda.get_device_name(device)
        for key, known in _GPUS.items():
            if key in name:
                return known
        return _unlisted(name, torch.cuda.get_device_properties(device))
    return _GPUS["A100"]


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
        OptionError: there is none of that name.
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
    """The table."""
    return tuple(_GPUS.values())


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _unlisted(name: str, properties: object) -> Device:
    """Rates of a GPU that is not in the table, scaled from the A100 by multiprocessors."""
    share = getattr(properties, "multi_processor_count", 108) / 108
    known = _GPUS["A100"]
    return Device(
        name,
        known.kind,
        known.bytes_per_us * share,
        {dtype: rate * share for dtype, rate in known.flops_per_us.items()},
        known.kernel_us,
        known.transcendental_flops,
        "scaled from the A100 by the number of multiprocessors",
        memory_bytes=getattr(properties, "total_memory", None),
    )
