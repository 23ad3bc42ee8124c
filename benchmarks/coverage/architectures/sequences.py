"""Encoders and decoders of text in one model."""

from benchmarks.coverage.architecture import HIDDEN, TOKENS, VOCABULARY, text
from benchmarks.coverage.architectures.hugging_face import rows_of

_BART = {
    "vocab_size": VOCABULARY, "d_model": HIDDEN, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 2 * TOKENS, "dropout": 0.0,
    "attention_dropout": 0.0, "activation_dropout": 0.0, "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": 2,
}  # fmt: skip
_T5 = {
    "num_layers": 1, "num_decoder_layers": 1, "d_kv": 16, "num_heads": 2, "d_ff": 64,
    "dropout_rate": 0.0,
}  # fmt: skip

ROWS = rows_of("encoders with decoders", _BART, text, {
    "t5": ("T5ForConditionalGeneration", _T5),
    "bart": ("BartForConditionalGeneration", {}),
    "switch": ("SwitchTransformersForConditionalGeneration", {
        **_T5, "num_experts": 4, "expert_capacity": 16, "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1, "router_jitter_noise": 0.0,
    }),
    "pegasus": ("PegasusForConditionalGeneration", {}),
    "marian": ("MarianMTModel", {"decoder_vocab_size": VOCABULARY}),
    "mbart": ("MBartForConditionalGeneration", {}),
    "m2m-100": ("M2M100ForConditionalGeneration", {}),
    "umt5": ("UMT5ForConditionalGeneration", _T5),
    "mt5": ("MT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "longt5": ("LongT5ForConditionalGeneration", {**_T5, "local_radius": 4}),
    "blenderbot": ("BlenderbotForConditionalGeneration", {}),
    "plbart": ("PLBartForConditionalGeneration", {}),
    "led": ("LEDForConditionalGeneration", {
        "attention_window": 4, "max_encoder_position_embeddings": 2 * TOKENS,
        "max_decoder_position_embeddings": 2 * TOKENS,
    }),
})  # fmt: skip
