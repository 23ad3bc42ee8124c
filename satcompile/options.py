"""The options of ``torch.compile(..., backend="sat", options={...})``, validated.

Nothing is silently ignored. For an unknown key, a wrong type or an impossible value, the error
says what was asked, what is possible, and the nearest valid choice.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from satcompile.errors import OptionError
from satcompile.sizes import read_size
from satcompile.updates.sparsity.settings import Sparsity, read_sparsity

PASS_NAMES = ("sparse_gradients", "sparse_forward", "chunked_loss", "recompute", "fused_update")

_BUDGET_FORMS = 'bytes as an int, "6GiB", "800MB", "60% of default" or "auto"'
_PERCENT_OF_DEFAULT = r"\s*(\d+(?:\.\d+)?)\s*%\s*of\s+default\s*"


@dataclass(frozen=True)
class MemoryBudget:
    """A budget as the user gave it; exactly one of ``num_bytes``, ``share`` and ``auto`` is set.

    Attributes:
        num_bytes: peak bytes.
        share: fraction of ``default_peak_bytes``; 0.6 for "60% of default".
        auto: whether the budget is what the device has free.
    """

    text: str
    num_bytes: int | None = None
    share: float | None = None
    auto: bool = False


class Options(BaseModel):
    """The validated options; the README says what each one means."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    memory_budget: MemoryBudget | None = None
    reserve: int = 0
    sparsity: Sparsity | None = None
    cost_model: Literal["analytic"] = "analytic"
    solver_effort: int = 1_000
    checkpoints: Literal["required", "advice"] = "required"
    disable_passes: tuple[str, ...] = ()
    inductor: dict[str, Any] = {}

    @property
    def code_key(self) -> str:
        """Key of all that generated code depends on; of sparsity, only how weights are cut."""
        key = None if self.sparsity is None else self.sparsity.key
        return repr((self.model_copy(update={"sparsity": None}), key))

    @field_validator("memory_budget", mode="before")
    @classmethod
    def _read_budget(cls, value: Any) -> MemoryBudget | None:
        return None if value is None else read_budget(value)

    @field_validator("reserve", mode="before")
    @classmethod
    def _read_reserve(cls, value: Any) -> int:
        return _read_bytes("reserve", value, least=0)

    @field_validator("sparsity", mode="before")
    @classmethod
    def _read_sparsity(cls, value: Any) -> Sparsity | None:
        return read_sparsity(value)

    @field_validator("cost_model", mode="before")
    @classmethod
    def _read_cost_model(cls, value: Any) -> Any:
        if value != "analytic":
            raise OptionError(
                f"The option 'cost_model' is {value!r}; this version has 'analytic' (a roofline "
                "of the device) only. Timing the real operators ('profile') is to come."
            )
        return value

    @field_validator("solver_effort", mode="before")
    @classmethod
    def _read_effort(cls, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(
                f"The option 'solver_effort' is {value!r}; it takes a whole number from 1 on "
                "(work for each planning problem; the default is 1000)."
            )
        return value

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _read_checkpoints(cls, value: Any) -> Any:
        if value not in ("required", "advice"):
            raise OptionError(
                f"The option 'checkpoints' is {value!r}; it takes 'required' (what lies in a region of "
                "torch.utils.checkpoint is computed again, as the model says) or 'advice' (under a "
                "memory_budget, the plan decides what is)."
            )
        return value

    @field_validator("disable_passes", mode="before")
    @classmethod
    def _read_passes(cls, value: Any) -> tuple[str, ...]:
        if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
            raise OptionError(
                f"The option 'disable_passes' is {value!r}; it takes a list of names of passes: "
                f"{_quoted(PASS_NAMES)}."
            )
        for name in value:
            if name not in PASS_NAMES:
                raise OptionError(
                    f"The option 'disable_passes' names {name!r}, which is not a pass. "
                    f"{_nearest(str(name), PASS_NAMES)}Passes: {_quoted(PASS_NAMES)}."
                )
        return tuple(value)

    @field_validator("inductor", mode="before")
    @classmethod
    def _read_inductor(cls, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise OptionError(
                f"The option 'inductor' is {value!r}; it takes a dict of Inductor's own "
                "configuration, such as {'max_autotune': True}."
            )
        from satcompile.torch_compat.inductor import inductor_config_keys

        known = inductor_config_keys()
        given = {str(key).replace("-", "_"): v for key, v in value.items()}
        for key in given:
            if key not in known:
                raise OptionError(
                    f"The option 'inductor' has the key {key!r}, which Inductor's configuration "
                    f"does not have. {_nearest(key, known)}"
                )
            if key == "custom_partitioner_fn":
                raise OptionError(
                    "The option 'inductor' may not set 'custom_partitioner_fn': satcompile's own "
                    "partitioner stands there."
                )
        return given


def parse(options: Any) -> Options:
    """Validate the options that ``torch.compile`` passes on.

    Raises:
        OptionError: names the offending option, its value, and the nearest valid choice.
    """
    if options is None:
        return Options()
    if not isinstance(options, Mapping):
        raise OptionError(
            f"options is {options!r}; it takes a dict such as {{'memory_budget': '6GiB'}}."
        )
    known = tuple(Options.model_fields)
    for key in options:
        if key not in known:
            raise OptionError(
                f"There is no option {key!r}. {_nearest(str(key), known)}Options: {_quoted(known)}."
            )
    try:
        parsed = Options(**options)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, OptionError):
            raise cause from None
        where = ".".join(str(part) for part in first["loc"])
        raise OptionError(
            f"The option {where!r} cannot be {first['input']!r}: {first['msg']}."
        ) from None
    if parsed.checkpoints == "advice" and parsed.memory_budget is None:
        raise OptionError(
            "The option checkpoints='advice' needs a memory_budget: without one nothing would be "
            "computed again, and the step might not fit. Give one, or leave 'checkpoints' out."
        )
    if "recompute" in parsed.disable_passes and parsed.memory_budget is not None:
        raise OptionError(
            "The option 'memory_budget' needs the pass 'recompute', which 'disable_passes' turns "
            "off. Remove one of the two."
        )
    for name in ("sparse_gradients", "sparse_forward"):
        wanted = parsed.sparsity is not None and (
            name == "sparse_gradients" or parsed.sparsity.is_forward_sparse
        )
        if wanted and name in parsed.disable_passes:
            raise OptionError(
                f"The option 'sparsity' needs the pass {name!r}, which 'disable_passes' turns off. "
                "Remove one of the two."
            )
    return parsed


def read_budget(value: Any) -> MemoryBudget:
    """Read a memory budget from an int or text; see ``MemoryBudget``."""
    if isinstance(value, str):
        if value.strip().lower() == "auto":
            return MemoryBudget(value, auto=True)
        match = re.fullmatch(_PERCENT_OF_DEFAULT, value, re.IGNORECASE)
        if match:
            share = float(match[1]) / 100
            if share <= 0:
                raise OptionError(
                    f"The option 'memory_budget' is {value!r}; a share of the default's peak "
                    'must be above 0, such as "60% of default".'
                )
            return MemoryBudget(value, share=share)
    return MemoryBudget(str(value), num_bytes=_read_bytes("memory_budget", value))


def _read_bytes(option: str, value: Any, least: int = 1) -> int:
    forms = _BUDGET_FORMS if option == "memory_budget" else 'bytes as an int, "6GiB" or "800MB"'
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise OptionError(f"The option {option!r} is {value!r}; it takes {forms}.")
    try:
        num_bytes = read_size(value)
    except ValueError:
        raise OptionError(
            f"The option {option!r} is {value!r}, which is not a size in bytes. It takes {forms}."
        ) from None
    if num_bytes < least:
        bound = "above 0" if least else "0 or above"
        raise OptionError(
            f"The option {option!r} is {value!r}; it must be {bound}. It takes {forms}."
        )
    return num_bytes


def refuse_mode(mode: Any) -> None:
    """Refuse ``torch.compile(mode=...)``: Inductor's configuration goes through the options."""
    if mode is not None:
        raise OptionError(
            f"backend='sat' takes no mode ({mode!r} was given). What a mode sets in Inductor can "
            "be given by name: options={'inductor': {'max_autotune': True}}, for instance."
        )


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}? " if close else ""


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
