"""The models whose plans are compared with measured steps: small, but of real structure.

Large enough that activations outweigh everything else, small enough that each compiles in less than
a minute on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import transformers
from torch import nn

from benchmarks.models import CLASSES, Inputs, Workload
from benchmarks.workloads import gpt2, llama, text

VOCABULARY, BATCH, TOKENS, HIDDEN, IMAGE = 1_000, 8, 128, 256, 64


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        num_hidden_layers=3, hidden_size=HIDDEN, num_attention_heads=4,
        intermediate_size=4 * HIDDEN, vocab_size=VOCABULARY, max_position_embeddings=TOKENS,
    )  # fmt: skip
    model = transformers.BertForMaskedLM(config)
    model.loss_type = "ForMaskedLM"
    return model


def _vit() -> nn.Module:
    config = transformers.ViTConfig(
        num_hidden_layers=3, hidden_size=HIDDEN, num_attention_heads=4,
        intermediate_size=4 * HIDDEN, image_size=IMAGE, patch_size=8, num_labels=CLASSES,
        problem_type="single_label_classification",
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def _resnet() -> nn.Module:
    config = transformers.ResNetConfig(
        depths=[2, 2, 2], hidden_sizes=[64, 128, 256], embedding_size=32, num_labels=CLASSES,
        problem_type="single_label_classification",  # else the first call sets it: two graphs
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config)


def _text() -> Inputs:
    return text(BATCH, TOKENS, VOCABULARY)


def _images() -> Inputs:
    labels = torch.randint(0, CLASSES, (BATCH,))
    return {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE), "labels": labels}


def _made(model: Callable[[], nn.Module], inputs: Callable[[], Inputs]) -> tuple[nn.Module, Inputs]:
    return model(), inputs()


MODELS = {
    "gpt2": Workload(
        "GPT-2 with dropout, 4 x 256, 8 x 128",
        partial(_made, partial(gpt2, 4, HIDDEN, VOCABULARY, TOKENS), _text),
    ),
    "llama": Workload(
        "Llama, 4 x 256, 8 x 128",
        partial(_made, partial(llama, 4, HIDDEN, 4 * HIDDEN, VOCABULARY), _text),
    ),
    "bert": Workload("BERT with dropout, 3 x 256, 8 x 128", partial(_made, _bert, _text)),
    "vit": Workload("ViT, 3 x 256, 8 x 64 x 64", partial(_made, _vit, _images)),
    "resnet": Workload(
        "ResNet, 2 + 2 + 2 bottlenecks, 8 x 64 x 64", partial(_made, _resnet, _images)
    ),
}
