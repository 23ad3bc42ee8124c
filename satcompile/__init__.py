"""Train PyTorch models in less memory, by compiling the whole training graph.

    model = torch.compile(model, backend="sat", options={"memory_budget": "24GiB"})

Importing satcompile is not needed for that line; it gives access to reports and measurements.
"""

from satcompile.errors import (
    BudgetError,
    NotCompiledError,
    OptionError,
    SatcompileError,
    UnsupportedError,
    UpdateError,
    VerificationError,
)
from satcompile.measure import measure_peak
from satcompile.optimizers.fused import fuse_optimizer
from satcompile.report.registry import report, sparsity_state
from satcompile.sparsity.settings import Sparsity
from satcompile.sparsity.state import SparsityState

__all__ = [
    "BudgetError",
    "NotCompiledError",
    "OptionError",
    "SatcompileError",
    "Sparsity",
    "SparsityState",
    "UnsupportedError",
    "UpdateError",
    "VerificationError",
    "fuse_optimizer",
    "measure_peak",
    "report",
    "sparsity_state",
]
