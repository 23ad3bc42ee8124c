"""What a row is, how it can end, and in which order rows are run."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NO_BUDGET, SHARE, NEAR_FLOOR, FLOOR = "none", "60% of default", "floor + 20%", "floor + 1%"
BUDGETS = (NO_BUDGET, SHARE, NEAR_FLOOR, FLOOR)
VARIANTS = ("plain", "checkpointed", "bf16 autocast", "LoRA")

CLEAN, BELOW_FLOOR = "clean", "below the floor"
NOT_APPLICABLE, NOT_INSTALLED = "not applicable", "not installed"
NOTHING_COMPILED = "nothing compiled"  # Dynamo gave neither backend a graph
TORCH_FAILS, EAGER_FAILS = "torch.compile fails too", "eager fails"
REFUSED = "refused by name"
# From the worst on: a row that has several is counted under the first.
FAULTS = (
    "wrong gradient",
    "budget exceeded",
    "crash",
    "time-out",
    "floor not met",
    "prediction off",
)
WRONG, EXCEEDED, CRASH, TIME_OUT, FLOOR_NOT_MET, PREDICTION_OFF = FAULTS
KINDS = (
    CLEAN, BELOW_FLOOR, REFUSED, *FAULTS, TORCH_FAILS, NOTHING_COMPILED, EAGER_FAILS,
    NOT_APPLICABLE, NOT_INSTALLED,
)  # fmt: skip
WITHOUT_FIGURES = (NOTHING_COMPILED, NOT_APPLICABLE, NOT_INSTALLED, EAGER_FAILS)

Record = dict[str, Any]


class Key(NamedTuple):
    """Names a row."""

    architecture: str
    variant: str
    budget: str

    def __str__(self) -> str:
        return "/".join(self)


@dataclass(frozen=True)
class Job:
    """Rows of one architecture and variant, to be run in one process."""

    architecture: str
    variant: str
    budgets: tuple[str, ...]

    @property
    def keys(self) -> list[Key]:
        return [Key(self.architecture, self.variant, budget) for budget in self.budgets]


def key_of(record: Mapping[str, Any]) -> Key:
    return Key(record["architecture"], record["variant"], record["budget"])


def wanted(
    architectures: Iterable[str],
    patterns: Sequence[str] = (),
    variants: Sequence[str] = VARIANTS,
    budgets_asked: Sequence[str] = BUDGETS,
) -> list[Job]:
    """Jobs in the order of their variants; a pattern is of a row's name, with ``*``."""
    jobs = []
    for variant in variants:
        for name in architectures:
            budgets = tuple(
                budget for budget in budgets_asked if _matches(Key(name, variant, budget), patterns)
            )
            if budgets:
                jobs.append(Job(name, variant, budgets))
    return jobs


def _matches(key: Key, patterns: Sequence[str]) -> bool:
    return not patterns or any(
        fnmatch.fnmatch(str(key), pattern) or key.architecture == pattern for pattern in patterns
    )


def by_age(jobs: Sequence[Job], records: Mapping[Key, Record]) -> list[Job]:
    """Rows that never ran come first, then those that ran longest ago."""

    def oldest(job: Job) -> str:
        return min(records[key]["when"] if key in records else "" for key in job.keys)

    return sorted(jobs, key=oldest)


def worst(faults: Sequence[str]) -> str:
    return min(faults, key=FAULTS.index) if faults else CLEAN
