"""Real models, tiny: traced in seconds, with the structure of the full-size ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

VOCABULARY, TOKENS, IMAGE, HIDDEN = 64, 32, 32, 32
BATCH = 4


def gpt2() -> torch.nn.Module:
    config = transformers.GPT2Config(
        n_layer=2, n_embd=HIDDEN, n_head=2, vocab_size=VOCABULARY, n_positions=TOKENS,
        use_cache=False, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # transformers guesses it from class names, with a warning
    return model


def bert(layers: int = 2) -> torch.nn.Module:
    config = transformers.BertConfig(
        num_hidden_layers=layers, hidden_size=HIDDEN, num_attention_heads=2,
        intermediate_size=4 * HIDDEN, vocab_size=VOCABULARY, max_position_embeddings=TOKENS,
    )  # fmt: skip
    model = transformers.BertForMaskedLM(config)
    model.loss_type = "ForMaskedLM"
    return model


def llama(layers: int = 2) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        num_hidden_layers=layers, hidden_size=HIDDEN, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=2 * HIDDEN, vocab_size=VOCABULARY, use_cache=False, bos_token_id=1,
        eos_token_id=1, max_position_embeddings=TOKENS,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def vit(layers: int = 2) -> torch.nn.Module:
    config = transformers.ViTConfig(
        num_hidden_layers=layers, hidden_size=HIDDEN, num_attention_heads=2,
        intermediate_size=4 * HIDDEN, image_size=IMAGE, patch_size=8, num_labels=10,
        hidden_dropout_prob=0.1, problem_type="single_label_classification",
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def resnet() -> torch.nn.Module:
    config = transformers.ResNetConfig(
        depths=[1, 1], hidden_sizes=[16, 32], embedding_size=16, num_labels=10,
        problem_type="single_label_classification",  # else the first call sets it: two graphs
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config)


def text() -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, VOCABULARY, (BATCH, TOKENS))
    return {"input_ids": tokens, "labels": tokens}


def images() -> dict[str, torch.Tensor]:
    labels = torch.randint(0, 10, (BATCH,))
    return {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE), "labels": labels}


ZOO: dict[str, tuple[Callable[..., torch.nn.Module], Callable[[], dict[str, Any]]]] = {
    "gpt2": (gpt2, text),
    "bert": (bert, text),
    "llama": (llama, text),
    "vit": (vit, images),
    "resnet": (resnet, images),
}


def build(name: str, **sizes: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A model in training mode and its inputs, the same at every call."""
    make_model, make_inputs = ZOO[name]
    torch.manual_seed(0)
    return make_model(**sizes).train(), make_inputs()
