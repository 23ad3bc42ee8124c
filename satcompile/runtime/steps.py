"""The calls of a training step, in order, and the memory that they hold at the same time.

A graph break cuts a model into several graphs, and blocks compiled one by one are several
calls of one graph. Forwards run in order, backwards in the opposite order. Between its forward
and its backward each call holds what it saved. So a call must fit beside what earlier calls hold,
and its backward must fit beside the gradients that later calls have left. Later calls are known
once a step has run to its end: from the second step on, the whole step is planned.
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from satcompile.compile.rounds import Compilation, Planned, Sizes
from satcompile.report.data import GraphReport
from satcompile.runtime.outside import Outside, held_outside
from satcompile.runtime.plan_in_use import PlanInUse
from satcompile.runtime.registry import GraphRecord
from satcompile.runtime.residency import Residency, storage_key
from satcompile.runtime.shares import NO_CALLS, NOTHING, Share, Stretch
from satcompile.torch_compat.autograd import backward_node
from satcompile.torch_compat.tensors import StorageReferences, storage_address

_MOST_TRAILS = 10_000  # entries kept; trails of steps that never recur would pile up
NOTHING_RESIDENT = Residency()


def _with_more(share: Share | Callable[[], Share | None] | None, more: Residency) -> Share | None:
    """The share plus ``more``: memory that another call, now gone, had counted."""
    made = share() if callable(share) else share
    return None if made is None else Share(made.residency + more, made.figures)


class StepGraph(Protocol):
    """A compiled graph under a budget, as its steps see it.

    Attributes:
        plans: the graph's plans, fastest first.
        last_step: the last step of several calls that began with the graph.
    """

    compilation: Compilation
    record: GraphRecord
    plans: list[PlanInUse]
    last_step: Step | None

    @property
    def name(self) -> str: ...

    def is_counted_with(self, other: StepGraph) -> bool:
        """Whether both graphs are under one budget."""
        ...

    def replace_plans(self, planned: Planned) -> None:
        """Make ``planned`` the only plan from now on."""
        ...

    def default_share(self, sizes: Sizes, residency: Residency) -> Share | None:
        """The share that a call would add to its step with torch's own plan."""
        ...


class Place(Protocol):
    """A graph's place in a step, with the surroundings that stay the same from step to step."""

    residency: Residency
    counted: frozenset[int]


class Decided(Protocol):
    """The decision for a call: the plan that it runs."""

    plan: PlanInUse

    @property
    def report(self) -> GraphReport | None: ...

    def share(self) -> Share | None: ...


@dataclass(eq=False, slots=True)
class Call:
    """A call of a graph in a step. It is open until its backward begins (it has then run) or can no
    longer come.

    Attributes:
        who: key of the instance whose forward the graph is.
        counted: storages (by ``storage_key``) and parameters (by id) that its share counts and
            that outlast it.
        lasting: the part of its share that outlasts it.
        borrowed_bytes: bytes of inputs that earlier calls of the step count.
        trail: number of the sequence of earlier calls, which determines what they have counted.
        is_repeated: whether an earlier call was by the same instance.
        node: the autograd node whose end closes the call.
    """

    graph: StepGraph
    step: Step
    position: int
    thread: int
    who: Hashable
    trail: int
    is_repeated: bool = False
    sizes: tuple[int, ...] = ()
    counted: frozenset[int] = frozenset()
    lasting: Residency = NOTHING_RESIDENT
    borrowed_bytes: int = 0
    is_open: bool = True
    has_run: bool = False
    node: weakref.ReferenceType[Any] | None = None
    _share: Share | Callable[[], Share | None] | None = None
    _before: Stretch = NO_CALLS
    _closed_before: int = 0

    @property
    def share(self) -> Share | None:
        """The share that the call adds to its step; None if unknown."""
        if callable(self._share):
            self._share = self._share()
        return self._share

    @share.setter
    def share(self, share: Share | Callable[[], Share | None] | None) -> None:
        """Set the share, or a function that makes it: it is costly, and seldom asked for."""
        self._share = share

    def count_what_it_borrowed(self) -> None:
        """Count the borrowed inputs; the call that counted them is gone."""
        if self.borrowed_bytes:
            self._count(Residency(inputs=self.borrowed_bytes))
            self.borrowed_bytes = 0

    def count_gradients(self, num_bytes: int) -> None:
        """Count gradients of the call's parameters; the call that counted them is gone."""
        if num_bytes:
            self._count(Residency(gradients=num_bytes))
            self.lasting += Residency(gradients=num_bytes)

    def _count(self, more: Residency) -> None:
        # Compute nothing here: a node may end at any time.
        self._share = functools.partial(_with_more, self._share, more)

    @property
    def last_step(self) -> Step | None:
        """The last step of several calls that began with the same graph as this step."""
        return self.step.graph.last_step

    @property
    def is_provisional(self) -> bool:
        """Whether earlier calls of the step were planned without knowing of this one."""
        return self.position > 0 and self.last_step is None

    def before(self) -> Stretch:
        """The calls before this one; closed calls hold only their gradients."""
        step = self.step
        if self.position:
            previous = step.calls[self.position - 1]
            if step.num_closed == previous._closed_before + (not previous.is_open):
                share = previous.share_now
                self._before = previous._before if share is None else share.behind(previous._before)
            else:
                earlier = step.calls[: self.position]
                self._before = functools.reduce(
                    Stretch.then, (call.stretch_now for call in earlier), step.outlasting
                )
        else:
            self._before = step.outlasting
        self._closed_before = step.num_closed
        return self._before

    @property
    def share_now(self) -> Share | None:
        """The current share: once the backward has run, gradients are left."""
        share = self.share
        return share if share is None or self.is_open else share.closed

    @property
    def stretch_now(self) -> Stretch:
        share = self.share_now
        return NO_CALLS if share is None else share.stretch

    def after(self) -> Stretch:
        """The calls that came after this one in the last step, as they were then."""
        last = self._followed()
        return NO_CALLS if last is None else last.suffix(self.position + 1)

    def beside(self) -> Beside:
        """The other calls of the step, as they are now."""
        last = self._followed()
        return Beside(
            [(call, call.is_open) for call in self.step.calls[: self.position]],
            self.step.gone,
            [] if last is None else last.calls[self.position + 1 :],
        )

    def _followed(self) -> Step | None:
        """The last step, if it had this graph at this place."""
        last, position = self.last_step, self.position
        if last is None or position >= len(last.calls):
            return None
        return last if last.calls[position].graph is self.graph else None


@dataclass(frozen=True)
class Beside:
    """The other calls of a step, as one of its calls sees them. Their shares are looked up on
    demand: for a report, or for a new plan.

    Attributes:
        earlier_calls: the calls before it, and whether each was open.
        gone: memory that outlasts dropped calls.
        later_calls: the calls after it, as they were in the last step.
    """

    earlier_calls: Sequence[tuple[Call, bool]] = ()
    gone: Residency = NOTHING_RESIDENT
    later_calls: Sequence[Call] = ()

    @cached_property
    def earlier(self) -> tuple[Share, ...]:
        shares = [
            call.share if was_open else call.share.closed
            for call, was_open in self.earlier_calls
            if call.share is not None
        ]
        if self.gone.total_bytes:
            first = shares[0] if shares else Share(NOTHING_RESIDENT, NOTHING)
            shares[:1] = [Share(self.gone + first.residency, first.figures)]
        return tuple(shares)

    @cached_property
    def later(self) -> tuple[Share, ...]:
        return tuple(call.share for call in self.later_calls if call.share is not None)


@dataclass(eq=False, slots=True)
class Step:
    """The calls of a step so far.

    Attributes:
        graph: the graph of the first call.
        num_closed: number of its calls that are no longer open.
        num_run: number of its remaining calls whose backwards closed them.
        served: instances that were called.
        gone: memory that outlasts dropped calls.
        borrowed_bytes: bytes of inputs that were counted before, over all calls.
        is_over: whether no more calls will come.
    """

    graph: StepGraph
    calls: list[Call] = field(default_factory=list)
    num_closed: int = 0
    num_run: int = 0
    served: set[Hashable] = field(default_factory=set)
    gone: Residency = NOTHING_RESIDENT
    is_over: bool = False
    borrowed_bytes: int = 0
    _first_lasting: frozenset[int] = frozenset()  # of the first call: most steps have no other
    _lasting: set[int] = field(default_factory=set)
    # While these references exist, no other storage gets their addresses.
    _passing: StorageReferences = field(default_factory=StorageReferences)
    _most: list[Call] | None = None
    _suffixes: list[Stretch] | None = None

    @property
    def counted(self) -> set[int]:
        """Storages and parameters that its calls have counted."""
        return self._lasting | self._first_lasting | self._passing.addresses()

    def count(self, call: Call, lasting: frozenset[int]) -> None:
        """Note the storages and parameters that ``call`` counts and that outlast it."""
        call.counted = lasting
        if call.position == 0 and not self._first_lasting:
            self._first_lasting = lasting
        else:
            self._lasting |= lasting

    def discount(self, call: Call) -> None:
        """Undo ``count``: the graph was not called after all."""
        if self._first_lasting is call.counted:
            self._first_lasting = frozenset()
        self._lasting -= call.counted

    def new_bytes(self, tensor: torch.Tensor) -> int:
        """Bytes of a call's input or result; 0 if an earlier call has counted them."""
        storage = tensor.untyped_storage()
        num_bytes, key = storage.nbytes(), storage_address(storage)
        if key in self._first_lasting or key in self._lasting or not self._passing.add(storage):
            self.borrowed_bytes += num_bytes
            return 0
        return num_bytes

    def outside_of(self, tensors: Sequence[torch.Tensor]) -> Residency:
        """Memory that eager code holds behind a call's inputs and no earlier call has counted.
        Saved tensors count as inputs."""
        found = held_outside(tensors)
        counted = self.counted
        new = [leaf for leaf in found.leaves if id(leaf) not in counted]
        residency = Outside(found.saved, new).residency
        self._lasting |= {id(leaf) for leaf in new} | {storage_key(leaf) for leaf in new}
        return residency.with_inputs(sum([self.new_bytes(tensor) for tensor in found.saved]))

    def suffix(self, position: int) -> Stretch:
        """The calls from ``position`` on, for a step that has ended."""
        if self._suffixes is None:
            found = NO_CALLS
            suffixes = [found]
            for call in reversed(self.calls):
                if call.share is not None:
                    found = call.share.stretch.then(found)
                suffixes.append(found)
            self._suffixes = suffixes[::-1]
        return self._suffixes[position]

    def changed(self) -> None:
        """Note that the share of some call has changed."""
        self._suffixes = None

    def gradient_bytes_of(self, who: Hashable) -> int:
        """Bytes of an instance's gradients, as its calls have counted them."""
        return sum(call.lasting.gradients for call in self.calls if call.who == who)

    @property
    def outlasting(self) -> Stretch:
        """Memory that outlasts the dropped calls."""
        if self.gone is NOTHING_RESIDENT or not self.gone.total_bytes:
            return NO_CALLS
        return NO_CALLS._replace(lasting_bytes=self.gone.total_bytes)

    def drop(self, call: Call) -> None:
        """Forget a call whose results are gone and whose backward never came, such as an evaluation
        without ``no_grad``: a loop of these is not a step of that many calls. Lasting memory stays
        counted. Inputs shared with later calls, and its parameters' gradients, count elsewhere."""
        if self.is_over or call not in self.calls:
            return
        self._remove(call)
        twin = next((other for other in self.calls if other.who == call.who), None)
        if twin is not None:
            twin.count_gradients(call.lasting.gradients)
        else:
            self.gone += Residency(gradients=call.lasting.gradients)

    def drop_those_that_ran(self, who: Hashable) -> None:
        """Forget an instance's calls whose backwards have run: another call of it begins while a
        graph stays alive. Their gradients are in the same tensors and are measured with its own."""
        for call in [c for c in self.calls if c.who == who and c.has_run]:
            self._remove(call)
            self.num_run -= 1

    def _remove(self, call: Call) -> None:
        if len(self.calls) > max(1, len(self._most or ())):
            self._most = list(self.calls)
        self.calls.remove(call)
        self.num_closed += 1  # earlier sums are out of date
        self.gone += replace(call.lasting, gradients=0)
        for later in self.calls[call.position :]:
            later.position -= 1
            later.count_what_it_borrowed()
        if self.calls:
            self.graph = self.calls[0].graph

    def _is_like(self, other: Step | None) -> bool:
        """Whether ``other`` calls the same graphs, and each call has the same share."""
        if other is None or len(other.calls) != len(self.calls):
            return False
        pairs = zip(self.calls, other.calls, strict=True)
        return all(a.graph is b.graph and a.share is b.share for a, b in pairs)

    def end(self) -> None:
        """End the step: no more calls will come. A step of several calls is what the next one is
        planned by. If calls were dropped, it takes the most calls that existed at one time."""
        self.is_over = True
        if self._most is not None and len(self._most) > len(self.calls):
            self.calls, self.graph = self._most, self._most[0].graph
        self._most = None
        if len(self.calls) > 1:
            if not self._is_like(self.graph.last_step):
                self.graph.last_step = self
            self._first_lasting, self._lasting = frozenset(), set()
            self._passing = StorageReferences()
        else:  # a call and its step form a cycle, which would make the collector run often
            self.calls.clear()


@dataclass(eq=False, slots=True)
class Alone:
    """A call that began a step while no other was open, like an earlier call that had its step to
    itself. It becomes a ``Call`` in a ``Step`` when another call joins it, which is rare.

    Attributes:
        graph, who, sizes: as in ``Call``.
        place: its place in the step: the memory that it counts and that outlasts it.
        decided: the decision for it: its plan, and so its share.
        tensors: other tensors that it counts, while they exist.
        thread: the thread that called it.
        node: the autograd node whose end closes it; None before the forward has run, or if there
            is none.
        has_run: whether its backward has begun.
    """

    graph: StepGraph
    who: Hashable
    sizes: tuple[int, ...]
    place: Place
    decided: Decided
    tensors: list[weakref.ReferenceType[torch.Tensor]]
    thread: int = 0
    node: weakref.ReferenceType[Any] | None = None
    has_run: bool = False

    @property
    def open_node(self) -> Any | None:
        """The node, if its backward may still come."""
        return None if self.has_run or self.node is None else self.node()


class Steps:
    """Every open call of the process. Autograd runs backwards in threads of its own."""

    def __init__(self) -> None:
        self._open: dict[Call, None] = {}  # in order of arrival
        self._alone: Alone | None = None  # while it is open, ``_open`` is empty
        self._current: dict[int, Step] = {}
        self._trails: dict[tuple[int, Hashable], int] = {}
        self._numbers = itertools.count(1)
        # Reentrant: a node may be collected while the lock is held, and its end is reported here.
        self._lock = threading.RLock()

    def begin(self, graph: StepGraph, args: Sequence[Any], who: Hashable = ()) -> Call:
        """Begin a call whose forward is about to run, in a new step or in the one under way.

        Args:
            graph, args: the graph that is called, and its arguments.
            who: key of the instance whose forward the graph is.
        """
        thread = threading.get_ident()
        with self._lock:
            if self._alone is not None:
                self._join_alone()
            step = self._current.get(thread)
            if (
                step is None
                or not self._open
                or not step.calls
                or not (
                    self._follows(graph, step.calls[-1]) or self._continues(graph, args, thread)
                )
            ):
                if step is not None:
                    step.end()
                step = self._current[thread] = Step(graph)
            trail = self._trail_behind(step.calls[-1]) if step.calls else 0
            if step.num_run:
                step.drop_those_that_ran(who)
            calls, served = step.calls, step.served
            call = Call(graph, step, len(calls), thread, who, trail, who in served)
            served.add(who)
            calls.append(call)
        return call

    def opened(self, call: Call, results: Sequence[Any]) -> None:
        """Open a call whose forward has run and returned ``results``."""
        node, step = None, call.step
        for result in results:
            if isinstance(result, torch.Tensor):
                step.new_bytes(result)
                if node is None:
                    node = backward_node(result)
        if node is None:
            call.is_open = False
            step.num_closed += 1
            return
        call.node = weakref.ref(node, functools.partial(self._close, call))
        self._open[call] = None

    # -- calls alone -----------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether no call is open. If so, the previous step, if any, ends."""
        if self._open or (self._alone is not None and self._alone.open_node is not None):
            return False
        if self._current:
            with self._lock:
                before = self._current.pop(threading.get_ident(), None)
                if before is not None:
                    before.end()
        return True

    def opened_alone(self, alone: Alone, results: Sequence[Any]) -> None:
        """Open a call whose forward has returned ``results``; no call was open when it began."""
        for result in results:
            if isinstance(result, torch.Tensor):
                alone.tensors.append(weakref.ref(result))
                if alone.node is None:
                    node = backward_node(result)
                    alone.node = None if node is None else weakref.ref(node)
        alone.thread = threading.get_ident()
        with self._lock:
            self._join_alone()  # a call of another thread may have come in between
            self._alone = alone

    def _join_alone(self) -> None:
        """Make the call that was alone the first call of a step, if it is open."""
        alone, self._alone = self._alone, None
        node = None if alone is None else alone.open_node
        if alone is None or node is None:
            return
        step = self._current[alone.thread] = Step(alone.graph)
        call = Call(alone.graph, step, 0, alone.thread, alone.who, trail=0, sizes=alone.sizes)
        step.calls.append(call)
        step.served.add(alone.who)
        step.count(call, alone.place.counted)
        call.lasting, call.share = alone.place.residency, alone.decided.share
        for reference in alone.tensors:
            tensor = reference()
            if tensor is not None:
                step.new_bytes(tensor)
        call.node = weakref.ref(node, functools.partial(self._close, call))
        self._open[call] = None

    def failed(self, call: Call) -> None:
        """Remove a call whose forward did not run."""
        with self._lock:
            if call in call.step.calls:
                call.step.calls.remove(call)
            if not call.is_repeated:
                call.step.served.discard(call.who)
            call.step.discount(call)

    def backward_begins(self, graph: StepGraph) -> None:
        alone = self._alone
        if alone is not None and alone.graph is graph and not alone.has_run:
            alone.has_run = True
            return
        with self._lock:
            for call in reversed(tuple(self._open)):
                if call.graph is graph:
                    self._remove(call)
                    call.has_run = True
                    call.step.num_run += 1
                    return

    def open_calls(self) -> tuple[Call, ...]:
        """Calls whose backward may still come."""
        with self._lock:
            self._join_alone()
            return tuple(self._open)

    def _close(self, call: Call, _: Any) -> None:
        """Close a call whose backward nobody can call any more."""
        with self._lock:
            self._remove(call)
            if not call.has_run:
                call.step.drop(call)

    def _remove(self, call: Call) -> None:
        if call.is_open:
            call.step.num_closed += 1
        call.is_open, call.node = False, None
        self._open.pop(call, None)

    @staticmethod
    def _follows(graph: StepGraph, call: Call) -> bool:
        """Whether ``call``, the previous one, is still open and under the same budget."""
        return call.is_open and graph.is_counted_with(call.graph)

    def _continues(self, graph: StepGraph, args: Sequence[Any], thread: int) -> bool:
        """Whether a call belongs to the step of the open calls, by autograd or by its budget. A
        part of a model may begin from data alone, as a decoder does from its tokens."""
        others = [call for call in list(self._open) if call.thread == thread]
        if not others:
            return False
        if any(isinstance(arg, torch.Tensor) and arg.grad_fn is not None for arg in args):
            return True
        return any(graph.is_counted_with(call.graph) for call in others)

    def _trail_behind(self, call: Call) -> int:
        if call.is_repeated:  # it has counted nothing new
            return call.trail
        key = (call.trail, call.who)
        if key not in self._trails:
            if len(self._trails) >= _MOST_TRAILS:
                self._trails.clear()
            self._trails[key] = next(self._numbers)  # never reused
        return self._trails[key]


STEPS = Steps()
