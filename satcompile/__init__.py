"""Train PyTorch models in less memory, by compiling the whole training graph.

    model = torch.compile(model, backend="sat", options={"memory_budget": "24GiB"})

Importing satcompile is not needed for that line; it gives access to reports and measurements.
Names are imported when they are first used: ``satcompile.solver`` and the command line's help
need no torch, which takes seconds to import.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from satcompile.commands.forecast.estimate import Plan, plan
    from satcompile.errors import (
        BudgetError,
        FileError,
        NotCompiledError,
        OptionError,
        SatcompileError,
        UnsupportedError,
        UpdateError,
        VerificationError,
    )
    from satcompile.graph.capture import fake_tensors
    from satcompile.report.saved import load_report
    from satcompile.runtime.measure import measure_peak
    from satcompile.runtime.registry import report, sparsity_state
    from satcompile.updates.optimizers.fused import fuse_optimizer
    from satcompile.updates.sparsity.settings import Sparsity
    from satcompile.updates.sparsity.state import SparsityState

__all__ = [
    "BudgetError",
    "FileError",
    "NotCompiledError",
    "OptionError",
    "Plan",
    "SatcompileError",
    "Sparsity",
    "SparsityState",
    "UnsupportedError",
    "UpdateError",
    "VerificationError",
    "fake_tensors",
    "fuse_optimizer",
    "load_report",
    "measure_peak",
    "plan",
    "report",
    "sparsity_state",
]

_HOMES = {
    "BudgetError": "satcompile.errors",
    "FileError": "satcompile.errors",
    "NotCompiledError": "satcompile.errors",
    "OptionError": "satcompile.errors",
    "Plan": "satcompile.commands.forecast.estimate",
    "SatcompileError": "satcompile.errors",
    "Sparsity": "satcompile.updates.sparsity.settings",
    "SparsityState": "satcompile.updates.sparsity.state",
    "UnsupportedError": "satcompile.errors",
    "UpdateError": "satcompile.errors",
    "VerificationError": "satcompile.errors",
    "fake_tensors": "satcompile.graph.capture",
    "fuse_optimizer": "satcompile.updates.optimizers.fused",
    "load_report": "satcompile.report.saved",
    "measure_peak": "satcompile.runtime.measure",
    "plan": "satcompile.commands.forecast.estimate",
    "report": "satcompile.runtime.registry",
    "sparsity_state": "satcompile.runtime.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    if name != "report":
        globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``report`` the function: the folder of that name would take its place as soon as
    anything in it is imported."""

    @property
    def report(self) -> Any:
        return __getattr__("report")

    @report.setter
    def report(self, folder: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package
