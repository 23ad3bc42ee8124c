"""``satcompile plan``: what fits, before anything is rented or run."""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from satcompile.commands.forecast.catalogue import Request, build, from_config
from satcompile.commands.forecast.estimate import Plan, plan
from satcompile.commands.forecast.show import show
from satcompile.errors import FileError, SatcompileError
from satcompile.planner.cost.device import device_named
from satcompile.report.files import ending_of, write_whole

# Traced graphs are hundreds of thousands of objects that stay. Garbage collection at Python's usual
# rate takes a seventh of the command's time.
_OBJECTS_BETWEEN_COLLECTIONS = 100_000


@dataclass(frozen=True)
class Settings:
    """The command's arguments; see ``satcompile plan --help``."""

    model: str | None
    config: Path | None
    request: Request
    optimizer: str
    device: str
    budget: str
    reserve: str
    in_backward: bool
    quick: bool
    json_path: Path | None
    report_path: Path | None


def run(settings: Settings) -> int:
    """Plan and print; returns 0 if the plan fits, 1 if it does not or cannot be made."""
    threshold = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *threshold[1:])
    try:
        return _run(settings)
    except SatcompileError as error:
        print(f"satcompile: {_own_words(error)}", file=sys.stderr)
        return 1
    finally:
        gc.set_threshold(*threshold)


def _own_words(error: SatcompileError) -> str:
    # The first paragraph is ours; Dynamo adds hints for its own developers below it.
    return str(error).partition("\n\n")[0]


def _run(settings: Settings) -> int:
    _check_before_tracing(settings)
    tell = Console(stderr=True, highlight=False)
    request = settings.request
    if settings.config is not None:
        step = from_config(settings.config, request)
    else:
        assert settings.model is not None
        step = build(settings.model, request)
    _progress(tell, f"tracing {step.title}")
    made = plan(
        step.fn,
        *step.args,
        memory_budget=settings.budget,
        device=settings.device,
        optimizer=settings.optimizer,
        in_backward=settings.in_backward,
        reserve=settings.reserve,
        **step.kwargs,
    )
    if not settings.quick:
        _progress(tell, "looking for the largest batch")
        _ = made.largest_batch
        _progress(tell, "planning other budgets")
        _ = made.curve
    _print(step.title, made)
    if settings.json_path is not None:
        write_whole(settings.json_path, json.dumps(made.to_dict(), indent=2) + "\n")
    if settings.report_path is not None:
        made.save(settings.report_path)
    return 0 if made.fits else 1


def _check_before_tracing(settings: Settings) -> None:
    """Refuse early what would otherwise fail only after a large model was traced and planned."""
    device_named(settings.device)
    for path in (settings.json_path, settings.report_path):
        if path is not None:
            _check_folder(path)
    if settings.report_path is not None:
        ending_of(settings.report_path, "a plan")


def _check_folder(path: Path) -> None:
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise FileError(
            f"{str(path)!r} could not be written: {str(path.parent)!r} is no folder that may be "
            "written to. Choose one that is; nothing was planned."
        )


def _print(title: str, made: Plan) -> None:
    console = Console(highlight=False)
    console.print(title, style="bold", markup=False)
    show(made, console)


def _progress(console: Console, what: str) -> None:
    """Print a line for a user at a terminal; nothing where the output is kept."""
    if console.is_terminal:
        console.print(f"{what} ...", style="dim", markup=False)
