"""One class per mistake. Each message stands alone: what was asked, what is possible, what to do.

All inherit ``ShortenTraceback`` so that they leave ``torch.compile`` as themselves: a user's
``except satcompile.BudgetError`` works, with no ``BackendCompilerFailed`` around it.
"""

from __future__ import annotations

from collections.abc import Mapping

from satcompile.torch_compat.dynamo import ShortenTraceback


class SatcompileError(ShortenTraceback):
    """Base of everything that satcompile raises."""

    def __init__(self, message: str) -> None:
        super().__init__(message, first_useful_frame=None)


class OptionError(SatcompileError, ValueError):
    """An option that cannot be honoured: unknown, of a wrong type, or impossible."""


class UnsupportedError(SatcompileError):
    """A setting of torch under which satcompile cannot keep its promises."""


class UpdateError(SatcompileError):
    """An order of calls in which updates inside the backward would not be what eager does.

    Raised before anything wrong is computed; where that cannot be foreseen, the message says
    what has been applied already.
    """


class BudgetError(SatcompileError):
    """No valid plan is held whose peak is within the budget.

    Attributes:
        budget_bytes: what was asked.
        floor_bytes: the smallest peak for which a valid plan is held.
        floor_op: where that plan's peak lies: operation and module.
        covers_step: whether the floor is the whole step's. It is not where the model breaks into
            several graphs and those behind this one are not compiled yet: the step's floor is then
            higher, and named by the error of the second step.
        breakdown: bytes alive there, by kind: parameters (with buffers), gradients, optimizer
            state, inputs, outputs, what is saved for the backward, temporaries, and what is
            reserved or belongs to other graphs of the step. They add up to ``floor_bytes``.
    """

    def __init__(
        self,
        message: str,
        *,
        budget_bytes: int,
        floor_bytes: int,
        floor_op: str,
        breakdown: Mapping[str, int] | None = None,
        covers_step: bool = True,
    ) -> None:
        super().__init__(message)
        self.budget_bytes, self.floor_bytes, self.floor_op = budget_bytes, floor_bytes, floor_op
        self.breakdown = dict(breakdown or {})
        self.covers_step = covers_step


class VerificationError(SatcompileError):
    """A pass broke the graph: the compiled step would not compute what the model says.

    This is a defect of satcompile, found before anything ran.
    """


class NotCompiledError(SatcompileError, LookupError):
    """A report was asked for something that the backend never compiled."""


class FileError(SatcompileError, OSError):
    """A report's file could not be written or read, or holds no report.

    Attributes:
        errno, filename: of the operating system's error, where there was one.
    """

    def __init__(self, message: str, cause: OSError | None = None) -> None:
        super().__init__(message)
        if cause is not None:
            self.errno, self.filename = cause.errno, cause.filename

    def __str__(self) -> str:
        return str(self.args[0])  # not "[Errno 2] ...", which OSError would make of it
