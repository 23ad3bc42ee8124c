"""Sizes in bytes as people write and read them: 4096, "6GiB", "800MB"; and times."""

from __future__ import annotations

import re

from pydantic import ByteSize, TypeAdapter, ValidationError

# ByteSize would read only the start of "6GiB or so" and "1,5GiB" and ignore the rest.
_ONE_SIZE = r"\s*\d*\.?\d+\s*[A-Za-z]*\s*"


def read_size(value: int | str) -> int:
    """Read a size in bytes.

    Raises:
        ValueError: ``value`` is not a size.
    """
    if isinstance(value, str) and not re.fullmatch(_ONE_SIZE, value):
        raise ValueError(f"{value!r} is not a size in bytes")
    try:
        return int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError:
        raise ValueError(f"{value!r} is not a size in bytes") from None


def format_bytes(num_bytes: float | None) -> str:
    """Format bytes in binary units: 1.50 GiB."""
    if num_bytes is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024 or unit == "GiB":
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1024
    raise AssertionError


def format_change(num_bytes: int) -> str:
    """Format a change in bytes with its sign: +1.50 GiB."""
    return f"{'+' if num_bytes > 0 else ''}{format_bytes(num_bytes)}"


def format_time(time_us: float) -> str:
    """Format a time in the unit that suits: 1.5 ms."""
    if time_us < 1e3:
        return f"{time_us:.0f} us"
    return f"{time_us / 1e3:.1f} ms" if time_us < 1e6 else f"{time_us / 1e6:.2f} s"
