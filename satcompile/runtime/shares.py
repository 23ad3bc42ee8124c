"""Sums over the calls of a step: the bytes that each call holds beside the others.

Forwards run in order, backwards in the opposite order. Between its forward and its backward
each call holds what it saved; after its backward it holds its gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from satcompile.compile.allocation import Figures
from satcompile.runtime.residency import Residency


class Stretch(NamedTuple):
    """Consecutive calls of a step, as the figures that the rest of the step needs.

    Two stretches make one, whatever their calls, so that a call costs the same in a step of a
    thousand as in a step of one.

    Attributes:
        lasting_bytes: alive before the step and after it.
        held_bytes: inputs, and values kept for the backwards.
        gradient_bytes: gradients of leaves, alive after the backwards.
        output_bytes: results of the last call, which the caller may keep.
        forward_bytes: peak over the forwards, from what was alive before the first.
        backward_bytes: peak over all backwards but the last call's, without that call's results.
        last_bytes: peak of the last call's backward.
    """

    lasting_bytes: int
    held_bytes: int
    gradient_bytes: int
    output_bytes: int
    forward_bytes: int
    backward_bytes: int
    last_bytes: int

    def then(self, other: Stretch) -> Stretch:
        """These calls, then those of ``other``. The forwards of ``other`` run while these calls
        hold what they keep; the backwards of these run once ``other`` has left its gradients."""
        if other is NO_CALLS:
            return self
        beside = max(self.backward_bytes, self.last_bytes) + other.gradient_bytes
        return Stretch(
            self.lasting_bytes + other.lasting_bytes,
            self.held_bytes + other.held_bytes,
            self.gradient_bytes + other.gradient_bytes,
            other.output_bytes,
            max(self.forward_bytes, self.held_bytes + other.forward_bytes),
            max(beside, self.held_bytes + other.backward_bytes),
            self.held_bytes + other.last_bytes,
        )

    @property
    def peak_bytes(self) -> int:
        """The peak of a step of these calls, resident bytes included."""
        backwards = max(self.backward_bytes + self.output_bytes, self.last_bytes)
        return self.lasting_bytes + max(0, self.forward_bytes, backwards)


_NEVER = -(1 << 60)  # stands for no peak
NO_CALLS = Stretch(0, 0, 0, 0, _NEVER, _NEVER, _NEVER)


def stretch_of_one(residency: Residency, figures: Figures) -> Stretch:
    """The stretch of one call."""
    inputs = residency.inputs
    return Stretch(
        residency.total_bytes - inputs,
        inputs + figures.held_bytes,
        figures.gradient_bytes + residency.coming_gradients,
        figures.output_bytes,
        inputs + figures.forward_bytes,
        _NEVER,
        inputs + figures.backward_bytes,
    )


@dataclass
class Share:
    """The memory that one call adds to its step.

    Attributes:
        residency: memory that is alive before the call and not counted with an earlier one.
        figures: allocations of its code; zeros once its backward has run.
    """

    residency: Residency
    figures: Figures
    _behind: tuple[Stretch, Stretch] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def stretch(self) -> Stretch:
        return stretch_of_one(self.residency, self.figures)

    def behind(self, before: Stretch) -> Stretch:
        """The calls of ``before``, then this one. Steps are alike: the latest answer is kept, and
        the same object is returned again."""
        known = self._behind
        if known is None or known[0] is not before:
            known = self._behind = before, before.then(self.stretch)
        return known[1]

    @cached_property
    def closed(self) -> Share:
        """The share of a call whose backward has run: its gradients stay."""
        came = self.figures.gradient_bytes + self.residency.coming_gradients
        gradients = self.residency.gradients + came
        alive = replace(self.residency, inputs=0, gradients=gradients, coming_gradients=0)
        return Share(alive, NOTHING)


NOTHING = Figures(0, 0, 0, 0, 0)


def stretch_of(shares: Iterable[Share]) -> Stretch:
    return functools.reduce(Stretch.then, (share.stretch for share in shares), NO_CALLS)


def resident_bytes(shares: Sequence[Share]) -> int:
    """Bytes alive before a step: inputs of the first call, and all that lasts from step to step."""
    if not shares:
        return 0
    return stretch_of(shares).lasting_bytes + shares[0].residency.inputs


def step_peak_bytes(shares: Sequence[Share]) -> int:
    """Peak of a step of several calls, resident bytes included."""
    return stretch_of(shares).peak_bytes


@dataclass
class Room:
    """The memory that a call may take beside the others of its step.

    Attributes:
        earlier, later: the calls before and after it.
        residency: the call's own.
        budget_bytes: for the whole step; ``reserve_bytes`` of it may not be used.
    """

    earlier: Stretch
    later: Stretch
    residency: Residency
    budget_bytes: int
    reserve_bytes: int

    @property
    def limit_bytes(self) -> int:
        return self.budget_bytes - self.reserve_bytes

    def peak_bytes_with(self, figures: Figures) -> int:
        """The peak of the whole step if the call has these figures."""
        own = stretch_of_one(self.residency, figures)
        return self.earlier.then(own).then(self.later).peak_bytes

    @property
    def left_bytes(self) -> int:
        """Bytes left for the allocations of the call's own forward and backward."""
        return self.limit_bytes - self.residency.total_bytes - self.outside_bytes

    @property
    def outside_bytes(self) -> int:
        """Bytes that the other calls hold, at most, while this call runs."""
        before, after = self.earlier, self.later
        lasting_bytes = before.lasting_bytes + after.lasting_bytes
        return lasting_bytes + before.held_bytes + after.gradient_bytes + after.output_bytes
