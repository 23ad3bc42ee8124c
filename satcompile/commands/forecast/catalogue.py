"""Models to plan for: well-known ones by name, a transformers configuration, or the user's own
function. All are built on fake tensors, so that no weights are made."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from satcompile.commands.forecast.published import PUBLISHED
from satcompile.errors import OptionError
from satcompile.graph.capture import fake_tensors

_LORA_RANK = 16
_DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16, "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip
_TRAINS = ("full", "lora")


@dataclass(frozen=True)
class Step:
    """A training step to plan: ``fn(*args, **kwargs)`` returns what the backward starts from."""

    title: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """The step that was asked for.

    Attributes:
        batch: samples.
        sequence: tokens of each; None for the model's usual number.
        dtype: of parameters and images: a key of the table above.
        train: "full", or "lora" for adapters of rank 16 on all linear layers.
    """

    batch: int = 1
    sequence: int | None = None
    dtype: str = "float32"
    train: str = "full"


def names() -> tuple[str, ...]:
    """Names of the known models."""
    return tuple(PUBLISHED)


def build(what: str, request: Request) -> Step:
    """The step of a model named in the table, or of ``module:function``.

    The function takes nothing and returns a model (or function) and its inputs: a tensor, a tuple,
    or a dict of keyword arguments.

    Raises:
        OptionError: there is no such model, or the function does not return what it must.
    """
    if ":" in what:
        return _from_function(what)
    if what not in PUBLISHED:
        raise OptionError(
            f"There is no model called {what!r}. {_nearest(what, PUBLISHED)}Models: "
            f"{', '.join(PUBLISHED)}; your own: module:function, which returns the model and its "
            "inputs, or --config with a configuration of transformers."
        )
    known, transformers = PUBLISHED[what], _transformers()
    config = getattr(transformers, known.config)(**known.settings)
    sequence = request.sequence or known.sequence
    return _step(known.title, getattr(transformers, known.model), config, request, sequence)


def from_config(path: Path, request: Request) -> Step:
    """The step of a model made from a configuration of transformers (its ``config.json``).

    Raises:
        OptionError: the file cannot be read, or is no configuration.
    """
    settings = _read(path)
    transformers = _transformers()
    kind = settings.pop("model_type", None)
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if kind not in known:
        raise OptionError(
            f"{path}: model_type is {kind!r}, which transformers {transformers.__version__} does not "
            f"have. {_nearest(str(kind), known)}It is the key by which a configuration says what it "
            'is, such as "model_type": "llama".'
        )
    config_class = type(transformers.AutoConfig.for_model(kind))
    _refuse_misspelled(path, settings, config_class().to_dict())
    with _said_of(str(path), "describes no model"):
        config = config_class(**settings)
    model = _class_for(path, transformers, config)
    sequence = None if "Image" in model.__name__ else request.sequence or _sequence_of(config)
    _ = _dtype(request.dtype)
    with _said_of(str(path), "describes no model that can be built"):
        return _step(f"{path.name} ({model.__name__})", model, config, request, sequence)


@contextlib.contextmanager
def _said_of(what: str, wrong: str) -> Iterator[None]:
    """Turn any error of foreign code into an ``OptionError`` that names what was asked for."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OptionError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise OptionError(
            f"{what} {wrong}: {type(error).__name__}: {' '.join(lines) or 'nothing more is said'}"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise OptionError(f"{path}: is not JSON ({error}).") from None
    if not isinstance(settings, dict):
        raise OptionError(f"{path}: holds no object with the settings of a model.")
    return settings


def _refuse_misspelled(path: Path, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse misspelled keys: transformers would keep them and build another model than meant."""
    for key in settings:
        close = difflib.get_close_matches(key, list(known), 1, 0.8)
        if key not in known and close:
            raise OptionError(
                f"{path}: the configuration has no {key!r}. Did you mean {close[0]!r}? transformers "
                "would go on with that one's default."
            )


def _class_for(path: Path, transformers: Any, config: Any) -> Any:
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for auto in ("CausalLM", "MaskedLM", "ImageClassification", "Seq2SeqLM"):
        mapping = getattr(transformers, f"AutoModelFor{auto}")._model_mapping
        if type(config) in mapping:
            return mapping[type(config)]
    raise OptionError(
        f"{path}: no model that trains is known for {type(config).__name__}; name its class under "
        '"architectures", or give module:function.'
    )


def _sequence_of(config: Any) -> int:
    longest = getattr(config, "max_position_embeddings", None) or 1024
    return min(int(longest), 4096)


def _step(title: str, model: Any, config: Any, request: Request, sequence: int | None) -> Step:
    from transformers.initialization import no_init_weights

    dtype = _dtype(request.dtype)
    config.use_cache = False
    # Their warnings are for those who train: deprecated names, layouts that adapters detect.
    with fake_tensors(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with no_init_weights(), _made_in(dtype):
            made = model(config).train()
        made.tie_weights()  # which no_init_weights skips
        if getattr(made, "loss_type", "") is None:
            made.loss_type = "ForMaskedLM" if "MaskedLM" in model.__name__ else "ForCausalLM"
        if request.train != "full":
            with _made_in(dtype):
                made = _with_adapters(made, request.train)
        kwargs = _inputs(config, request.batch, sequence, dtype)
    return Step(title, LossOnly(made), (), kwargs)


class LossOnly(torch.nn.Module):
    """A model of transformers that returns its loss alone: returned logits would stay alive and
    have a gradient that nobody needs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.model(**inputs).loss
        return loss


def _inputs(
    config: Any, batch: int, sequence: int | None, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    if sequence is not None:
        ids = torch.zeros(batch, sequence, dtype=torch.long)
        return {"input_ids": ids, "labels": ids.clone()}
    side = getattr(config, "image_size", 224)
    channels = getattr(config, "num_channels", 3)
    return {
        "pixel_values": torch.zeros(batch, channels, side, side, dtype=dtype),
        "labels": torch.zeros(batch, dtype=torch.long),
    }


def _with_adapters(model: torch.nn.Module, train: str) -> torch.nn.Module:
    if train not in _TRAINS:
        raise OptionError(f"train is {train!r}; it takes one of {', '.join(_TRAINS)}.")
    try:
        import peft
    except ImportError:
        raise OptionError("train='lora' needs the package peft: pip install peft.") from None
    adapters = peft.LoraConfig(r=_LORA_RANK, target_modules="all-linear", init_lora_weights=False)
    with _left_where_made():
        return peft.get_peft_model(model, adapters)


@contextlib.contextmanager
def _left_where_made() -> Iterator[None]:
    """Inside, modules stay where they are. peft moves each adapter to the device and dtype of its
    layer; fake adapters are there already, and a fake parameter cannot be moved in place."""
    with mock.patch.object(torch.nn.Module, "to", lambda module, *args, **kwargs: module):
        yield


@contextlib.contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """Inside, new tensors have this dtype by default. (Fake ones cannot be converted in place.)"""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise OptionError(
            f"dtype is {name!r}. {_nearest(name, _DTYPES)}It takes one of {', '.join(_DTYPES)}."
        )
    return _DTYPES[name]


def _from_function(what: str) -> Step:
    module_name, _, function_name = what.partition(":")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise OptionError(
            f"{what!r}: the module {module_name!r} cannot be imported ({error}). It is looked for "
            "in the present folder and where Python looks."
        ) from error
    finally:
        sys.path.remove("")
    function = getattr(module, function_name, None)
    if not callable(function):
        own = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise OptionError(
            f"{what!r}: {module_name} has no function {function_name!r}. {_nearest(function_name, own)}"
        )
    takes_nothing = "failed (it is called with nothing, on fake tensors, which have no values)"
    with fake_tensors(), _said_of(repr(what), takes_nothing):
        returned = function()
    if not (isinstance(returned, tuple) and len(returned) == 2 and callable(returned[0])):
        raise OptionError(
            f"{what!r} returned {type(returned).__name__}; it must return a model (or function) and "
            "its inputs: (model, tensor), (model, tuple) or (model, dict)."
        )
    fn, inputs = returned
    step = Step(what, fn, (inputs,), {})
    if isinstance(inputs, tuple):
        step = replace(step, args=inputs)
    elif isinstance(inputs, Mapping):
        step = replace(step, args=(), kwargs=dict(inputs))
    return step


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise OptionError(
            "Models by name and by --config are those of transformers, which is not installed: "
            "pip install transformers. Your own models need nothing: module:function."
        ) from None
    transformers.logging.set_verbosity_error()
    return transformers


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}? " if close else ""
