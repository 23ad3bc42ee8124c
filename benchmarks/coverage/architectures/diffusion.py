"""diffusers' networks of noise: U-Nets, transformers, an autoencoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.architecture import BATCH, TOKENS, Architecture, Inputs, Scored

_SIDE = 16


def _built(model_class: str, settings: dict[str, Any]) -> nn.Module:
    import diffusers

    return Scored(getattr(diffusers, model_class)(**settings))


def _times() -> Inputs:
    return {"timestep": torch.arange(BATCH)}


def _noise(channels: int = 4) -> Inputs:
    return {"sample": torch.randn(BATCH, channels, _SIDE, _SIDE), **_times()}


def _with_text(channels: int = 4, width: int = 16) -> Inputs:
    return {**_noise(channels), "encoder_hidden_states": torch.randn(BATCH, TOKENS, width)}


def _hidden(channels: int = 4) -> Inputs:
    return {"hidden_states": torch.randn(BATCH, channels, _SIDE, _SIDE), **_times()}


_BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
_TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}

_TABLE: dict[str, tuple[str, dict[str, Any], Any]] = {
    "unet-2d": ("UNet2DModel", {
        **_BLOCKS, "sample_size": _SIDE, "in_channels": 3, "out_channels": 3,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8,
    }, partial(_noise, 3)),
    "dit": ("DiTTransformer2DModel", {
        **_TRANSFORMER, "in_channels": 4, "out_channels": 4, "sample_size": _SIDE, "patch_size": 4,
        "num_embeds_ada_norm": 8, "norm_num_groups": 4, "upcast_attention": False,
    }, lambda: {**_hidden(), "class_labels": torch.arange(BATCH)}),
    "unet-condition": ("UNet2DConditionModel", {
        **_BLOCKS, "sample_size": _SIDE, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16, "attention_head_dim": 8,
    }, _with_text),
    "autoencoder-kl": ("AutoencoderKL", {
        **_BLOCKS, "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4, "sample_size": _SIDE,
    }, lambda: {"sample": torch.randn(BATCH, 3, _SIDE, _SIDE)}),
    "pixart": ("PixArtTransformer2DModel", {
        **_TRANSFORMER, "in_channels": 4, "out_channels": 8, "sample_size": _SIDE, "patch_size": 4,
        "cross_attention_dim": 16, "caption_channels": 16, "norm_num_groups": 4,
        "use_additional_conditions": False,
    }, lambda: {**_hidden(), "encoder_hidden_states": torch.randn(BATCH, TOKENS, 16)}),
    "sd3": ("SD3Transformer2DModel", {
        **_TRANSFORMER, "in_channels": 4, "out_channels": 4, "sample_size": _SIDE, "patch_size": 4,
        "joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 16,
        "pos_embed_max_size": 8,
    }, lambda: {
        **_hidden(), "encoder_hidden_states": torch.randn(BATCH, TOKENS, 16),
        "pooled_projections": torch.randn(BATCH, 16),
    }),
}  # fmt: skip

ROWS = [
    Architecture(name, "diffusion", partial(_built, kind, settings), inputs, ("diffusers",))
    for name, (kind, settings, inputs) in _TABLE.items()
]
