"""Decoders that choose experts."""

from benchmarks.coverage.architecture import HIDDEN, text
from benchmarks.coverage.architectures.hugging_face import DECODER, rows_of

_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN,
    "num_local_experts": 4, "shared_expert_intermediate_size": HIDDEN, "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}  # fmt: skip
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "head_dim": 8, "num_key_value_heads": 2, "n_routed_experts": 4,
    "num_local_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": HIDDEN, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
    "topk_method": "greedy",
}  # fmt: skip

ROWS = rows_of("mixtures of experts", DECODER, text, {
    "qwen3-moe": ("Qwen3MoeForCausalLM", _EXPERTS),
    "mixtral": ("MixtralForCausalLM", _EXPERTS),
    "deepseek-v3": ("DeepseekV3ForCausalLM", _LATENT),
    "gpt-oss": ("GptOssForCausalLM", {
        **_EXPERTS, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"],
    }),
    "llama4": ("Llama4ForCausalLM", {
        **_EXPERTS, "intermediate_size_mlp": 2 * HIDDEN, "interleave_moe_layer_step": 1,
        "attention_chunk_size": 8, "num_experts_per_tok": 1,
    }),
    "qwen2-moe": ("Qwen2MoeForCausalLM", _EXPERTS),
    "deepseek-v2": ("DeepseekV2ForCausalLM", _LATENT),
    "olmoe": ("OlmoeForCausalLM", _EXPERTS),
    "granite-moe": ("GraniteMoeForCausalLM", _EXPERTS),
    "phimoe": ("PhimoeForCausalLM", _EXPERTS),
    "jetmoe": ("JetMoeForCausalLM", {**_EXPERTS, "kv_channels": 16}),
    "glm4-moe": ("Glm4MoeForCausalLM", _LATENT | {"head_dim": 16, "num_key_value_heads": 1}),
    "ernie4.5-moe": ("Ernie4_5_MoeForCausalLM", {
        "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1,
        "moe_intermediate_size": HIDDEN, "moe_layer_start_index": 0,
    }),
    "dbrx": ("DbrxForCausalLM", {
        "d_model": HIDDEN, "n_heads": 2, "n_layers": 2, "max_seq_len": 32,
        "ffn_config": {"ffn_hidden_size": HIDDEN, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8.0},
    }),
    "minimax": ("MiniMaxForCausalLM", {
        **_EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 4,
    }),
    "qwen3-next": ("Qwen3NextForCausalLM", {
        **_EXPERTS, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }),
    "longcat-flash": ("LongcatFlashForCausalLM", {
        **_LATENT, "ffn_hidden_size": 2 * HIDDEN, "expert_ffn_hidden_size": HIDDEN, "num_layers": 1,
        "zero_expert_num": 2, "moe_topk": 2,
    }),
    "gemma3n": ("Gemma3nForCausalLM", {
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 48, "laurel_rank": 4,
        "altup_num_inputs": 2, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.5, 0.0],
        "intermediate_size": [64, 64],
    }),
})  # fmt: skip
