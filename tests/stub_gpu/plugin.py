"""The tests that want a GPU, on the stub: STUB_NUMBERS=1 TRITON_INTERPRET=1 pytest -p tests.stub_gpu.plugin

Kernels are interpreted and operators have twins, as in ``numbers``.
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


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = exitstatus


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    sys.stdout.flush()
    os._exit(config.stash[_STATUS])  # what torch does at exit asks the device for more
