"""Graphs before and after the passes, as text."""

from __future__ import annotations

import torch
from satcompile.passes.sparse_forward import SparseForward
from satcompile.passes.sparse_gradients import SparseGradients
from torch import fx

from satcompile.compile import pipeline
from satcompile.compile.planning import PlannedGraphs
from satcompile.graph.capture import capture
from satcompile.graph.text import GraphChange, graph_text, kept
from satcompile.report.data import PassRow
from tests.partitions import planned_tightly
from tests.passes.test_sparse_passes import BLOCK, Net, parameters
from tests.zoo import build


class Small(torch.nn.Module):
    def forward(self, x, y):
        return torch.relu(x) + y * 2


def test_a_line_says_what_a_node_computes():
    lines = graph_text(fx.symbolic_trace(Small()).graph).splitlines()
    assert lines == [
        "x: NoneType = placeholder",
        "y: NoneType = placeholder",
        "relu: NoneType = relu(x)",
        "mul: NoneType = mul(y, 2)",
        "add: NoneType = add(relu, mul)",
        "return add",
    ]


def test_only_what_differs_is_in_the_diff():
    change = GraphChange(lambda: "a\nb\nc\n", kept("a\nx\nc\n"))
    lines = change.diff().splitlines()
    assert [line for line in lines[2:] if line[0] in "+-"] == ["-b", "+x"]
    assert GraphChange(kept("a\n"), kept("a\n")).diff() == ""


def test_a_row_without_a_change_has_no_texts():
    row = PassRow("verify", 1.0, "nothing")
    assert (row.before, row.after, row.diff) == (None, None, None)
    assert row.to_dict() == {"name": "verify", "time_us": 1.0, "changed": "nothing"}


def test_the_partition_is_told_as_what_became_of_the_joint_graph():
    made: PlannedGraphs = planned_tightly(*build("gpt2"), 0.7)
    joint, forward = made.problem.graph.graph, made.parts.forward.graph
    text = graph_text(joint)
    assert len(text.splitlines()) == len(joint.nodes)
    assert "float32[4, 32, 64]" in text and "  # transformer.h.1.mlp" in text
    assert set(graph_text(forward).splitlines()[:-1]) <= set(text.splitlines())
    (record,) = (r for r in made.outcome.passes if r.name == "partition")
    assert record.change is not None and record.change.before() == text
    removed_or_added = [line for line in record.change.diff().splitlines() if line[0] in "+-"]
    again = [node.name for node in made.plan.recomputed]
    assert any(line.startswith(f"+{again[0]}: ") for line in removed_or_added)
    assert all(r.change is None for r in made.outcome.passes if r.name in ("recompute", "verify"))


def test_sparse_passes_are_told_one_after_the_other():
    graph = capture(Net(), torch.randn(32, 16))
    before = graph_text(graph.graph)
    passes = (SparseGradients(parameters(graph), BLOCK), SparseForward())
    changed, _, records = pipeline.run_joint(graph, passes)
    gradients, forward = (record.change for record in records)
    assert gradients is not None and forward is not None
    assert gradients.before() == before
    assert gradients.after() == forward.before()
    assert forward.after() == graph_text(changed.graph)
    assert "+" in gradients.diff() and "satcompile" in gradients.diff()
    assert "satcompile" in forward.diff()
