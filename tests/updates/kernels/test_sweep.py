"""The sweep on the CPU against torch's optimizers and against plain formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satcompile.updates.kernels.sweep import sweep
from satcompile.updates.optimizers.rules import Numbers, Rule, Tiles, Update

RULES = [
    Rule("sgd", 0),
    Rule("sgd", 1, maximize=True),
    Rule("sgd", 1, nesterov=True),
    Rule("adam", 2),
    Rule("adam", 2, decoupled=True),
    Rule("adam", 3, decoupled=True),
]
NUMBERS = Numbers(lr=0.02, weight_decay=0.1, beta1=0.9, beta2=0.97, eps=1e-6)
ADAM, SGD = replace(NUMBERS), replace(NUMBERS, beta2=0.0)


def update_of(rule: Rule, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Update:
    """An update in the middle of training."""
    moments = tuple(torch.rand(shape).to(dtype) for _ in range(rule.num_moments))
    numbers = ADAM if rule.formula == "adam" else SGD
    step = torch.tensor(3.0) if rule.formula == "adam" else None
    weight, gradient = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    return Update(rule, numbers, weight, gradient, moments, step)


def copied(update: Update) -> Update:
    step = None if update.step is None else update.step.clone()
    moments = tuple(moment.clone() for moment in update.moments)
    return replace(update, parameter=update.parameter.clone(), moments=moments, step=step)


def by_formula(update: Update, scale: float = 1.0) -> None:
    """As ``satcompile.updates.optimizers.rules`` says it, in float64."""
    rule, n = update.rule, update.numbers
    p, g = update.parameter.double(), update.gradient.double() * scale
    g = -g if rule.maximize else g
    if rule.decoupled:
        p = p * (1 - n.lr * n.weight_decay)
    else:
        g = g + n.weight_decay * p
    if rule.formula == "sgd":
        if rule.num_moments:
            (m,) = update.moments
            new = g if update.is_first else n.beta1 * m.double() + (1 - n.beta2) * g
            m.copy_(new)
            g = g + n.beta1 * new if rule.nesterov else new
        update.parameter.copy_(p - n.lr * g)
        return
    assert update.step is not None
    update.step += 1
    t = float(update.step)
    m, v = (moment.double() for moment in update.moments[:2])
    m = m + (g - m) * (1 - n.beta1)
    v = n.beta2 * v + (1 - n.beta2) * g * g
    for moment, value in zip(update.moments, (m, v), strict=False):
        moment.copy_(value)
    if rule.num_moments == 3:
        v = torch.maximum(update.moments[2].double(), v)
        update.moments[2].copy_(v)
    denominator = v.sqrt() / math.sqrt(1 - n.beta2**t) + n.eps
    update.parameter.copy_(p - n.lr / (1 - n.beta1**t) * m / denominator)


def assert_same(found: Update, wanted: Update, tolerance: float) -> None:
    pairs = [(found.parameter, wanted.parameter), *zip(found.moments, wanted.moments, strict=True)]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert found.step == wanted.step


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)],
    ids=str,
)
def test_one_call_updates_many(rule: Rule, dtype: torch.dtype, tolerance: float) -> None:
    found = [update_of(rule, shape, dtype) for shape in [(3, 5), (40_001,), (), (0, 4), (2, 3, 4)]]
    found[2].is_first = rule.formula == "sgd"
    wanted = [copied(update) for update in found]
    sweep(found, torch.tensor(0.5))
    for mine, theirs in zip(found, wanted, strict=True):
        by_formula(theirs, 0.5)
        assert_same(mine, theirs, tolerance)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), height=st.integers(1, 11),
    width=st.integers(1, 11), rule=st.sampled_from(RULES), data=st.data(),
)  # fmt: skip
def test_frozen_tiles_do_not_change_by_a_bit(
    rows: int, columns: int, height: int, width: int, rule: Rule, data: st.DataObject
) -> None:
    across = -(-columns // width)
    count = -(-rows // height) * across
    active = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    whole = update_of(rule, (rows, columns))
    before, tiled = copied(whole), copied(whole)
    tiled.tiles = Tiles(height, width, torch.tensor([*active, -1, -1], dtype=torch.int32))
    sweep([whole])
    sweep([tiled])
    for row in range(rows):
        for column in range(columns):
            is_active = row // height * across + column // width in active
            of = whole if is_active else before
            assert tiled.parameter[row, column] == of.parameter[row, column]
            for mine, theirs in zip(tiled.moments, of.moments, strict=True):
                assert mine[row, column] == theirs[row, column]


def test_what_is_not_finite_spreads_as_in_torch() -> None:
    found = update_of(Rule("adam", 3, decoupled=True), (6,), torch.bfloat16)
    found.gradient[:3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    found.moments[2][4] = float("nan")
    wanted = copied(found)
    sweep([found])
    by_formula(wanted)
    for a, b in [
        (found.parameter, wanted.parameter),
        *zip(found.moments, wanted.moments, strict=True),
    ]:
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_that_of_torchs_compiled_step(dtype: torch.dtype) -> None:
    """Against float64, ours is as near as torch's own compiled step."""
    torch.manual_seed(1)
    start = torch.randn(50, 40).to(dtype)
    gradients = [torch.randn(50, 40).to(dtype) for _ in range(20)]
    exact = update_of(Rule("adam", 2, decoupled=True), (50, 40))
    ours = update_of(Rule("adam", 2, decoupled=True), (50, 40), dtype)
    for each in (exact, ours):
        each.parameter.copy_(start)
        for value in (*each.moments, each.step):
            value.zero_()
    weight = torch.nn.Parameter(start.clone())
    n = NUMBERS
    optimizer = torch.optim.AdamW(
        [weight], n.lr, (n.beta1, n.beta2), n.eps, n.weight_decay, foreach=True
    )
    compiled = torch.compile(optimizer.step)
    for gradient in gradients:
        exact.gradient, ours.gradient, weight.grad = gradient.double(), gradient, gradient
        by_formula(exact)
        sweep([ours])
        compiled()
    noise = (weight.double() - exact.parameter).abs().mean()
    assert (ours.parameter.double() - exact.parameter).abs().mean() <= 1.2 * noise
