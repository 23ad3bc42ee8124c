"""Plans that are given up cost no compiler's time, and leave no trace in the one that is kept."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch._inductor.codecache import PyCodeCache

import satcompile
from satcompile.compile import rounds
from satcompile.report.data import GraphReport
from tests.integration.test_use import Net
from tests.integration.training import assert_same_gradients, gradients


def step(model: torch.nn.Module, x: torch.Tensor, **options: object) -> GraphReport:
    torch.compiler.reset()
    run = torch.compile(model, backend="sat", options=options)
    run(x).square().sum().backward()
    return satcompile.report(model).graphs[-1]


def test_only_what_is_accepted_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, x = Net(layers=2).double(), torch.randn(96, 16).double()
    eager = copy.deepcopy(model)
    eager(x).square().sum().backward()
    default_bytes = step(model, x).default_peak_bytes
    # The first limit lets a plan pass whose code is over the budget.
    monkeypatch.setattr(rounds, "first_limits", lambda accept_bytes: (2 * accept_bytes, 0))
    for _ in ("compiled", "out of the FX graph cache"):
        loaded = len(PyCodeCache.modules)
        model.zero_grad()
        report = step(model, x, memory_budget=int(0.85 * default_bytes))
        assert report.rounds > 1
        assert len(PyCodeCache.modules) == loaded + 2  # the forward and the backward
        assert_same_gradients(gradients(model), gradients(eager), 1e-11)
