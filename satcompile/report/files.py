"""Reports as files, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from satcompile.errors import FileError, OptionError

ENDINGS = (".html", ".json")


def ending_of(path: Path, what: str) -> str:
    """The path's ending: ``.html`` or ``.json``.

    Raises:
        OptionError: the path has another ending.
    """
    if path.suffix not in ENDINGS:
        raise OptionError(
            f"{path.name!r} names no kind of file that {what} can be saved as. Use a name that "
            f"ends in .html, for a page to read, or in .json, for data: "
            f"{path.with_suffix('.html').name!r}, for example."
        )
    return path.suffix


def write_whole(path: Path, text: str) -> None:
    """Write a file beside ``path`` and move it into place, so that no reader sees half of it.

    Raises:
        FileError: the folder does not exist, is not writable, or is full.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            beside.write_text(text, encoding="utf-8")
            os.replace(beside, path)
        finally:
            with contextlib.suppress(OSError):  # it took the file's place, or was never there
                beside.unlink()
    except OSError as error:
        raise FileError(
            f"{str(path)!r} could not be written: {error.strerror or error}. Choose a folder that "
            "exists, may be written to, and has room; nothing was left behind.",
            error,
        ) from None


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        FileError: the file does not exist, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(
            f"{str(path)!r} could not be read: {error.strerror or error}. Give the name of a "
            "report that was saved as .json.",
            error,
        ) from None
