"""How a row ended: the kinds of results, and what makes each."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from pathlib import Path

import satcompile
from benchmarks.coverage.rows import (
    BELOW_FLOOR,
    CRASH,
    EXCEEDED,
    FLOOR_NOT_MET,
    PREDICTION_OFF,
    REFUSED,
    SHARE,
    TORCH_FAILS,
    WRONG,
    Record,
    worst,
)
from benchmarks.coverage.values import Distance

PREDICTION_TOLERANCE = 0.01  # of what the step allocates
DETAIL_LENGTH = 300


@dataclass(frozen=True)
class Failure:
    """An error instead of figures."""

    text: str


class NamedRefusal(Failure):
    """An error of ours that says what it does not do."""


class BudgetRefused(Failure):
    """No plan within the budget."""


@dataclass(frozen=True)
class Figures:
    """What was measured of a row that ran to its end. All bytes are totals.

    Attributes:
        over_bytes: by which a graph's measured peak is above its budget; not above 0 is within.
        predictions: by what the peaks were predicted.
        rounds: compilations until the code was within the budget.
        graphs: that ran with gradients.
    """

    distance: Distance
    tolerance: float
    budget_bytes: int | None
    resident_bytes: int
    predicted_bytes: int | None
    measured_bytes: int | None
    over_bytes: int
    default_bytes: int | None
    predictions: tuple[str, ...] = ()
    rounds: int = 1
    graphs: int = 1

    @property
    def deviation(self) -> float | None:
        """How far the predicted peak is from the measured one, as a share of what the step allocates. None
        with several graphs: each predicts its own part, and what runs eagerly between them nobody predicts."""
        if self.predicted_bytes is None or not self.measured_bytes or self.graphs != 1:
            return None
        step_bytes = max(self.measured_bytes - self.resident_bytes, 1)
        return (self.predicted_bytes - self.measured_bytes) / step_bytes


def failure_of(error: Exception) -> Failure:
    first = " ".join(str(error).split())
    text = f"{type(error).__name__}: {first}"[:DETAIL_LENGTH]
    if isinstance(error, satcompile.BudgetError):
        return BudgetRefused(text)
    if isinstance(error, satcompile.SatcompileError) and not isinstance(
        error, satcompile.VerificationError
    ):
        return NamedRefusal(text)
    return Failure(f"{text} [{_place_of(error)}]")


def _place_of(error: Exception) -> str:
    """File, line and function where it was raised: what tells two crashes apart."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "nowhere"
    ours = [
        frame for frame in frames if "satcompile" in frame.filename or "passes/" in frame.filename
    ]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"


def judged(budget: str, found: Failure | Figures, torch_failure: Failure | None) -> Record:
    """``result``, and for what is not clean ``detail``."""
    if isinstance(found, Failure):
        return _judged_failure(budget, found, torch_failure)
    faults, details = [], []
    if found.distance.share > found.tolerance:
        faults.append(WRONG)
        details.append(
            f"{found.distance.where} is off by {found.distance.share:.2g} of its largest value, "
            f"tolerance {found.tolerance:.2g}"
        )
    if found.over_bytes > 0:
        faults.append(EXCEEDED)
        details.append(
            f"measured {found.measured_bytes:,} of {found.budget_bytes:,} bytes, predicted "
            f"{found.predicted_bytes:,}"
        )
    deviation = found.deviation
    if deviation is not None and abs(deviation) > PREDICTION_TOLERANCE:
        faults.append(PREDICTION_OFF)
        details.append(
            f"predicted {found.predicted_bytes:,} by {' and '.join(found.predictions)}, measured "
            f"{found.measured_bytes:,}: {deviation:+.1%} of what the step allocates"
        )
    return {"result": worst(faults), "faults": faults, "detail": "; ".join(details)}


def _judged_failure(budget: str, found: Failure, torch_failure: Failure | None) -> Record:
    detail = re.sub(r"0x[0-9a-f]+", "0x", found.text)
    if isinstance(found, BudgetRefused):
        result = BELOW_FLOOR if budget == SHARE else FLOOR_NOT_MET
    elif isinstance(found, NamedRefusal):
        result = REFUSED
    elif torch_failure is not None:
        result = TORCH_FAILS
    else:
        result = CRASH
    faults = [result] if result in (CRASH, FLOOR_NOT_MET) else []
    return {"result": result, "faults": faults, "detail": detail}
