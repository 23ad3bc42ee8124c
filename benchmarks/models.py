"""The models whose peaks are measured: those of the tests, others of other shapes, two for a GPU.

Each is made from a configuration, with random weights. All return something with a ``loss``,
and all compile to one graph: with a break, the budget would hold for each piece alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from torch.nn import functional as F

from benchmarks.workloads import llama, text
from satcompile.runtime import registry
from tests import zoo

Inputs = dict[str, torch.Tensor]
CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """A model, the inputs of one training step, and the type in which both are floats.

    Attributes:
        title: as results name it.
        build: makes both, on the CPU in float32.
        gpu: too large for anything but a GPU.
    """

    title: str
    build: Callable[[], tuple[nn.Module, Inputs]]
    dtype: torch.dtype = torch.float32
    gpu: bool = False


class Output(NamedTuple):
    loss: torch.Tensor
    logits: torch.Tensor


class Mlp(nn.Module):
    def __init__(self, width: int = 64, layers: int = 6) -> None:
        super().__init__()
        hidden = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.GELU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, CLASSES))

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> Output:
        logits = self.layers(features)
        return Output(F.cross_entropy(logits, labels), logits)


class Encoder(nn.Module):
    """torch's own transformer layers, written by no library, dropout on."""

    def __init__(self, width: int = 32, layers: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(zoo.VOCABULARY, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 2, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, zoo.VOCABULARY)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Output:
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.head(hidden)
        return Output(F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits)


class UNet(nn.Module):
    """Two levels down and up again, with what is kept on the way down joined on the way up."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = _convolutions(3, width), _convolutions(width, 2 * width)
        self.bottom = _convolutions(2 * width, 4 * width)
        self.grow2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up2 = _convolutions(4 * width, 2 * width)
        self.grow1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up1 = _convolutions(2 * width, width)
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> Output:
        first = self.down1(pixel_values)
        second = self.down2(F.max_pool2d(first, 2))
        bottom = self.bottom(F.max_pool2d(second, 2))
        second = self.up2(torch.cat([second, self.grow2(bottom)], 1))
        first = self.up1(torch.cat([first, self.grow1(second)], 1))
        logits = self.head(first).mean((2, 3))
        return Output(F.cross_entropy(logits, labels), logits)


def _convolutions(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


def _features() -> Inputs:
    return {"features": torch.randn(256, 64), "labels": torch.randint(0, CLASSES, (256,))}


def _t5() -> nn.Module:
    config = transformers.T5Config(
        num_layers=2, d_model=zoo.HIDDEN, d_kv=zoo.HIDDEN // 2, num_heads=2, d_ff=4 * zoo.HIDDEN,
        vocab_size=zoo.VOCABULARY, use_cache=False, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def _mobilenet() -> nn.Module:
    config = transformers.MobileNetV2Config(
        depth_multiplier=0.35, image_size=zoo.IMAGE, num_labels=CLASSES,
        problem_type="single_label_classification",  # else the first call sets it: two graphs
    )  # fmt: skip
    return transformers.MobileNetV2ForImageClassification(config)


def _mixtral() -> nn.Module:
    config = transformers.MixtralConfig(
        num_hidden_layers=2, hidden_size=zoo.HIDDEN, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=2 * zoo.HIDDEN, num_local_experts=4, num_experts_per_tok=2,
        vocab_size=zoo.VOCABULARY, max_position_embeddings=zoo.TOKENS, use_cache=False,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


def _gpt2_medium() -> tuple[nn.Module, Inputs]:
    config = transformers.GPT2Config(n_layer=24, n_embd=1024, n_head=16, use_cache=False)
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # transformers guesses it from class names, with a warning
    return model, text(8, 1024, config.vocab_size)


def _llama_1b() -> tuple[nn.Module, Inputs]:
    """TinyLlama's shape: 1.1B parameters, and a vocabulary that leaves the peak to the layers."""
    config = transformers.LlamaConfig(
        num_hidden_layers=22, hidden_size=2048, intermediate_size=5632, num_attention_heads=32,
        num_key_value_heads=4, vocab_size=32000, max_position_embeddings=2048, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), text(4, 2048, config.vocab_size)


def _resnet_50() -> tuple[nn.Module, Inputs]:
    """transformers' default ResNet has the depths of the paper's with 50 layers."""
    config = transformers.ResNetConfig(
        num_labels=CLASSES, problem_type="single_label_classification"
    )
    return transformers.ResNetForImageClassification(config), _photos(64)


def _vit_large() -> tuple[nn.Module, Inputs]:
    config = transformers.ViTConfig(
        num_hidden_layers=24, hidden_size=1024, intermediate_size=4096, num_attention_heads=16,
        num_labels=CLASSES, problem_type="single_label_classification",
    )  # fmt: skip
    return transformers.ViTForImageClassification(config), _photos(64)


def _photos(batch: int) -> Inputs:
    return {
        "pixel_values": torch.randn(batch, 3, 224, 224),
        "labels": torch.randint(0, CLASSES, (batch,)),
    }


def _issue(layers: int) -> tuple[nn.Module, Inputs]:
    return llama(layers, 256, 1024, 1000), text(4, 256, 1000)


def _pair(model: Callable[[], nn.Module], inputs: Callable[[], Inputs]) -> tuple[nn.Module, Inputs]:
    return model(), inputs()


def _tiny(
    title: str, model: Callable[[], nn.Module], inputs: Callable[[], dict[str, Any]]
) -> Workload:
    return Workload(title, partial(_pair, model, inputs))


WORKLOADS: dict[str, Workload] = {
    **{name: Workload(f"{name}, tiny", partial(zoo.build, name)) for name in zoo.ZOO},
    "t5": _tiny("T5, tiny", _t5, zoo.text),
    "mixtral": _tiny("Mixtral, tiny", _mixtral, zoo.text),
    "mobilenet": _tiny("MobileNetV2, narrow, 4 x 32", _mobilenet, zoo.images),
    "unet": _tiny("U-Net of two levels, 4 x 32", UNet, zoo.images),
    "encoder": _tiny("torch.nn's transformer layers with dropout", Encoder, zoo.text),
    "mlp": _tiny("six linear layers with GELU", Mlp, _features),
    # pytorch issue 197838, where a lower budget of torch's own has a higher peak.
    **{
        f"llama-{layers}": Workload(f"Llama, {layers} x 256, 4 x 256", partial(_issue, layers))
        for layers in (8, 16, 24)
    },
    "gpt2-medium": Workload("GPT-2 medium, 8 x 1024, bf16", _gpt2_medium, torch.bfloat16, True),
    "resnet-50": Workload("ResNet-50, 64 x 224, bf16", _resnet_50, torch.bfloat16, True),
    "vit-l": Workload("ViT-L/16, 64 x 224, bf16", _vit_large, torch.bfloat16, True),
    "llama-1b": Workload("Llama 1.1B, 4 x 2048, bf16", _llama_1b, torch.bfloat16, True),
}


def load(workload: Workload, device: torch.device) -> tuple[nn.Module, Inputs]:
    """The model in training mode and its inputs on the device, the same at every call."""
    torch.manual_seed(0)
    model, inputs = workload.build()

    def placed(value: torch.Tensor) -> torch.Tensor:
        return value.to(device, workload.dtype if value.is_floating_point() else None)

    return model.to(device, workload.dtype).train(), {
        name: placed(value) for name, value in inputs.items()
    }


def forget() -> None:
    """Drop every compiled graph and what it holds, before the next model is loaded."""
    torch.compiler.reset()
    registry.forget_all()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
