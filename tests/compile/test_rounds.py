"""Who retries when code is over the budget, and by how much less: with code that a test makes up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx

from satcompile.compile import rounds
from satcompile.compile.rounds import Compilation, OverLimit, Planned, first_limits
from satcompile.options import Options
from satcompile.planner.request import Request
from satcompile.solver.training.rungs import RUNG

DEFAULT_BYTES = 10_000  # torch's own plan, simulated; no plan is below FLOOR_BYTES
FLOOR_BYTES = 2_000


@dataclass
class Made:
    """What ``generate`` returns, as far as rounds look at it."""

    request: Request
    simulated_bytes: int
    step_peak_bytes: int
    compiled: Callable[..., Any] | None
    is_default: bool = False
    is_training: bool = True
    relative_time: float = 0.0

    @property
    def graphs(self) -> SimpleNamespace:
        profile = SimpleNamespace(peak_bytes=self.simulated_bytes)
        plan = SimpleNamespace(
            profile=profile, is_default=self.is_default, is_like=lambda other: False
        )
        return SimpleNamespace(plan=plan)

    def is_within(self, accept_bytes: int) -> bool:
        return self.step_peak_bytes <= accept_bytes

    def decided(self, request: Request) -> SimpleNamespace:
        return SimpleNamespace(plan=made_for(request, lambda bytes_: bytes_, True).graphs.plan)


def made_for(request: Request, code_bytes: Callable[[int], int], code_only: bool) -> Made:
    """A plan is exactly at its limit, if there is one; its code takes what the test says."""
    if request.lowest_peak:
        simulated_bytes = FLOOR_BYTES + 100 * request.low_way
    elif (
        request.limit_bytes is None
        or max(request.limit_bytes, request.default_within_bytes) >= DEFAULT_BYTES
    ):
        simulated_bytes = DEFAULT_BYTES
    else:
        simulated_bytes = max(FLOOR_BYTES, request.limit_bytes)
    step_bytes = code_bytes(simulated_bytes)
    is_over = request.accept_bytes is not None and step_bytes > request.accept_bytes
    compiled = None if code_only or is_over else (lambda: None)
    is_default = simulated_bytes == DEFAULT_BYTES
    return Made(request, simulated_bytes, step_bytes, compiled, is_default)


@dataclass
class Inductor:
    """Stands for ``generate``, and remembers what it was asked."""

    code_bytes: Callable[[int], int]
    asked: list[tuple[Request, bool]] = field(default_factory=list)

    def __call__(
        self, gm: fx.GraphModule, inputs: Any, request: Request, known: Any, code_only: bool
    ) -> Made:
        self.asked.append((request, code_only))
        return made_for(request, self.code_bytes, code_only)

    @property
    def limits(self) -> list[int | None]:
        """Limits of the compilations, in order."""
        return [request.limit_bytes for request, code_only in self.asked if not code_only]


@pytest.fixture
def within(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[Planned | OverLimit, Inductor]]:
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    module = fx.GraphModule(torch.nn.Module(), graph)
    x = torch.ones(2, requires_grad=True)

    def run(
        accept_bytes: int, code_bytes: Callable[[int], int] = lambda bytes_: bytes_, **how: bool
    ) -> tuple[Planned | OverLimit, Inductor]:
        inductor = Inductor(code_bytes)
        monkeypatch.setattr(rounds, "generate", inductor)
        compilation = Compilation(module, [x], Options())
        return compilation.within(accept_bytes, (), [x], **how), inductor

    return run


def test_code_that_takes_what_was_simulated_is_compiled_once(within: Any) -> None:
    found, inductor = within(5_000)
    assert isinstance(found, Planned) and found.rounds == 1
    assert inductor.limits == [first_limits(5_000)[0]]


def test_torchs_own_plan_is_tried_where_its_code_may_fit(within: Any) -> None:
    """Its simulation is 2% above the budget, its code below."""
    found, inductor = within(9_800, lambda bytes_: int(0.97 * bytes_))
    assert isinstance(found, Planned) and found.generated.is_default
    assert inductor.limits == [first_limits(9_800)[0]]


def test_the_limit_falls_by_the_ratio_that_the_code_was_over(within: Any) -> None:
    found, inductor = within(5_000, lambda bytes_: int(1.25 * bytes_))
    assert isinstance(found, Planned) and found.rounds == 2
    first, second = inductor.limits
    assert second == pytest.approx(first * 5_000 / int(1.25 * first), abs=2)
    assert found.generated.step_peak_bytes <= 5_000


def test_the_limit_falls_by_a_rung_at_least(within: Any) -> None:
    """One byte over, a ratio alone would come to the same plan again and again."""
    found, inductor = within(5_000, lambda bytes_: max(5_001, bytes_) if bytes_ > 4_700 else bytes_)
    assert isinstance(found, Planned)
    for before, after in zip(inductor.limits, inductor.limits[1:], strict=False):
        assert after <= before * RUNG


def test_after_some_rounds_the_lowest_plan_is_taken(within: Any) -> None:
    found, inductor = within(
        5_000, lambda bytes_: bytes_ if bytes_ == FLOOR_BYTES else max(5_001, bytes_)
    )
    assert isinstance(found, Planned)
    assert found.generated.request.lowest_peak
    assert found.rounds == len(inductor.limits) == rounds._ROUNDS + 1


def test_no_round_is_spent_below_the_lowest_plan(within: Any) -> None:
    found, inductor = within(FLOOR_BYTES, lambda bytes_: bytes_ + 1)
    assert isinstance(found, OverLimit)
    assert inductor.limits[1:] == [0]  # the plan of the lowest peak


def test_no_round_is_spent_again_where_torchs_own_plan_is_the_lowest(
    within: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "FLOOR_BYTES", DEFAULT_BYTES)
    found, inductor = within(DEFAULT_BYTES - 100, lambda bytes_: bytes_)
    assert isinstance(found, OverLimit)
    assert len(inductor.limits) <= 3


def test_a_budget_below_the_floor_names_the_lowest_code_not_the_lowest_simulation(
    within: Any,
) -> None:
    """The code of one of the low ways is lower than that of the plan of the lowest simulated peak."""
    low_way_bytes = FLOOR_BYTES + 100
    found, inductor = within(
        1_000, lambda bytes_: 1_500 if bytes_ == low_way_bytes else bytes_ + 500
    )
    assert isinstance(found, OverLimit)
    assert found.lowest.step_peak_bytes == 1_500
    assert found.lowest.request.low_way == 1
    assert all(code_only for _, code_only in inductor.asked[2:])  # nothing more was compiled


def test_where_it_may_exceed_the_floor_is_compiled(within: Any) -> None:
    found, _ = within(1_000, lowest_may_exceed=True)
    assert isinstance(found, Planned)
    assert found.generated.step_peak_bytes == FLOOR_BYTES
    assert found.generated.compiled is not None


def test_no_accepted_bytes_at_all_are_below_every_floor(within: Any) -> None:
    found, inductor = within(-5)
    assert isinstance(found, OverLimit) and found.lowest.step_peak_bytes == FLOOR_BYTES
    assert inductor.limits == [0]
