"""Rows of a report: values and passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol


@dataclass(frozen=True)
class ValueRow:
    """A value that is saved for the backward, or computed again in it.

    Attributes:
        name: its node in the joint graph.
        num_bytes: bytes of its storage.
        dtype, shape: those of the value.
        module: path of the module that made it, "" where unknown.
        source: "file:line" of the user's code, "" where unknown.
        copies: how often it is computed in the step (1 for saved values).
    """

    name: str
    num_bytes: int
    dtype: str
    shape: tuple[int, ...]
    module: str
    source: str
    copies: int

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> ValueRow:
        row = {**row, "num_bytes": row["bytes"], "shape": tuple(row["shape"])}
        return cls(**{each.name: row[each.name] for each in fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        row = asdict(self)
        return {"name": row["name"], "bytes": row["num_bytes"], **{
            key: row[key] for key in ("dtype", "shape", "module", "source", "copies")
        }}  # fmt: skip


class GraphTexts(Protocol):
    """A graph as text before and after a change, and the diff."""

    def before(self) -> str: ...
    def after(self) -> str: ...
    def diff(self) -> str: ...


@dataclass(frozen=True)
class PassRow:
    """A pass that ran on the graph: its name, its time, and what it changed.

    Attributes:
        before, after: the graph as text, one line per node; None if the pass did not change it.
        diff: unified diff of the two.
    """

    name: str
    time_us: float
    changed: str
    _change: GraphTexts | None = field(default=None, repr=False, compare=False)

    @property
    def before(self) -> str | None:
        return None if self._change is None else self._change.before()

    @property
    def after(self) -> str | None:
        return None if self._change is None else self._change.after()

    @property
    def diff(self) -> str | None:
        return None if self._change is None else self._change.diff()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "time_us": self.time_us, "changed": self.changed}
