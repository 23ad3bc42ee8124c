"""Vocabularies in chunks, through ``backend="sat"``: below the floor of whole logits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
import transformers
from transformers.modeling_outputs import CausalLMOutput

import satcompile
from satcompile.graph.chunking.operators import ADD_SHARE
from tests.integration.training import (
    assert_same_gradients,
    measured,
    only_graph,
    step_gradients,
)

VOCABULARY, HIDDEN, BATCH, LENGTH = 2000, 32, 4, 32


class LossOnly(torch.nn.Module):
    """A model that returns no logits."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> CausalLMOutput:
        return CausalLMOutput(loss=self.model(**inputs).loss)


def gpt2() -> torch.nn.Module:
    config = transformers.GPT2Config(
        n_layer=1, n_embd=HIDDEN, n_head=2, vocab_size=VOCABULARY, n_positions=LENGTH,
        use_cache=False, bos_token_id=1, eos_token_id=1, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return model


def built(make: Any, dtype: torch.dtype = torch.float32) -> tuple[LossOnly, dict[str, Any]]:
    torch.manual_seed(0)
    model = LossOnly(make().train().to(dtype))
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    return model, {"input_ids": tokens, "labels": tokens}


def compiled(model: torch.nn.Module, budget: Any, **options: Any) -> Any:
    options = {"memory_budget": budget, **options}
    return torch.compile(model, backend="sat", options=options, dynamic=False)


def said(run: Any) -> str:
    """What the report has of the pass; nothing where it did not run."""
    passes = {each.name: each.changed for each in only_graph(run).passes}
    return passes.get("chunked_loss", "")


@pytest.mark.slow
def test_a_budget_below_the_floor_of_whole_logits_is_met_with_equal_gradients() -> None:
    model, inputs = built(gpt2, torch.float64)
    wanted = step_gradients(model, model, inputs)
    run = compiled(model, "65% of default")
    assert_same_gradients(step_gradients(run, model, inputs), wanted, 1e-12)
    graph = only_graph(run)
    assert said(run).startswith("logits of [128, 2000] in 8 chunks")
    assert graph.default_peak_bytes > BATCH * LENGTH * VOCABULARY * 8  # torch's own: logits whole
    budget_bytes = int(0.65 * graph.default_peak_bytes)
    assert graph.resident_bytes + measured(run, model, inputs) <= budget_bytes


@pytest.mark.slow
def test_without_the_pass_the_same_budget_is_below_the_floor() -> None:
    model, inputs = built(gpt2, torch.float64)
    with pytest.raises(satcompile.BudgetError) as caught:
        compiled(model, "65% of default", disable_passes=["chunked_loss"])(**inputs)
    assert caught.value.floor_bytes > caught.value.budget_bytes


def autocast() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.slow
def test_half_precision_is_as_near_to_single_as_eager_s_and_within_its_budget() -> None:
    model, inputs = built(gpt2)
    exact = step_gradients(model, model, inputs)
    eager = step_gradients(model, model, inputs, context=autocast)
    run = compiled(model, "85% of default")
    ours = step_gradients(run, model, inputs, context=autocast)
    graph = only_graph(run)
    assert "in 8 chunks" in said(run)
    peak_bytes = graph.resident_bytes + measured(run, model, inputs, autocast)
    assert peak_bytes <= min(graph.predicted_peak_bytes, 0.85 * graph.default_peak_bytes)
    for name, gradient in exact.items():
        error, theirs = (ours[name] - gradient).norm(), (eager[name] - gradient).norm()
        assert error <= 1.1 * theirs + 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 3), (16, 2), (100, 3)])
@pytest.mark.parametrize("share_dtype", [torch.bfloat16, torch.float32])
def test_shares_are_added_as_a_plain_sum_would(
    shape: tuple[int, ...], share_dtype: torch.dtype
) -> None:
    total, share = torch.randn(shape), torch.randn(shape).to(share_dtype)
    found = ADD_SHARE(total, share)
    assert found.dtype == total.dtype and torch.equal(found, total + share)


@pytest.mark.slow
def test_updates_in_the_backward() -> None:
    plain, inputs = built(gpt2, torch.float64)
    model = copy.deepcopy(plain)
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    satcompile.fuse_optimizer(optimizer, in_backward=True)
    run = compiled(model, "70% of default")
    for _ in range(2):
        plain(**inputs).loss.backward()
        reference.step()
        reference.zero_grad()
        run(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert "in 8 chunks" in said(run)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_beside_weights_that_are_trained_in_tiles() -> None:
    """The vocabulary's own weight is tied, and so trained densely; the others' gradients are cut."""
    plain, inputs = built(gpt2, torch.float64)
    model = copy.deepcopy(plain)
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    optimizer = satcompile.fuse_optimizer(torch.optim.AdamW(model.parameters(), lr=1e-2))
    run = compiled(model, "70% of default", sparsity={"density": 1.0, "block": 16})
    for _ in range(2):
        plain(**inputs).loss.backward()
        reference.step()
        reference.zero_grad()
        run(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert "in 8 chunks" in said(run)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


class Checkpointed(torch.nn.Module):
    """Its hidden layers, or its projection and loss, in a region of the user's own."""

    def __init__(self, whole_loss: bool) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, HIDDEN)
        self.inner = torch.nn.Sequential(
            torch.nn.Linear(HIDDEN, 2 * HIDDEN),
            torch.nn.GELU(),
            torch.nn.Linear(2 * HIDDEN, HIDDEN),
        )
        self.projection = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.whole_loss = whole_loss

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> CausalLMOutput:
        hidden = self.embedding(input_ids)
        if self.whole_loss:
            return CausalLMOutput(loss=_checkpointed(self._loss, self.inner(hidden), labels))
        return CausalLMOutput(loss=self._loss(_checkpointed(self.inner, hidden), labels))

    def _loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.projection(hidden).flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels.flatten())


def _checkpointed(function: Any, *inputs: torch.Tensor) -> torch.Tensor:
    return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)


@pytest.mark.slow
@pytest.mark.parametrize("whole_loss", [False, True])
def test_beside_and_inside_checkpoint_regions(whole_loss: bool) -> None:
    torch.manual_seed(0)
    model = Checkpointed(whole_loss).double()
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    inputs = {"input_ids": tokens, "labels": tokens.roll(1, 1)}
    wanted = step_gradients(model, model, inputs)
    run = compiled(model, "75% of default")
    assert_same_gradients(step_gradients(run, model, inputs), wanted, 1e-12)
    graph = only_graph(run)
    assert "in 8 chunks" in said(run)
    peak_bytes = graph.resident_bytes + measured(run, model, inputs)
    assert peak_bytes <= 0.75 * graph.default_peak_bytes


@pytest.mark.slow
def test_logits_that_are_returned_stay_whole_and_the_report_says_why() -> None:
    model, inputs = built(gpt2)
    run = compiled(model.model, "99% of default")
    run(**inputs)
    assert "a result of the graph" in said(run)


def test_nothing_is_cut_without_a_budget() -> None:
    model, inputs = built(gpt2)
    run = torch.compile(model, backend="sat")
    run(**inputs)
    assert said(run) == ""
