"""Below the floor: an error that says where the bytes go; at the floor: a step that trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import satcompile
from satcompile import compilation
from tests.integration.test_use import Net
from tests.integration.training import measured
from tests.zoo import build

KINDS = {
    "parameters", "gradients", "optimizer state", "inputs", "outputs", "saved for backward",
    "temporaries", "other graphs of the step", "reserve",
}  # fmt: skip


def refused(model: Any, inputs: dict[str, Any], **options: Any) -> satcompile.BudgetError:
    run = torch.compile(model, backend="sat", options={"memory_budget": 1, **options})
    with pytest.raises(satcompile.BudgetError) as caught:
        run(**inputs)
    torch.compiler.reset()
    return caught.value


def bytes_of(tensors: Any) -> int:
    """Of distinct tensors: labels may be the inputs themselves."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


@pytest.fixture(scope="module")
def gpt2() -> tuple[Any, dict[str, Any], satcompile.BudgetError]:
    """A model, its inputs, and the answer to a budget of one byte."""
    model, inputs = build("gpt2")
    return model, inputs, refused(model, inputs)


@pytest.mark.parametrize("name", ["vit", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_the_floor_s_bytes_are_named_and_add_up(name: str) -> None:
    model, inputs = build(name)
    optimizer = torch.optim.AdamW(model.parameters())
    error = refused(model, inputs)
    found = error.breakdown
    assert set(found) == KINDS
    assert sum(found.values()) == error.floor_bytes
    assert found["parameters"] >= bytes_of(model.parameters())
    assert 0 < found["gradients"] <= bytes_of(model.parameters())
    assert found["inputs"] == bytes_of(inputs.values())
    assert found["outputs"] > 0 and found["temporaries"] > 0
    loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    state = [v for s in optimizer.state.values() for v in s.values()]
    assert found["optimizer state"] == bytes_of(state)
    for kind in ("parameters", "gradients", "optimizer state", "temporaries"):
        assert kind in str(error)


def test_the_operation_at_the_peak_is_named_with_its_module(gpt2: Any) -> None:
    model, _, error = gpt2
    operation, _, module = error.floor_op.partition(" in ")
    assert "aten." in operation
    assert module in dict(model.named_modules())
    assert error.floor_op in str(error)


def test_what_helps_follows_what_weighs_most() -> None:
    model, inputs = Net(), {"x": torch.randn(64, 16)}
    assert "lower the option 'reserve'" in str(refused(model, inputs, reserve="1GB"))
    assert "reserve" not in str(refused(model, inputs)).rpartition("Raise")[2]


@pytest.mark.slow
@pytest.mark.parametrize("above", [1.0, 1.01])
def test_at_the_floor_it_trains_within(gpt2: Any, above: float) -> None:
    model, inputs, error = gpt2
    budget_bytes = int(error.floor_bytes * above)
    run = torch.compile(model, backend="sat", options={"memory_budget": budget_bytes})

    peak_bytes = measured(run, model, inputs)
    resident = bytes_of([*model.parameters(), *model.buffers(), *inputs.values()])
    assert resident + peak_bytes <= budget_bytes
    graph = satcompile.report(model).graphs[-1]
    assert graph.predicted_peak_bytes == pytest.approx(resident + peak_bytes, rel=0.01)


def test_code_that_is_over_after_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest plan is generated first and compiled later: should the two differ, the check
    of the second must see it."""

    def promised(*_: Any) -> SimpleNamespace:
        return SimpleNamespace(
            is_training=True, step_peak_bytes=0, settings={"limit_bytes": 2**40}
        )  # fmt: skip

    monkeypatch.setattr(compilation, "_ROUNDS", 0)
    monkeypatch.setattr(compilation.Compilation, "_floor", promised)
    run = torch.compile(Net(), backend="sat", options={"memory_budget": "60KB"})
    with pytest.raises(satcompile.BudgetError) as caught:
        run(torch.randn(64, 16))
    assert caught.value.floor_bytes > 60_000
