"""Published configurations of well-known models, as settings of transformers' classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """A published configuration: the class's defaults with some settings changed."""

    title: str
    model: str  # of transformers
    config: str
    settings: Mapping[str, Any]
    sequence: int | None = None  # None for images


def _gpt2(title: str, width: int, layers: int, heads: int) -> Published:
    settings = {"n_embd": width, "n_layer": layers, "n_head": heads}
    return Published(title, "GPT2LMHeadModel", "GPT2Config", settings, 1024)


def _llama(title: str, width: int, layers: int, heads: int, inner: int, **more: Any) -> Published:
    settings = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": inner, **more,
    }  # fmt: skip
    return Published(title, "LlamaForCausalLM", "LlamaConfig", settings, 4096)


def _bert(title: str, width: int, layers: int, heads: int) -> Published:
    settings = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }  # fmt: skip
    return Published(title, "BertForMaskedLM", "BertConfig", settings, 512)


def _vit(title: str, width: int, layers: int, heads: int) -> Published:
    settings = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": 4 * width, "num_labels": 1000,
    }  # fmt: skip
    return Published(title, "ViTForImageClassification", "ViTConfig", settings)


def _resnet(title: str, depths: list[int]) -> Published:
    settings = {"depths": depths, "num_labels": 1000}
    return Published(title, "ResNetForImageClassification", "ResNetConfig", settings)


PUBLISHED = {
    "gpt2": _gpt2("GPT-2, 124M", 768, 12, 12),
    "gpt2-medium": _gpt2("GPT-2 medium, 355M", 1024, 24, 16),
    "gpt2-large": _gpt2("GPT-2 large, 774M", 1280, 36, 20),
    "gpt2-xl": _gpt2("GPT-2 XL, 1.5B", 1600, 48, 25),
    "llama-7b": _llama("Llama 7B", 4096, 32, 32, 11008),
    "llama-13b": _llama("Llama 13B", 5120, 40, 40, 13824),
    "llama-3-8b": _llama(
        "Llama 3 8B", 4096, 32, 32, 14336, num_key_value_heads=8, vocab_size=128256
    ),
    "bert-base": _bert("BERT base", 768, 12, 12),
    "bert-large": _bert("BERT large", 1024, 24, 16),
    "resnet-50": _resnet("ResNet-50", [3, 4, 6, 3]),
    "resnet-152": _resnet("ResNet-152", [3, 8, 36, 3]),
    "vit-b": _vit("ViT-B/16", 768, 12, 12),
    "vit-l": _vit("ViT-L/16", 1024, 24, 16),
}
