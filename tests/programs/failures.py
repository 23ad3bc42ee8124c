"""Failures by kind, so that one kind can be told from another and shrunk by itself."""

from __future__ import annotations

import functools
import re

# Defects that were found this way and are not mended yet: their programs are counted, not failed.
KNOWN: dict[str, str] = {}


class Failure(AssertionError):
    """A program that is wrong, or crashed; its class is made for its kind."""

    kind = ""


def failure(kind: str, text: str) -> Failure:
    """An exception of the kind's own class, by which Hypothesis tells failures apart."""
    return _class_of(f"{kind}: {general(text)}" if kind[:5] != "wrong" else kind)(text)


@functools.cache
def _class_of(kind: str) -> type[Failure]:
    return type("Failure", (Failure,), {"kind": kind})


def general(text: str) -> str:
    """A message without what differs from program to program."""
    text = re.sub(r"0x[0-9a-f]+|\d+", "N", text.strip().split("\n")[0])
    return re.sub(r"\b\w+_N\b", "NAME", text)[:160]


def unwrapped(error: BaseException) -> BaseException:
    """What a backend raised, out of what Dynamo wraps it in."""
    inner = getattr(error, "inner_exception", None)
    return error if inner is None else unwrapped(inner)


def unless_known(error: Failure) -> str:
    """How a known defect is counted.

    Raises:
        Failure: it is not known.
    """
    for part, why in KNOWN.items():
        if part in error.kind:
            return f"known: {why}"
    raise error
