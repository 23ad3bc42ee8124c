"""The generator itself: its programs run, and what it compares can differ."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests.programs.builder import build
from tests.programs.failures import Failure
from tests.programs.interpreted import Plans, check
from tests.programs.operators import FAMILIES
from tests.programs.program import Program, Trial, eager


def drawn(number: int) -> Program:
    numbers = random.Random(number)
    genes = [[numbers.randrange(256) for _ in range(8)] for _ in range(8)]
    return build(genes, [numbers.randrange(2), 3, numbers.randrange(2)], FAMILIES)


def test_the_same_genes_give_the_same_program_and_it_runs() -> None:
    refused = 0
    for number in range(40):
        program = drawn(number)
        assert program == drawn(number)
        compile(program.script(), "script", "exec")
        try:
            results = eager(program, Trial(program))
        except RuntimeError:
            refused += 1  # by eager's own backward
            continue
        assert not results.differences(eager(program, Trial(program)), 0.0)
    assert refused <= 4


def test_nearly_every_operator_is_drawn() -> None:
    known = {name for family in FAMILIES for name, _ in family}
    seen = {name for number in range(400) for name in drawn(number).operators}
    assert len(known - seen) <= 0.1 * len(known), sorted(known - seen)


def test_a_wrong_graph_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward of torch's own plan computes a cosine for a sine."""
    program = build([[0, 5, 0, 0, 0, 0, 0, 0]], [0, 0, 0], FAMILIES)
    assert program.operators == ("sin", "loss")
    assert check(program) == "right"
    run = Plans._run_graph

    def swapped(self: Plans, gm: torch.fx.GraphModule, inputs: object, **kwargs: object) -> object:
        for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default):
            node.target = torch.ops.aten.cos.default
        return run(self, gm, inputs, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Plans, "_run_graph", swapped)
    with pytest.raises(Failure, match="off by"):
        check(replace(program))
