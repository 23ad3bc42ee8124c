"""The profiler, and torch's structured trace."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx


@contextlib.contextmanager
def quiet_profiler() -> Iterator[None]:
    """Turn off Kineto's own log lines, unless the user set a level. 2.13 prints two per run."""
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "6"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def profiler_is_active() -> bool:
    """Whether a profiler is active: Kineto records for one at a time. 2.11, 2.13."""
    return bool(torch.autograd._profiler_enabled())


def is_tracing() -> bool:
    """Whether torch writes its structured trace (``TORCH_TRACE``). If nobody asked for the trace,
    ``trace_log`` loses its handler at the first record. 2.11, 2.13."""
    from torch._logging._internal import trace_log

    return bool(trace_log.handlers)


def trace_artifact(name: str, encoding: str, payload: Callable[[], Any]) -> None:
    """Add a file to the structured trace, under the id of the running compilation.

    Args:
        name: of the file.
        encoding: "string", or "json" for plain data.
        payload: called if there is a trace.

    ``torch._logging.trace_structured``: 2.11, 2.13.
    """
    torch._logging.trace_structured(
        "artifact", metadata_fn=lambda: {"name": name, "encoding": encoding}, payload_fn=payload
    )


def readable(gm: fx.GraphModule) -> str:
    """A graph as torch's own traces print it: with dtypes, sizes, strides and devices, and the
    source lines of its nodes. ``GraphModule.print_readable``: 2.11, 2.13."""
    return gm.print_readable(print_output=False, include_stride=True, include_device=True)
