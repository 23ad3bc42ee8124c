"""The demo: one small GPT-2 trained three times, by three ways of compiling it.

``torch.compile``'s default, torch's own activation budget, and ``backend="sat"`` under a memory
budget start from the same weights and see the same text: the library sources of the Python that
runs them, read as bytes. Nothing is downloaded. The demo measures and compares the loss, the peak
of a step, and its time.
"""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from satcompile.errors import SatcompileError
from satcompile.report.data import GraphReport, Report
from satcompile.runtime.measure import measure_peak
from satcompile.runtime.registry import report
from satcompile.sizes import format_bytes
from satcompile.torch_compat.dynamo import compiled_graphs

_WIDTH = 110  # of output that is not a terminal
_BYTE_VALUES = 256
_TEXT_BYTES = 4_000_000
_WARM_UP_STEPS = 2  # the first compiles, the second still fills the allocator's pools
# Recomputed values are the same numbers, but kernels that fuse differently add in another order.
_LOSS_TOLERANCE = 0.02


class DemoError(SatcompileError):
    """The demo cannot run as it was asked to."""


@dataclass(frozen=True)
class Settings:
    """What the demo trains.

    Attributes:
        steps: of training, for each variant.
        layers, hidden, heads: of the GPT-2.
        batch, length: sequences in a step, and bytes of text in a sequence.
        budget: the option ``memory_budget`` of ``backend="sat"``.
        torch_budget: torch's own ``activation_memory_budget``, a share of activation bytes.
        seed: of the weights and of the choice of text.
    """

    steps: int = 20
    layers: int = 4
    hidden: int = 128
    heads: int = 4
    batch: int = 16
    length: int = 128
    budget: str = "60% of default"
    torch_budget: float = 0.3
    seed: int = 0


@dataclass
class Variant:
    """One way of compiling the model, with the model that it trains and the results.

    Attributes:
        name: as the table shows it.
        model, optimizer: its own copies.
        loss_of: the compiled forward, from a batch of bytes to the loss.
        while_compiling: makes the context in which the first step runs.
        losses: of every step.
        times_s: of every step, the first ones included.
        step_bytes: measured peak of what one step allocates.
    """

    name: str
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss_of: Callable[[torch.Tensor], torch.Tensor]
    while_compiling: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    losses: list[float] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    step_bytes: int = 0

    def train(self, batch: torch.Tensor) -> None:
        """One step: forward, backward, update."""
        started = time.perf_counter()
        loss = self.loss_of(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.times_s.append(time.perf_counter() - started)
        self.losses.append(loss.item())

    def measure(self, batch: torch.Tensor) -> None:
        """Measure the peak of a step: forward and backward, the loss held, no gradients before."""

        def step() -> torch.Tensor:
            loss = self.loss_of(batch)
            loss.backward()
            return loss

        self.step_bytes = measure_peak(step)
        self.optimizer.zero_grad(set_to_none=True)

    def resident_bytes(self, batch: torch.Tensor) -> int:
        """Bytes alive before a step: parameters, buffers, optimizer state, and the batch."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        held = [*self.model.parameters(), *self.model.buffers(), *state, batch]
        return sum(value.nbytes for value in held if isinstance(value, torch.Tensor))

    @property
    def step_time_s(self) -> float:
        """Median over the steps after the warm-up."""
        return median(self.times_s[_WARM_UP_STEPS:])


def run(settings: Settings, console: Console | None = None) -> int:
    """Train, measure and print.

    Returns:
        The exit code: 0, or 1 where a step exceeded the budget or the losses differ.

    Raises:
        DemoError: transformers is missing, or a variant was not compiled as one graph.
        BudgetError, OptionError: from ``backend="sat"``, for the requested budget.
    """
    console = console or Console(width=None if sys.stdout.isatty() else _WIDTH)
    text = library_text()
    variants = _variants(settings)
    _introduce(settings, text, variants[0], console)
    for batch in _batches(text, settings):
        for variant in variants:  # in turn, so that a busy machine slows all of them alike
            _train_one(variant, batch, console)
    for variant in variants:
        variant.measure(batch)
    console.print(_table(variants, batch))
    planned = report(variants[-1].model)
    agree = _check_losses(variants, console)
    within = _check_budget(planned, console)
    console.print()
    print(planned)
    return 0 if agree and within else 1


def library_text() -> torch.Tensor:
    """CPython's own library sources as bytes, shape (n,), dtype uint8."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    collected = bytearray()
    for path in sorted(folder.glob("*.py")):
        collected += path.read_bytes()
        if len(collected) >= _TEXT_BYTES:
            break
    return torch.frombuffer(collected, dtype=torch.uint8)


def _batches(text: torch.Tensor, settings: Settings) -> Iterator[torch.Tensor]:
    """Random windows of the text, shape (batch, length), dtype int64; fixed by the seed."""
    if len(text) <= settings.length:
        raise DemoError(
            f"The demo trains on Python's library sources, and found {len(text)} bytes of them in "
            f"{sysconfig.get_paths()['stdlib']}; it needs more than {settings.length}. Run it with "
            "a Python whose library is installed as source files."
        )
    windows = text.unfold(0, settings.length, 1)
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.steps):
        chosen = torch.randint(len(windows), (settings.batch,), generator=generator)
        yield windows[chosen].long()


# -- the three variants --------------------------------------------------------------------


def _variants(settings: Settings) -> list[Variant]:
    from satcompile.torch_compat.aot import own_budget

    share = settings.torch_budget
    torch_budget = lambda: own_budget(share)  # noqa: E731
    sat = {"memory_budget": settings.budget}
    return [
        _variant("torch.compile", settings, backend="inductor"),
        _variant(
            f"torch's own budget, {share:g}",
            settings,
            while_compiling=torch_budget,
            backend="inductor",
        ),
        _variant(f"sat, {settings.budget}", settings, backend="sat", options=sat),
    ]


def _variant(
    name: str,
    settings: Settings,
    while_compiling: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    **how: Any,
) -> Variant:
    """A model of its own, compiled with ``torch.compile(..., **how)``."""
    model = _gpt2(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = torch.compile(_forward(model, name), **how)
    return Variant(name, model, optimizer, loss_of, while_compiling)


def _forward(model: torch.nn.Module, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward to compile, with its own code object.

    Dynamo keeps compiled graphs by code object. With one code object for all variants, the second
    variant would silently run the first one's graph.
    """

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return model(input_ids=batch, labels=batch).loss

    loss.__code__ = loss.__code__.replace(co_name=f"loss ({name})")
    return loss


def _gpt2(settings: Settings) -> torch.nn.Module:
    """A GPT-2 over bytes with random weights, the same for every call with the same settings."""
    transformers = _transformers()
    config = transformers.GPT2Config(
        vocab_size=_BYTE_VALUES,
        n_positions=settings.length,
        n_embd=settings.hidden,
        n_layer=settings.layers,
        n_head=settings.heads,
        resid_pdrop=0.0,  # without dropout, so that the losses can be compared
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    torch.manual_seed(settings.seed)
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # looked up by class name otherwise, which breaks the graph
    return model.train()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise DemoError(
            "The demo trains a GPT-2 of the package transformers, which is not installed. "
            'Install it with: pip install "satcompile[demo]"'
        ) from error
    transformers.logging.set_verbosity_error()
    return transformers


# -- a step --------------------------------------------------------------------------------


def _train_one(variant: Variant, batch: torch.Tensor, console: Console) -> None:
    if variant.losses:
        variant.train(batch)
        return
    console.print(f"compiling: {variant.name} ...", highlight=False)
    before = compiled_graphs()
    with variant.while_compiling():
        variant.train(batch)
    console.print(f"  took {variant.times_s[0]:.0f} s", highlight=False)
    compiled = compiled_graphs() - before
    if compiled != 1:
        raise DemoError(
            f"{variant.name!r} was to compile as one graph of its own and made {compiled}, so the "
            "comparison would not be of what it says. This is a defect of the demo with this "
            "version of transformers or torch; please report both versions."
        )


# -- what is printed -----------------------------------------------------------------------


def _introduce(settings: Settings, text: torch.Tensor, one: Variant, console: Console) -> None:
    parameters = sum(p.numel() for p in one.model.parameters())
    console.print(
        f"A GPT-2 of {settings.layers} layers, {parameters / 1e6:.2f} million parameters, "
        f"{settings.batch} x {settings.length} bytes a step, {settings.steps} steps of AdamW, on "
        f"{len(text) / 1e6:.1f} MB of Python's own library sources.",
        highlight=False,
    )


def _table(variants: Sequence[Variant], batch: torch.Tensor) -> Table:
    default = variants[0]
    resident = default.resident_bytes(batch)
    table = Table(
        title="measured",
        title_justify="left",
        box=None,
        caption=f"peak: {format_bytes(resident)} alive before the step, plus what it allocates",
        caption_justify="left",
    )
    table.add_column("variant", no_wrap=True)
    for title in ("first loss", "last loss", "step allocates", "peak", "saved", "step time"):
        table.add_column(title, justify="right")
    for variant in variants:
        peak = variant.resident_bytes(batch) + variant.step_bytes
        saved = 1 - peak / (resident + default.step_bytes)
        table.add_row(
            variant.name,
            f"{variant.losses[0]:.4f}",
            f"{variant.losses[-1]:.4f}",
            format_bytes(variant.step_bytes),
            format_bytes(peak),
            f"{saved:.0%}" if variant is not default else "",
            f"{variant.step_time_s * 1e3:.0f} ms",
        )
    return table


def _check_losses(variants: Sequence[Variant], console: Console) -> bool:
    """Whether every variant's loss follows the default's, step by step."""
    default, *others = variants
    differences = [
        abs(one - other)
        for variant in others
        for one, other in zip(variant.losses, default.losses, strict=True)
    ]
    agree = all(difference <= _LOSS_TOLERANCE for difference in differences)  # false for NaN
    verdict = "the losses agree" if agree else "THE LOSSES DIFFER"
    console.print(
        f"{verdict}: over {len(default.losses)} steps by {max(differences):.1e} at most "
        f"({_LOSS_TOLERANCE:g} allowed)",
        highlight=False,
    )
    return agree


def _check_budget(planned: Report, console: Console) -> bool:
    """Whether the measured peak is within the requested budget."""
    verdicts = [_within_budget(graph, console) for graph in planned.graphs]
    return all(verdicts)


def _within_budget(graph: GraphReport, console: Console) -> bool:
    measured, budget = graph.measured_peak_bytes, graph.budget_bytes
    within = measured is not None and budget is not None and measured <= budget
    verdict = "the budget was held" if within else "THE BUDGET WAS EXCEEDED"
    console.print(
        f"{verdict}: {format_bytes(measured)} measured, {format_bytes(budget)} asked",
        highlight=False,
    )
    return within
