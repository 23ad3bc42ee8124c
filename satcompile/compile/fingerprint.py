"""Digests for cache keys: of our own source, and of everything that determines a compilation."""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path

from satcompile import passes


def digest(*parts: bytes | str) -> str:
    """One digest of several parts, in order."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part.encode() if isinstance(part, str) else part)
        hasher.update(b"\0")
    return hasher.hexdigest()


@functools.cache
def source_digest() -> str:
    """A digest of our version and of every line of ours that could change a graph."""
    return digest(metadata.version("satcompile"), *(file.read_bytes() for file in source_files()))


def source_files() -> list[Path]:
    """The files of the package and of the passes, wherever these lie."""
    roots = [Path(__file__).parents[1], *map(Path, passes.__path__)]
    return sorted({file for root in roots for file in root.rglob("*.py")})
