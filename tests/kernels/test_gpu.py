"""The kernels on a real GPU, at the sizes with which they are launched, against torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from satcompile.kernels.linear_update import LARGE, SMALL, Blocks, linear_update
from satcompile.kernels.sweep_triton import CHUNK, sweep
from tests.kernels.reference import (
    ADAMW,
    AMSGRAD,
    CASES,
    Case,
    Pair,
    active_elements,
    eighths,
    tiles_of,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SHAPES = [(), (3,), (37, 41), (768, 512), (3 * CHUNK + 1160,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture
def never_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def _weights(dtype: torch.dtype, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    return [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sweep_equals_torch(case: Case, dtype: torch.dtype) -> None:
    pair = Pair(case, _weights(dtype, SHAPES))
    for _ in range(3):
        gradients = [torch.randn_like(weight) for weight in pair.weights]
        sweep(pair.updates(gradients))
        pair.step_theirs(gradients)
        pair.check()


def test_sweep_where_nothing_is_aligned() -> None:
    turned = torch.randn(300, 500, device="cuda").t()
    shifted = torch.randn(20001, device="cuda")[1:]
    pair = Pair(ADAMW, [turned, shifted])
    gradients = [torch.randn_like(weight) for weight in pair.weights]
    sweep(pair.updates(gradients))
    pair.step_theirs(gradients)
    pair.check()


@pytest.mark.parametrize(
    ("height", "width"), [(128, 128), (48, 48), (64, 5), (8, 144), (7, 1000)], ids=str
)
def test_sweep_keeps_frozen_tiles(height: int, width: int) -> None:
    shapes = [(512, 384), (300, 147), (128, 16, 3, 3)]
    tiles = [tiles_of(height, width, 0, 2, -1, device="cuda") for _ in shapes]
    pair = Pair(AMSGRAD, _weights(torch.float32, shapes))
    before = [weight.clone() for weight in pair.weights]
    active = [active_elements(*pairs).cuda() for pairs in zip(shapes, tiles, strict=True)]
    for _ in range(2):
        gradients = [torch.randn_like(weight) for weight in pair.weights]
        sweep(pair.updates(gradients, tiles))
        pair.step_theirs(gradients)
        pair.check(active)
    for mask, weight, was, moments in zip(active, pair.weights, before, pair.moments, strict=True):
        assert torch.equal(weight[~mask], was[~mask])
        assert not any(moment[~mask].any() for moment in moments)


def test_sweep_waits_for_nothing(never_waiting: None) -> None:
    pair = Pair(ADAMW, _weights(torch.float32, SHAPES))
    gradients = [torch.randn_like(weight) for weight in pair.weights]
    sweep(pair.updates(gradients), scale=torch.ones((), device="cuda"))


@pytest.mark.parametrize("blocks", [None, LARGE, SMALL], ids=["chosen", "large", "small"])
@pytest.mark.parametrize("inputs", DTYPES[:3], ids=str)
@pytest.mark.parametrize("weight", DTYPES[:2], ids=str)
def test_linear_update_equals_torch(
    weight: torch.dtype, inputs: torch.dtype, blocks: Blocks | None
) -> None:
    pair = Pair(ADAMW, _weights(weight, [(384, 512)]), moment_dtype=weight)
    for _ in range(2):
        _linear_step(pair, 200, inputs, blocks)
        pair.check()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear_update_of_odd_sizes(case: Case) -> None:
    pair = Pair(case, _weights(torch.float32, [(301, 259)]))
    for _ in range(2):
        _linear_step(pair, 77, torch.bfloat16)
        pair.check()


def test_linear_update_in_tf32() -> None:
    pair = Pair(ADAMW, _weights(torch.float32, [(256, 256)]))
    _linear_step(pair, 128, torch.float32, tf32=True)
    pair.check()


def test_linear_update_keeps_frozen_tiles() -> None:
    tiles = tiles_of(128, 128, 0, 4, -1, 5, device="cuda")
    pair = Pair(AMSGRAD, _weights(torch.float32, [(300, 384)]))
    before = pair.weights[0].clone()
    active = active_elements((300, 384), tiles).cuda()
    for blocks in (LARGE, SMALL):
        _linear_step(pair, 200, torch.bfloat16, blocks, tiles=tiles)
        pair.check([active])
    assert torch.equal(pair.weights[0][~active], before[~active])
    assert not any(moment[~active].any() for moment in pair.moments[0])


def test_linear_update_allocates_no_gradient(never_waiting: None) -> None:
    pair = Pair(ADAMW, _weights(torch.bfloat16, [(1024, 1024)]))
    rows, columns = (torch.ones(256, 1024, device="cuda").bfloat16() for _ in range(2))
    (update,) = pair.updates([torch.empty(0)])
    torch.cuda.reset_peak_memory_stats()
    before_bytes = torch.cuda.memory_allocated()
    linear_update(rows, columns, update)
    assert torch.cuda.max_memory_allocated() == before_bytes


def _linear_step(
    pair: Pair,
    num_tokens: int,
    dtype: torch.dtype,
    blocks: Blocks | None = None,
    **settings: object,
) -> None:
    height, width = pair.weights[0].shape
    rows, columns = (eighths(num_tokens, size, device="cuda") for size in (height, width))
    tiles = settings.pop("tiles", None)
    (update,) = pair.updates([torch.empty(0)], [tiles])
    linear_update(rows.to(dtype), columns.to(dtype), update, blocks=blocks, **settings)
    pair.step_theirs([(rows.double().t() @ columns.double()).float()])
