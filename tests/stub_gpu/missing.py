"""Looks up a driver function that the stub does not have, as torch does, and calls it."""

from __future__ import annotations

import ctypes
import os

if __name__ == "__main__":
    driver = ctypes.CDLL(os.environ["STUB_LIBRARY"])
    found = ctypes.c_void_p()
    driver.cuGetProcAddress_v2(b"cuMemcpyPeerAsync", ctypes.byref(found), 13000, 0, None)
    ctypes.CFUNCTYPE(ctypes.c_int)(found.value)()
