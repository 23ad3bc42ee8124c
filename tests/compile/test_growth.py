"""Code that takes no less memory at larger sizes is told from code that may; bounds are bounds."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satcompile.compile.allocation import GeneratedGraph, ScalarSpec, TensorSpec
from satcompile.compile.growth import GRIDS, grows_with_sizes, rounded_up
from satcompile.runtime import registry
from tests.integration.test_use import Net

SIZES = st.integers(0, 10**9)
S0 = sympy.Symbol("s0", integer=True, positive=True)


@given(SIZES, SIZES, st.sampled_from(GRIDS))
def test_a_size_is_rounded_up_by_little_and_in_order(one: int, other: int, bits: int) -> None:
    assert one <= rounded_up(one, bits) <= one + one // 2**bits
    assert rounded_up(rounded_up(one, bits), bits) == rounded_up(one, bits)
    if one <= other:
        assert rounded_up(one, bits) <= rounded_up(other, bits)


def test_a_grid_has_few_sizes() -> None:
    assert len({rounded_up(n, 0) for n in range(1024, 2048)}) == 2
    assert len({rounded_up(n, 4) for n in range(1024, 2048)}) == 17


def code(extent: str, device: str = "cuda", line: str = "") -> GeneratedGraph:
    source = (
        f"def call(args):\n    arg0_1, = args\n    s0 = arg0_1\n    args.clear()\n    {line}\n"
        f"    buf0 = empty_strided_{device}(({extent}, 64), (64, 1), torch.float32)\n"
        "    return (buf0, )\n"
    )
    return GeneratedGraph(source, [ScalarSpec(S0, 8)], ["buf0"])


_LEAVES = st.sampled_from(["s0", "s0", "s0", "1", "2", "7", "8", "64", "(-1)"])
_EXTENTS = st.recursive(
    _LEAVES,
    lambda parts: st.one_of(
        st.tuples(parts, st.sampled_from(["+", "+", "*", "*", "//", "-", "%"]), parts).map(
            lambda made: "({} {} {})".format(*made)
        ),
        st.tuples(st.sampled_from(["min", "max"]), parts, parts).map(
            lambda made: "{}({}, {})".format(*made)
        ),
        parts.map(lambda part: f"(-{part})"),
    ),
    max_leaves=6,
)


@settings(max_examples=400)
@given(_EXTENTS)
def test_no_expression_that_is_said_to_grow_shrinks(extent: str) -> None:
    if grows_with_sizes(code(extent)):
        found = [eval(extent, {"s0": size}) for size in range(1, 40)]
        assert found == sorted(found)


@pytest.mark.parametrize("extent", ["s0", "64", "s0*s0", "2 + 3*s0", "8*((7 + s0) // 8)"])
def test_what_grows(extent: str) -> None:
    assert grows_with_sizes(code(extent))


@pytest.mark.parametrize(
    "extent",
    [
        "128 - s0", "128 + (-1)*s0", "128 + s0*(-2)", "4096 // s0", "s0 % 8", "min(s0, 8)",
        "max(8, 128 + (-1)*s0)", "(s0 if s0 > 4 else 4)", "(128 // 2) // s0", "s0 // (-1)",
        "(s0 < 64)*64", "(s0 < 64 and 64)", "math.cos(s0)", "s0**(-1)", "-s0",
    ],
)  # fmt: skip
def test_what_may_shrink(extent: str) -> None:
    assert not grows_with_sizes(code(extent))


@pytest.mark.parametrize(
    "line",
    [
        "buf1 = torch.ops.aten._scaled_dot_product_flash_attention.default(x, x, x)",
        "buf1 = torch.ops.satcompile.update_.default(x, x, 0)",
    ],
)
def test_operators_that_grow_do_where_their_workspace_grows_too(line: str) -> None:
    """An attention's on a GPU does; on the CPU nothing is said of workspaces that were tried."""
    assert grows_with_sizes(code("s0", "cuda", line))
    assert not grows_with_sizes(code("s0", "cpu", line))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_convolutions_may_take_another_algorithm_at_another_size(device: str) -> None:
    line = "buf1 = extern_kernels.convolution(x, x, stride=(1, 1), bias=None)"
    assert not grows_with_sizes(code("s0", device, line))


@pytest.mark.parametrize(
    "line",
    [
        "buf1 = torch.ops.aten.arange.start(s0, 128)",
        "buf1 = torch.ops.aten.slice_copy.Tensor(x, 0, s0, 128)",
        "buf1 = torch.ops.ours.rest_of.default(x)",
        "buf1 = aten.arange.start(s0, 128)",
    ],
)
def test_operators_that_make_what_they_will_may_shrink(line: str) -> None:
    assert not grows_with_sizes(code("s0", "cuda", line))


def test_operators_with_a_place_for_their_result_do_as_it_does() -> None:
    assert grows_with_sizes(code("s0", "cuda", "extern_kernels.mm(x, x, out=x)"))


@pytest.mark.parametrize("shape", [(128 - S0, 4), (S0 % 8, 4)])
def test_inputs_that_shrink(shape: tuple[Any, ...]) -> None:
    spec = TensorSpec("tangents_1", shape, (4, 1), torch.float32, (8, 4, 4, 1))
    assert not grows_with_sizes(GeneratedGraph(code("s0").source, [spec], ["buf0"]))


class Padded(torch.nn.Module):
    """What fills its input up is smaller for larger inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = torch.nn.Linear(16, 1), torch.nn.Linear(16, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filling = self.wide(torch.cos(x.new_ones(512 - x.shape[0], 16)))
        return self.narrow(x).sum() + filling.exp().sum()


def planned(model: torch.nn.Module) -> tuple[Any, Any]:
    """The plan of a model's only graph, and its symbols."""
    run = torch.compile(model, backend="sat", dynamic=True, options={"memory_budget": "1GiB"})
    run(torch.randn(48, 16)).sum().backward()
    (record,) = registry._records
    made: Any = record.decided
    planned = made.plan.planned
    inputs = planned.generated.code.forward.inputs
    sizes = [value.expression for value in inputs if isinstance(value, ScalarSpec)]
    return planned, dict(enumerate(sizes))


def test_a_step_takes_no_more_than_its_bounds() -> None:
    made, symbols = planned(Net(layers=1))
    for size in (2, 31, 48, 49, 65, 127, 500):
        exact = astuple(made.figures_at(symbols, (size,)))
        bounds = [astuple(bound) for bound in made.bounds_at(symbols, (size,))]
        assert len(bounds) == len(GRIDS)
        for higher, lower in zip(bounds, [*bounds[1:], exact], strict=True):
            assert all(a >= b for a, b in zip(higher, lower, strict=True))


def test_a_step_that_may_shrink_has_no_bounds() -> None:
    made, symbols = planned(Padded())
    held = [made.figures_at(symbols, (size,)).forward_bytes for size in (16, 32)]
    assert held[0] > held[1]  # or it would prove nothing
    assert list(made.bounds_at(symbols, (48,))) == []
