"""Prices of operations whose arguments are the same tensor several times."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.partitions import planned


def test_attention_of_one_tensor_is_priced_as_of_three() -> None:
    x = torch.randn(1, 2, 16, 8, requires_grad=True)

    def of_one(x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x).sum()

    def of_three(x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x + 1, x * 2).sum()

    def arithmetic_us(model: object) -> list[float]:
        problem = planned(model, {"x": x}).problem
        attention = [n for n in problem.operations if "scaled_dot_product" in str(n.target)]
        return [problem.costs._arithmetic_us(node) for node in attention]

    assert arithmetic_us(of_one) == arithmetic_us(of_three)
    assert len(arithmetic_us(of_one)) == 2
