"""The tests that want a GPU, on the stub: pytest -p tests.stub_gpu.plugin, in the stub's environment with
STUB_NUMBERS=1 and TRITON_INTERPRET=1.

Kernels are interpreted and operators have twins, as in ``numbers``. Kernels write in place and twins'
results are the device's, so that bytes are a GPU's, too. STUB_EVERY=5 leaves one test of five.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

from tests.stub_gpu import interpreter, twins

_STATUS = pytest.StashKey[int]()


def pytest_configure() -> None:
    interpreter.install()
    twins.install()
    torch.backends.cudnn.enabled = False  # the stub has none
    torch.backends.cuda.enable_cudnn_sdp(False)


@pytest.hookimpl(trylast=True)  # behind -k
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = items[:: int(os.environ.get("STUB_EVERY", "1"))]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = exitstatus


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    sys.stdout.flush()
    os._exit(config.stash[_STATUS])  # what torch does at exit asks the device for more
