"""Many programs, and one shrunk example of each kind of failure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.programs.failures import Failure
from tests.programs.program import Program
from tests.programs.strategy import programs

_SHRINKING = 80  # runs for one kind of failure


@dataclass
class Search:
    """What was found so far.

    Attributes:
        check: of one program; says what was found or raises a ``Failure``.
        outcomes: how often each was found.
        smallest: a program of each kind of failure, as small as it was made.
    """

    check: Callable[[Program], str]
    outcomes: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    smallest: dict[str, tuple[Program, str]] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        return sum(self.outcomes.values())

    def run(self, examples: int, number: int, max_size: int, told: Callable[[str], None]) -> None:
        """Until so many were drawn; a kind that is known is counted and not shrunk again."""
        while self.examples < examples:
            round_ = _Round(self)
            number += 1

            @seed(number)
            @settings(
                max_examples=examples - self.examples,
                database=None,
                deadline=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
                print_blob=False,
            )
            @given(programs(max_size))
            def drawn(program: Program) -> None:
                round_.take(program)  # noqa: B023  # it runs in this round alone

            before = self.examples
            try:
                drawn()
            except Failure as error:
                self.smallest[error.kind] = round_.latest
                told(error.kind)
            if self.examples == before:
                return  # nothing new is drawn


class _Round:
    """Until a failure of a new kind, which is then shrunk."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self._failed: dict[str, Failure] = {}
        self._shrinking = 0
        self.latest: tuple[Program, str]

    def take(self, program: Program) -> None:
        source = program.source()
        if source in self._failed:
            self.latest = program, str(self._failed[source])
            raise self._failed[source]
        if self._failed:
            self._shrinking += 1
            if self._shrinking > _SHRINKING:
                return
        outcome = self._checked(program, source)
        if self._shrinking == 0:
            self.search.outcomes[outcome] += 1
            self.search.operators.update(program.operators)
        if source in self._failed:
            raise self._failed[source]

    def _checked(self, program: Program, source: str) -> str:
        try:
            return self.search.check(program)
        except Failure as error:
            if error.kind not in self.search.smallest:
                kind = next(iter(self._failed.values())).kind if self._failed else error.kind
                if kind == error.kind:
                    self._failed[source], self.latest = error, (program, str(error))
            return f"FAILED {error.kind}"


def write(folder: Path, kind: str, program: Program, text: str, options: dict) -> Path:
    """The program as a script, under a name made of its kind."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"\W+", "_", kind)[:80].strip("_") + ".py")
    head = "".join(f"# {line}\n" for line in [kind, *text.splitlines()])
    path.write_text(head + program.script(options))
    return path
