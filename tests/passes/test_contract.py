"""Every pass has the one shape, and the runner does for it what it must not do itself."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass

import pytest
import torch
from satcompile.passes.chunked_loss import ChunkedLoss
from satcompile.passes.contract import Ensures, Result, Stage
from satcompile.passes.facts import Facts
from satcompile.passes.fused_update import FusedUpdate
from satcompile.passes.sparse_forward import SparseForward
from satcompile.passes.sparse_gradients import SparseGradients

from satcompile.compile import pipeline
from satcompile.errors import VerificationError
from satcompile.graph.capture import capture
from satcompile.graph.training_graph import TrainingGraph
from satcompile.options import PASS_NAMES

PASSES = (SparseGradients, SparseForward, ChunkedLoss, FusedUpdate)


def small_graph() -> TrainingGraph:
    weight = torch.randn(4, 3, requires_grad=True)
    x = torch.randn(8, 4)
    return capture(lambda: (x @ weight).sin().sum())


@pytest.mark.parametrize("each", PASSES, ids=lambda each: each.name)
def test_a_pass_is_a_frozen_dataclass_with_a_name_a_stage_and_a_promise(each: type) -> None:
    assert is_dataclass(each) and each.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert each.name in PASS_NAMES  # type: ignore[attr-defined]
    assert each.stage in Stage and each.ensures in Ensures  # type: ignore[attr-defined]
    assert set(each.requires) <= {fact.name for fact in fields(Facts)}  # type: ignore[attr-defined]
    assert not each.name.startswith("_") and each.run.__doc__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Sines:
    """Make cosines of sines: wrong on purpose, or say that nothing was done."""

    is_wrong: bool

    name = "sines"
    stage = Stage.JOINT
    requires = ()
    ensures = Ensures.DENSE_VALUES

    def run(self, graph: TrainingGraph, facts: Facts) -> Result[TrainingGraph]:
        sines = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)
        for node in sines if self.is_wrong else ():
            node.target = torch.ops.aten.cos.default
        graph.module.recompile()
        return Result(graph, f"{len(sines)} seen", facts)


def test_the_runner_times_and_records() -> None:
    graph, facts, (record,) = pipeline.run_joint(small_graph(), [Sines(is_wrong=False)])
    assert graph.has_backward and facts == Facts()
    assert (record.name, record.changed) == ("sines", "1 seen") and record.time_us > 0
    assert record.change is not None and record.change.before() == record.change.after()


def test_a_pass_that_breaks_its_promise_is_named() -> None:
    with pytest.raises(VerificationError, match="sines"):
        pipeline.run_joint(small_graph(), [Sines(is_wrong=True)])


def test_what_a_pass_requires_must_have_been_found_before() -> None:
    with pytest.raises(AssertionError, match=r"sparse_forward stands before .*'sparse'"):
        pipeline.run_joint(small_graph(), [SparseForward()])


def test_passes_tell_each_other_what_they_found() -> None:
    graph = small_graph()
    slots = frozenset(range(len(graph.primals)))
    _, facts, records = pipeline.run_joint(graph, [SparseGradients(slots, 2), SparseForward()])
    assert [record.name for record in records] == ["sparse_gradients", "sparse_forward"]
    assert facts.sparse is not None
    assert facts.sparse.tiled.keys() | {each.slot for each in facts.sparse.dense} == slots
