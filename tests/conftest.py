"""Every test begins without compiled graphs; models and inputs are the same in every run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from satcompile.report import registry


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    registry.forget_all()
    torch.manual_seed(0)
    yield
    torch.compiler.reset()
