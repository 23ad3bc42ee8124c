"""The versions of torch on which the names of this package were checked."""

from __future__ import annotations

import functools

import torch

NEWEST_TESTED = (2, 15)


@functools.cache
def version() -> tuple[int, int]:
    major, minor, *_ = torch.__version__.split(".")
    return int(major), int(minor)


def is_untested() -> bool:
    """Whether this torch is newer than every version on which the names here were checked."""
    return version() > NEWEST_TESTED
