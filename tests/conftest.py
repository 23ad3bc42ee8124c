"""Every test begins without compiled graphs; models and inputs are the same in every run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from satcompile.runtime import registry

# On a GPU the budgets of tiny models would be lost beside 64 MiB of workspaces for cuBLAS.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":0:0")

# Examples are drawn slowly where the machine has other work: no defect of what is tested.
settings.register_profile("busy machine", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    registry.forget_all()
    torch.manual_seed(0)
    yield
    torch.compiler.reset()
