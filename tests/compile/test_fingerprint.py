"""What a cache of generated code must not overlook."""

from __future__ import annotations

import importlib

import pytest

from satcompile.compile.fingerprint import digest, source_files


@pytest.mark.parametrize(
    "module",
    [
        "satcompile.backend", "satcompile.compile.generation", "satcompile.graph.emission",
        "satcompile.passes.fused_update", "satcompile.planner.recompute",
        "satcompile.runtime.bound_graph", "satcompile.solver.training.search",
        "satcompile.torch_compat.inductor", "satcompile.updates.sparsity.operators",
    ],
)  # fmt: skip
def test_the_digest_reads_every_room(module: str) -> None:
    file = importlib.import_module(module).__file__
    assert any(str(each) == file for each in source_files())


def test_parts_are_told_apart() -> None:
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", "")}) == 4
