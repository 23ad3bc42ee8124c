"""Fused updates in a report: which gradients the backward hands to their optimizer.

They are read off the optimizers at each access, for the graph's latest caller. Each run of a
backward decides what it may do (``satcompile.updates.optimizers.in_backward``). After the first
run, the rows say what the latest one did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from satcompile.passes.fused_update import FusedUpdate
from satcompile.updates.optimizers.in_backward import BACKWARD_UPDATES


@dataclass(frozen=True)
class LatestCall:
    """The latest call of a graph.

    Attributes:
        parameters: parameters that are alive, by position among the graph's inputs.
        withheld: by position, why a gradient was not offered to its optimizer.
    """

    parameters: Mapping[int, torch.Tensor]
    withheld: Mapping[int, str]


@dataclass(frozen=True)
class PlannedUpdates:
    """The updates in a graph's plan, by position among the graph's inputs.

    Attributes:
        with_gradient: inputs to which a gradient flows; None if positions are not known.
        offered: inputs whose gradients were to be handed to their optimizer.
        consumed: inputs whose gradients the backward hands over.
        names: names of parameters, where they are known.
        is_disabled: whether the option ``disable_passes`` names the pass.
    """

    with_gradient: frozenset[int] | None
    offered: frozenset[int]
    consumed: frozenset[int]
    names: Mapping[int, str]
    is_disabled: bool


@dataclass(frozen=True)
class UpdateRow:
    """A parameter with a gradient, and who applies it.

    Attributes:
        name: its path in the module.
        shape: shape of the parameter.
        num_bytes: bytes of its gradient.
        optimizer: torch's class of the fused optimizer that has it; "" if none has it.
        consumed: whether the backward hands the gradient over, so that it is never returned.
        reason: why it is returned to autograd and applied by ``step()``; "" if it is consumed.
    """

    name: str
    shape: tuple[int, ...]
    num_bytes: int
    optimizer: str
    consumed: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        row = asdict(self)
        return {"name": row.pop("name"), "bytes": row.pop("num_bytes"), **row}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> UpdateRow:
        """Read back the result of ``to_dict``."""
        row = {**row, "shape": tuple(row["shape"]), "num_bytes": row["bytes"]}
        del row["bytes"]
        return cls(**row)


class UpdateReport:
    """Updates of the parameters of one graph, as they are now."""

    def __init__(
        self,
        planned: PlannedUpdates,
        latest_call: Callable[[], LatestCall],
        returned: Callable[[], Mapping[int, str] | None],
    ) -> None:
        self._planned, self._latest_call, self._returned = planned, latest_call, returned

    @property
    def is_fused(self) -> bool:
        """Whether a fused optimizer has any of the parameters."""
        parameters = self._latest_call().parameters.values()
        return any(BACKWARD_UPDATES.holder(parameter) is not None for parameter in parameters)

    @property
    def observed(self) -> bool:
        """Whether a backward has run; before that, ``consumed`` says what is planned."""
        return self._returned() is not None

    @property
    def parameters(self) -> Sequence[UpdateRow]:
        """Parameters with a gradient, in the graph's order."""
        call, known = self._latest_call(), self._planned.with_gradient
        return [
            self._row(position, parameter, call.withheld)
            for position, parameter in call.parameters.items()
            if parameter.requires_grad and (known is None or position in known)
        ]

    @property
    def consumed_bytes(self) -> int:
        """Bytes of gradients that are handed over as they appear, and so need not coexist."""
        return sum(row.num_bytes for row in self.parameters if row.consumed)

    @property
    def returned_bytes(self) -> int:
        """Bytes of gradients that exist together when the backward has ended."""
        return sum(row.num_bytes for row in self.parameters if not row.consumed)

    @property
    def unplanned_bytes(self) -> int:
        """Bytes of gradients that the latest backward returned although the plan has them consumed.
        The predicted peak does not count them."""
        parameters, returned = self._latest_call().parameters, self._returned() or {}
        return sum(_bytes_of(parameters[slot]) for slot in returned if slot in parameters)

    def to_dict(self) -> dict[str, Any]:
        return {
            "observed": self.observed,
            "consumed_bytes": self.consumed_bytes,
            "returned_bytes": self.returned_bytes,
            "unplanned_bytes": self.unplanned_bytes,
            "parameters": [row.to_dict() for row in self.parameters],
        }

    def _row(
        self, position: int, parameter: torch.Tensor, withheld: Mapping[int, str]
    ) -> UpdateRow:
        holder = BACKWARD_UPDATES.holder(parameter)
        reason = self._reason(position, parameter, holder, withheld)
        return UpdateRow(
            self._planned.names.get(position, f"input {position}"),
            tuple(parameter.shape),
            _bytes_of(parameter),
            "" if holder is None else holder.torch_class.__name__,
            not reason,
            reason,
        )

    def _reason(
        self, position: int, parameter: torch.Tensor, holder: Any, withheld: Mapping[int, str]
    ) -> str:
        """Why a gradient is returned; "" where it is not."""
        if position in self._planned.consumed:
            return (self._returned() or {}).get(position, "")
        return (
            _not_asked(holder)
            or withheld.get(position, "")
            or self._not_compiled(position, parameter)
        )

    def _not_compiled(self, position: int, parameter: torch.Tensor) -> str:
        """Why a graph returns a gradient that its optimizer would take."""
        if id(parameter) not in BACKWARD_UPDATES.owners():
            return "two optimizers have it, or it shares memory with another parameter"
        if position not in self._planned.offered:
            return "the optimizer asked for it after the latest forward"
        if self._planned.is_disabled:
            return f"disable_passes names {FusedUpdate.name!r}"
        return "inputs of the graph share memory"


@dataclass(frozen=True)
class SavedUpdates:
    """The content of an ``UpdateReport`` when it was saved."""

    observed: bool
    consumed_bytes: int
    returned_bytes: int
    unplanned_bytes: int
    parameters: Sequence[UpdateRow]
    is_fused: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SavedUpdates:
        """Read back the result of ``to_dict``."""
        rows = [UpdateRow.from_dict(row) for row in data["parameters"]]
        return cls(**{**data, "parameters": rows})

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        del data["is_fused"]
        return {**data, "parameters": [row.to_dict() for row in self.parameters]}


def _bytes_of(parameter: torch.Tensor) -> int:
    """Bytes of a parameter, and of its gradient."""
    return parameter.numel() * parameter.element_size()


def _not_asked(holder: Any) -> str:
    """Why an optimizer takes no gradients from a backward; "" where it does."""
    if holder is None:
        return "no fused optimizer has it"
    settings = holder._fused_settings
    if not settings.in_backward:
        return "in_backward=False"
    if settings.accumulate > 1:
        return f"accumulate={settings.accumulate}: backwards are summed first"
    if settings.max_grad_norm is not None:
        return "max_grad_norm: the norm is of all gradients together"
    return ""
