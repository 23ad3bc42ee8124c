"""The tests that want a GPU, on the stub: pytest -p tests.stub_gpu.plugin, with TRITON_INTERPRET=1.

With STUB_NUMBERS=1 kernels are interpreted and operators have twins, as in ``numbers``: bytes are not
a GPU's then. Without it kernels do nothing, as in ``walk``: bytes are exact, and numbers are none.
STUB_EVERY=5 leaves one test of five.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

from tests.stub_gpu import interpreter, twins, walk

_STATUS = pytest.StashKey[int]()


def pytest_configure() -> None:
    if os.environ.get("STUB_NUMBERS") == "1":
        interpreter.install()
        twins.install()
    else:
        walk.skip_kernels()
    torch.backends.cudnn.enabled = False  # the stub has none
    torch.backends.cuda.enable_cudnn_sdp(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = items[:: int(os.environ.get("STUB_EVERY", "1"))]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = exitstatus


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    sys.stdout.flush()
    os._exit(config.stash[_STATUS])  # what torch does at exit asks the device for more
