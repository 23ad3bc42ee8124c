"""transformers' models from tiny configurations, without a line of code for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.architecture import (
    CLASSES,
    HIDDEN,
    IMAGE,
    TOKENS,
    VOCABULARY,
    Architecture,
    Inputs,
    Scored,
)

# What most language models call their sizes. Dropout is 0: eager draws other numbers.
LANGUAGE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 2 * TOKENS,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attention_dropout": 0.0,
    "hidden_dropout": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "use_cache": False,
}  # fmt: skip
DECODER = LANGUAGE | {"num_key_value_heads": 1, "head_dim": HIDDEN // 2}
PICTURE: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": IMAGE, "patch_size": 8, "num_labels": CLASSES,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "problem_type": "single_label_classification",  # else the first call sets it: two graphs
}  # fmt: skip


def rows_of(
    family: str, base: dict[str, Any], inputs: Callable[[], Inputs], table: dict[str, Any]
) -> list[Architecture]:
    """One architecture an entry: its name, and the model's class and what its configuration has
    other than ``base``; inputs of its own come third."""
    made = []
    for name, (model_class, changes, *own) in table.items():
        build = partial(built, model_class, base | changes)
        made.append(Architecture(name, family, build, own[0] if own else inputs, ("transformers",)))
    return made


def built(model_class: str, settings: dict[str, Any]) -> nn.Module:
    """A model from the class of that name, with a loss."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kind = getattr(transformers, model_class)
    model = kind(configuration(kind.config_class, settings))
    _draw_zeros(model)
    if not {"labels", "return_loss"} & inspect.signature(kind.forward).parameters.keys():
        return Scored(model)
    if getattr(model, "loss_type", None) is None:
        model.loss_type = "ForCausalLM"  # which it falls back to, with a warning that breaks graphs
    return model


def configuration(config_class: Any, settings: dict[str, Any]) -> Any:
    """``None`` leaves a setting to the configuration: some have it as a property."""
    return config_class(**{key: value for key, value in settings.items() if value is not None})


def _draw_zeros(model: nn.Module) -> None:
    """Weights that begin at zero would hide what lies behind them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.05)
