"""Speech and other sound."""

import torch

from benchmarks.coverage.architecture import (
    BATCH,
    CLASSES,
    HIDDEN,
    TOKENS,
    VOCABULARY,
    Inputs,
)
from benchmarks.coverage.architectures.hugging_face import LANGUAGE, PICTURE, rows_of

_FRAMES, _BINS = 24, 8
_WAVE = {
    "conv_dim": [16, 16], "conv_kernel": [8, 4], "conv_stride": [5, 4],
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "feat_proj_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0, "final_dropout": 0.0,
    "apply_spec_augment": False, "mask_time_prob": 0.0, "num_labels": CLASSES,
    "classifier_proj_size": 16, "problem_type": "single_label_classification",
}  # fmt: skip
_WHISPER = {
    "d_model": HIDDEN, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "dropout": 0.0,
    "activation_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
    "num_mel_bins": _BINS, "max_source_positions": _FRAMES // 2, "decoder_start_token_id": 1,
    "max_target_positions": 2 * TOKENS, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip


def _wave() -> Inputs:
    return {
        "input_values": torch.randn(BATCH, 400),
        "labels": torch.randint(0, CLASSES, (BATCH,)),
    }


def _speech() -> Inputs:
    return {
        "input_features": torch.randn(BATCH, _BINS, _FRAMES),
        "labels": torch.randint(3, VOCABULARY, (BATCH, TOKENS)),
    }


def _frames_first() -> Inputs:
    return {
        "input_features": torch.randn(BATCH, _FRAMES, _BINS),
        "labels": torch.randint(3, VOCABULARY, (BATCH, TOKENS)),
    }


def _spectrum() -> Inputs:
    return {
        "input_values": torch.randn(BATCH, 32, 16),
        "labels": torch.randint(0, CLASSES, (BATCH,)),
    }


ROWS = rows_of("audio", LANGUAGE | _WAVE, _wave, {
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", {}),
    "whisper": ("WhisperForConditionalGeneration", _WHISPER, _speech),
    "hubert": ("HubertForSequenceClassification", {}),
    "wavlm": ("WavLMForSequenceClassification", {"num_buckets": 8, "max_bucket_distance": 16}),
    "speech-to-text": ("Speech2TextForConditionalGeneration", {
        **_WHISPER, "input_feat_per_channel": _BINS, "input_channels": 1, "conv_channels": 16,
        "num_conv_layers": 2, "conv_kernel_sizes": [3, 3], "max_source_positions": 64,
    }, _frames_first),
    "sew": ("SEWForSequenceClassification", {"squeeze_factor": 2}),
    "unispeech": ("UniSpeechForSequenceClassification", {}),
    "data2vec-audio": ("Data2VecAudioForSequenceClassification", {"num_conv_pos_embeddings": 1}),
    "wav2vec2-conformer": ("Wav2Vec2ConformerForSequenceClassification", {
        "position_embeddings_type": "rotary", "conformer_conv_dropout": 0.0,
        "conv_depthwise_kernel_size": 3,
    }),
    "audio-spectrogram": ("ASTForAudioClassification", {
        **PICTURE, "max_length": 32, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8,
        "time_stride": 8,
    }, _spectrum),
    "moonshine": ("MoonshineForConditionalGeneration", {
        "encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1,
        "encoder_num_attention_heads": 2, "decoder_num_attention_heads": 2,
        "encoder_num_key_value_heads": 2, "decoder_num_key_value_heads": 2,
        "decoder_start_token_id": 1, "num_attention_heads": None, "num_hidden_layers": None,
    }, lambda: {
        "input_values": torch.randn(BATCH, 1600),
        "labels": torch.randint(3, VOCABULARY, (BATCH, TOKENS)),
    }),
})  # fmt: skip
