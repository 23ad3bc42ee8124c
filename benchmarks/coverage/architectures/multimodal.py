"""Text beside pictures."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.coverage.architecture import (
    BATCH,
    HIDDEN,
    IMAGE,
    TOKENS,
    VOCABULARY,
    Inputs,
    images,
    text,
)
from benchmarks.coverage.architectures.hugging_face import DECODER, LANGUAGE, PICTURE, rows_of

_UNKNOWN = ("num_labels", "problem_type")  # to a configuration that classifies nothing
_EYE = {
    **{key: value for key, value in PICTURE.items() if key not in _UNKNOWN},
    "patch_size": 16, "projection_dim": 16,
}  # fmt: skip
_WORDS = {**LANGUAGE, "projection_dim": 16, "max_position_embeddings": TOKENS}
_PATCHES = (IMAGE // 16) ** 2
_IMAGE_TOKEN = VOCABULARY - 1


def _pair() -> Inputs:
    return {
        "input_ids": torch.randint(3, VOCABULARY - 1, (BATCH, TOKENS)),
        "pixel_values": images()["pixel_values"],
        "return_loss": True,
    }


def _picture_and_text() -> Inputs:
    return {"pixel_values": images()["pixel_values"], **text()}


def _interleaved() -> Inputs:
    tokens = torch.randint(3, _IMAGE_TOKEN, (BATCH, TOKENS))
    tokens[:, 1 : 1 + _PATCHES] = _IMAGE_TOKEN
    return {"input_ids": tokens, "labels": tokens, "pixel_values": images()["pixel_values"]}


def _two(words: dict[str, Any], eye: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"text_config": words, "vision_config": eye, **more}


ROWS = rows_of("multimodal", {}, _pair, {
    "clip": ("CLIPModel", _two(_WORDS, _EYE, projection_dim=16)),
    "llava": ("LlavaForConditionalGeneration", _two(
        {**DECODER, "model_type": "llama"}, {**_EYE, "model_type": "clip_vision_model"},
        image_token_index=_IMAGE_TOKEN, image_seq_length=_PATCHES, vision_feature_layer=-1,
    ), _interleaved),
    "siglip": ("SiglipModel", _two(_WORDS, _EYE)),
    "blip": ("BlipForConditionalGeneration", _two(
        {**_WORDS, "encoder_hidden_size": HIDDEN, "is_decoder": True}, _EYE,
    ), _picture_and_text),
    "git": ("GitForCausalLM", {**LANGUAGE, "vision_config": _EYE}, _picture_and_text),
    "vilt": ("ViltModel", {**LANGUAGE, **_EYE, "modality_type_vocab_size": 2}, lambda: {
        "input_ids": text()["input_ids"], "pixel_values": images()["pixel_values"],
        "pixel_mask": torch.ones(BATCH, IMAGE, IMAGE, dtype=torch.long),
    }),
    "clipseg": ("CLIPSegModel", _two(_WORDS, _EYE, projection_dim=16)),
    "chinese-clip": ("ChineseCLIPModel", _two(_WORDS, _EYE, projection_dim=16)),
    "altclip": ("AltCLIPModel", _two(
        {**_WORDS, "project_dim": 16, "max_position_embeddings": 2 * TOKENS}, _EYE,
        projection_dim=16,
    )),
    "gemma3-vision": ("Gemma3ForConditionalGeneration", _two(
        {**DECODER, "model_type": "gemma3_text", "sliding_window": 8, "query_pre_attn_scalar": 16},
        {**_EYE, "model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=_PATCHES, image_token_index=_IMAGE_TOKEN,
        image_token_id=_IMAGE_TOKEN, boi_token_index=1, eoi_token_index=2,
    ), lambda: {**_interleaved(), "token_type_ids": (_interleaved()["input_ids"] == _IMAGE_TOKEN).long()}),
})  # fmt: skip
