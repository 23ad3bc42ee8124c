"""One class per mistake. Each message stands alone: what was asked, what is possible, what to do.

All inherit ``ShortenTraceback`` so that ``torch.compile`` raises them unchanged: a user's
``except satcompile.BudgetError`` works, with no ``BackendCompilerFailed`` around it.
"""

from __future__ import annotations

from collections.abc import Mapping

from satcompile.torch_compat.dynamo import ShortenTraceback


class SatcompileError(ShortenTraceback):
    """Base class of all errors that satcompile raises."""

    def __init__(self, message: str) -> None:
        super().__init__(message, first_useful_frame=None)


class OptionError(SatcompileError, ValueError):
    """An option that cannot be honoured: unknown, of a wrong type, or impossible."""


class UnsupportedError(SatcompileError):
    """A setting of torch under which satcompile cannot keep its promises."""


class UpdateError(SatcompileError):
    """An order of calls in which updates inside the backward would differ from eager.

    It is raised before anything wrong is computed. Where satcompile cannot foresee the problem,
    the message says which updates were applied already.
    """


class BudgetError(SatcompileError):
    """No valid plan is known whose peak is within the budget.

    Attributes:
        budget_bytes: the requested budget.
        floor_bytes: the smallest peak for which a valid plan is known.
        floor_op: operation and module at which that plan has its peak.
        covers_step: whether the floor is that of the whole step. It is not if the model breaks
            into several graphs and later ones are not compiled yet. The step's floor is then
            higher; the error of the second step names it.
        breakdown: bytes alive at that peak, by kind: parameters (with buffers), gradients,
            optimizer state, inputs, outputs, values saved for the backward, temporaries, the
            reserve, and other graphs of the step. They add up to ``floor_bytes``.
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

    This is a defect in satcompile, found before anything ran.
    """


class NotCompiledError(SatcompileError, LookupError):
    """A report was requested for something that the backend never compiled."""


class FileError(SatcompileError, OSError):
    """A report's file could not be written or read, or holds no report.

    Attributes:
        errno, filename: from the operating system's error, if there was one.
    """

    def __init__(self, message: str, cause: OSError | None = None) -> None:
        super().__init__(message)
        if cause is not None:
            self.errno, self.filename = cause.errno, cause.filename

    def __str__(self) -> str:
        return str(self.args[0])  # OSError would print "[Errno 2] ..."
