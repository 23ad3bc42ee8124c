"""Limits on the peak are rounded down to a grid of shares of the default's peak.

Generated code differs from the simulation by a few percent, up or down. On the grid two budgets
that are close together get the same plan, and of two that are not, the lower one has the lower
peak.
"""

from __future__ import annotations

import math

RUNG = 0.975  # of one limit to the next


def rung_below(limit_bytes: int, default_peak_bytes: int) -> int:
    """The highest rung of the grid that is not above the limit."""
    if limit_bytes >= default_peak_bytes or limit_bytes <= 0:
        return limit_bytes
    number = math.ceil(_number(limit_bytes, default_peak_bytes))
    higher = _rung(number - 1, default_peak_bytes)  # rounded down to bytes
    return higher if higher <= limit_bytes else _rung(number, default_peak_bytes)


def rung_above(limit_bytes: int, default_peak_bytes: int) -> int:
    """The lowest rung of the grid that is not below the limit."""
    if limit_bytes >= default_peak_bytes or limit_bytes <= 0:
        return limit_bytes
    rung_bytes = _rung(math.floor(_number(limit_bytes, default_peak_bytes)), default_peak_bytes)
    return rung_bytes if rung_bytes >= limit_bytes else limit_bytes


def _number(limit_bytes: int, default_peak_bytes: int) -> float:
    return math.log(limit_bytes / default_peak_bytes) / math.log(RUNG)


def _rung(number: int, default_peak_bytes: int) -> int:
    return int(default_peak_bytes * RUNG**number)
