"""What eager code holds behind a graph's inputs, against what autograd says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from satcompile.runtime.outside import comes_from_eager, held_outside


def nbytes(tensors: Any) -> int:
    return sum(storage.nbytes() for storage in {t.untyped_storage() for t in tensors})


class CompiledFunction(torch.autograd.Function):
    """As AOTAutograd names a graph's."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x.exp())
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


class Keeping(torch.autograd.Function):
    """Keeps a tensor on its context, too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x * 3)
        ctx.kept = x * 4
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(10, requires_grad=True)


def test_what_eager_nodes_have_saved_and_their_leaves(x: torch.Tensor) -> None:
    weight = torch.nn.Parameter(torch.randn(10, 10))
    hidden = (weight @ x.exp()).tanh()
    found = held_outside([hidden, x])
    # exp and tanh save their results, the product what it multiplies.
    assert {t.untyped_storage()._cdata for t in found.saved} == {
        t.untyped_storage()._cdata for t in (hidden, hidden.grad_fn.next_functions[0][0]
        ._saved_vec, weight)
    }  # fmt: skip
    assert {id(leaf) for leaf in found.leaves} == {id(x), id(weight)}
    assert found.residency.parameters == x.nbytes + weight.nbytes
    assert (found.residency.gradients, found.residency.coming_gradients) == (0, 440)
    hidden.sum().backward()
    assert not held_outside([hidden]).saved
    residency = held_outside([hidden]).residency
    assert (residency.gradients, residency.coming_gradients) == (440, 0)


def test_compiled_graphs_are_no_eager_code(x: torch.Tensor) -> None:
    result = CompiledFunction.apply(x)
    assert not comes_from_eager([result, x, torch.ones(2)])
    assert comes_from_eager([result.exp()])
    found = held_outside([result.exp()])
    assert len(found.saved) == 1
    assert not found.leaves


def test_custom_functions_count_with_what_they_keep(x: torch.Tensor) -> None:
    assert nbytes(held_outside([Keeping.apply(x)]).saved) == 2 * x.nbytes


def test_no_hook_of_users_is_run(x: torch.Tensor) -> None:
    """Checkpointing would compute its region again."""
    calls = []

    def region(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return x.exp().sin()

    result = checkpoint(region, x, use_reentrant=False)
    assert not nbytes(held_outside([result]).saved)
    assert len(calls) == 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t.float()):
        packed = x.exp()
    assert nbytes(held_outside([packed]).saved) == x.nbytes // 2
