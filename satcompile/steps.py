"""What compiled graphs hold at the same time: the calls of a training step, in order.

A graph break cuts a model into several graphs, and blocks compiled one by one are several
calls of one. Forwards run in order, backwards in the opposite order; between its forward and
its backward each call holds what it saved. So a call must fit beside what earlier calls hold,
and its backward beside the gradients that later calls have left. Who comes later is known
once a step has run to its end: from the second step on, the whole is planned.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from satcompile.generated_code import StepWalk
from satcompile.residency import Residency, storage_key
from satcompile.torch_compat import backward_node


@dataclass(frozen=True)
class Share:
    """What one call adds to its step, in bytes.

    Attributes:
        residency: what is alive before the call and not counted with an earlier one.
        forward_bytes: peak of what the forward allocates.
        backward_bytes: peak over the backward, with what the forward left.
        held_bytes: alive between the two.
        output_bytes: of these, results that the caller may keep after the backward.
        gradient_bytes: of leaves, alive after the backward.
    """

    residency: Residency
    forward_bytes: int
    backward_bytes: int
    held_bytes: int
    output_bytes: int
    gradient_bytes: int

    @classmethod
    def of(cls, residency: Residency, walk: StepWalk) -> Share:
        forward, backward = walk.profiles()
        return cls(
            residency,
            forward.peak_bytes,
            backward.peak_bytes,
            walk.held_bytes,
            walk.bytes_at_end("outputs"),
            walk.bytes_at_end("gradients"),
        )

    def closed(self) -> Share:
        """The share of a call whose backward has run: what stays are its gradients."""
        residency = replace(
            self.residency, inputs=0, gradients=self.residency.gradients + self.gradient_bytes
        )
        return Share(residency, 0, 0, 0, 0, 0)


def resident_bytes(shares: Sequence[Share]) -> int:
    """Alive before a step: inputs of the first call, and whatever stays from step to step."""
    if not shares:
        return 0
    lasting = sum(share.residency.total_bytes - share.residency.inputs for share in shares)
    return lasting + shares[0].residency.inputs


def bytes_before(shares: Sequence[Share], position: int) -> int:
    """Held by earlier calls when the one at ``position`` begins, and its own new inputs."""
    return sum(share.held_bytes for share in shares[:position]) + sum(
        share.residency.inputs for share in shares[1 : position + 1]
    )


def bytes_after(shares: Sequence[Share], position: int) -> int:
    """Left by later calls when the backward of the one at ``position`` begins: gradients, and
    the step's result."""
    later = shares[position + 1 :]
    return sum(share.gradient_bytes for share in later) + (later[-1].output_bytes if later else 0)


def step_peak_bytes(shares: Sequence[Share]) -> int:
    """Peak of a step of several calls, with what is resident."""
    peaks = [0]
    for position, share in enumerate(shares):
        before = bytes_before(shares, position)
        peaks.append(before + share.forward_bytes)
        peaks.append(before + share.backward_bytes + bytes_after(shares, position))
    return resident_bytes(shares) + max(peaks)


@dataclass
class Room:
    """What a call may take beside the others of its step.

    Attributes:
        earlier, later: shares of the calls before and after it.
        residency: its own.
        budget_bytes: for the whole step; ``reserve_bytes`` of it are not ours.
    """

    earlier: tuple[Share, ...]
    later: tuple[Share, ...]
    residency: Residency
    budget_bytes: int
    reserve_bytes: int

    @property
    def limit_bytes(self) -> int:
        return self.budget_bytes - self.reserve_bytes

    def peak_bytes_with(self, share: Share) -> int:
        """Of the whole step, were ``share`` this call's."""
        return step_peak_bytes([*self.earlier, share, *self.later])

    @property
    def left_bytes(self) -> int:
        """For what the call's own forward and backward allocate."""
        shares = [*self.earlier, Share(self.residency, 0, 0, 0, 0, 0), *self.later]
        position = len(self.earlier)
        others = bytes_before(shares, position) + bytes_after(shares, position)
        return self.limit_bytes - resident_bytes(shares) - others

    @property
    def outside_bytes(self) -> int:
        """Of the other calls, at this call's worst."""
        return self.limit_bytes - self.left_bytes - self.residency.total_bytes


@dataclass(eq=False)
class Call:
    """A call of a graph in a step; open until its backward begins, or can never come."""

    graph: Any
    step: Step
    position: int
    thread: int
    share: Share | None = None
    sizes: tuple[int, ...] = ()
    counted: frozenset[Any] = frozenset()
    outputs: set[int] = field(default_factory=set)
    is_open: bool = True

    @property
    def last_step(self) -> Step | None:
        """The last step of several calls that began with the graph that this one began with."""
        return self.step.calls[0].graph.last_step

    @property
    def is_provisional(self) -> bool:
        """Whether earlier calls of the step were planned before anyone knew of this one."""
        return self.position > 0 and self.last_step is None

    def earlier_shares(self) -> tuple[Share, ...]:
        """Of the calls before this one; closed ones hold no more than their gradients."""
        earlier = self.step.calls[: self.position]
        return tuple(
            call.share if call.is_open else call.share.closed()
            for call in earlier
            if call.share is not None
        )

    def later_shares(self) -> tuple[Share, ...]:
        """Of the calls that came after this one in the last step, as they were then."""
        last, position = self.last_step, self.position
        if last is None or position >= len(last.calls):
            return ()
        if last.calls[position].graph is not self.graph:
            return ()
        return tuple(call.share for call in last.calls[position + 1 :] if call.share is not None)


@dataclass(eq=False)
class Step:
    """The calls of a step so far; it is named after the graph of the first."""

    calls: list[Call] = field(default_factory=list)


class Steps:
    """Every open call of the process. Autograd runs backwards in threads of its own."""

    def __init__(self) -> None:
        self._open: list[Call] = []
        self._current: dict[int, Step] = {}
        self._lock = threading.Lock()

    def begin(self, graph: Any, args: Sequence[Any]) -> Call:
        """A forward is about to run: as the root of a step, or as part of the one under way."""
        thread = threading.get_ident()
        with self._lock:
            earlier = [call for call in self._open if call.thread == thread]
            step = self._current.get(thread)
            if step is None or not earlier or not _continues(graph, args, earlier):
                if step is not None and len(step.calls) > 1:
                    step.calls[0].graph.last_step = step
                step = self._current[thread] = Step()
            call = Call(graph, step, len(step.calls), thread)
            step.calls.append(call)
        return call

    def opened(self, call: Call, results: Sequence[Any]) -> None:
        """Its forward has run and returned ``results``."""
        tensors = [r for r in results if isinstance(r, torch.Tensor)]
        call.outputs = {storage_key(tensor) for tensor in tensors}
        node = next((n for n in map(backward_node, tensors) if n is not None), None)
        if node is None:
            call.is_open = False
            return
        with self._lock:
            self._open.append(call)
        weakref.finalize(node, self._close, call).atexit = False

    def failed(self, call: Call) -> None:
        """Its forward did not run."""
        with self._lock:
            if call in call.step.calls:
                call.step.calls.remove(call)

    def backward_begins(self, graph: Any) -> None:
        with self._lock:
            mine = [call for call in self._open if call.graph is graph]
            if mine:
                self._remove(mine[-1])

    def open_calls(self) -> tuple[Call, ...]:
        """Calls whose backward may still come."""
        with self._lock:
            return tuple(self._open)

    def _close(self, call: Call) -> None:
        with self._lock:
            self._remove(call)

    def _remove(self, call: Call) -> None:
        call.is_open = False
        if call in self._open:
            self._open.remove(call)


def _continues(graph: Any, args: Sequence[Any], earlier: Sequence[Call]) -> bool:
    """Whether a call belongs to the step of the open ones: by autograd, or by its code."""
    if any(isinstance(arg, torch.Tensor) and arg.grad_fn is not None for arg in args):
        return True
    return any(graph.is_of_same_code(call.graph) for call in earlier)


STEPS = Steps()
