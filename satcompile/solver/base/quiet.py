"""HiGHS prints a line of its own debugging now and then, whatever it is told (scipy 1.17)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import threading
from collections.abc import Iterator

_CHATTER = b"HighsMipSolverData::"
_lock = threading.RLock()  # of the process's standard output
_c_library = ctypes.CDLL(None) if os.name == "posix" else None


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """What HiGHS writes to standard output inside is not shown; what others write there meanwhile
    is, afterwards and in order."""
    if _c_library is None:
        yield
        return
    with _lock, tempfile.TemporaryFile() as kept:
        _c_library.fflush(None)
        try:
            original = os.dup(1)
        except OSError:  # there is no standard output
            yield
            return
        os.dup2(kept.fileno(), 1)
        try:
            yield
        finally:
            _c_library.fflush(None)
            os.dup2(original, 1)
            os.close(original)
            kept.seek(0)
            for line in kept:
                if not line.startswith(_CHATTER):
                    os.write(1, line)
