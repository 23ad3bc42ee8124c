"""The stub, built once; without a Python that has torch's CUDA build these tests are skipped."""

from __future__ import annotations

import pytest

from tests.stub_gpu import stub
from tests.stub_gpu.stub import Stub


@pytest.fixture(scope="session")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    if not stub.PYTHON:
        pytest.skip("SATCOMPILE_CUDA_PYTHON names no Python with a CUDA build of torch")
    return stub.build(tmp_path_factory.mktemp("stub"))
