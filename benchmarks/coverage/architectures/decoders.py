"""Dense decoders."""

from benchmarks.coverage.architecture import HIDDEN, TOKENS, text
from benchmarks.coverage.architectures.hugging_face import DECODER, rows_of

_GPT2 = {
    "n_layer": 2, "n_embd": HIDDEN, "n_head": 2, "n_positions": 2 * TOKENS,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}

ROWS = rows_of("decoders", DECODER, text, {
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "llama": ("LlamaForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "gemma2": ("Gemma2ForCausalLM", {**_SLIDING, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3ForCausalLM", {**_SLIDING, "query_pre_attn_scalar": 16}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 4}),
    "gpt-neox": ("GPTNeoXForCausalLM", {}),
    "bloom": ("BloomForCausalLM", {"n_layer": 2, "n_head": 2}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "gemma": ("GemmaForCausalLM", {}),
    "opt": ("OPTForCausalLM", {"ffn_dim": 2 * HIDDEN, "word_embed_proj_dim": HIDDEN, "dropout": 0.0}),
    "falcon": ("FalconForCausalLM", {"new_decoder_architecture": False, "alibi": False, "head_dim": None}),
    "phi": ("PhiForCausalLM", {"resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "phi3": ("Phi3ForCausalLM", {"resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "stablelm": ("StableLmForCausalLM", {}),
    "cohere": ("CohereForCausalLM", {}),
    "cohere2": ("Cohere2ForCausalLM", _SLIDING),
    "olmo": ("OlmoForCausalLM", {}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "olmo3": ("Olmo3ForCausalLM", _SLIDING),
    "gpt-neo": ("GPTNeoForCausalLM", {
        "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
        "window_size": 4, "resid_dropout": 0.0, "embed_dropout": 0.0,
    }),
    "gptj": ("GPTJForCausalLM", {**_GPT2, "rotary_dim": 8}),
    "gpt-bigcode": ("GPTBigCodeForCausalLM", _GPT2),
    "codegen": ("CodeGenForCausalLM", {**_GPT2, "n_head": 4, "n_ctx": 2 * TOKENS, "rotary_dim": 4}),
    "mpt": ("MptForCausalLM", {"d_model": HIDDEN, "n_heads": 2, "n_layers": 2, "max_seq_len": 32}),
    "starcoder2": ("Starcoder2ForCausalLM", {"residual_dropout": 0.0, "embedding_dropout": 0.0}),
    "granite": ("GraniteForCausalLM", {}),
    "glm4": ("Glm4ForCausalLM", {}),
    "smollm3": ("SmolLM3ForCausalLM", {}),
    "nemotron": ("NemotronForCausalLM", {}),
    "ernie4.5": ("Ernie4_5ForCausalLM", {}),
    "exaone4": ("Exaone4ForCausalLM", _SLIDING),
    "helium": ("HeliumForCausalLM", {}),
    "diffllama": ("DiffLlamaForCausalLM", {"num_key_value_heads": 2}),
    "persimmon": ("PersimmonForCausalLM", {}),
    "biogpt": ("BioGptForCausalLM", {"activation_dropout": 0.0, "layerdrop": 0.0}),
    "xglm": ("XGLMForCausalLM", {
        "d_model": HIDDEN, "ffn_dim": 64, "num_layers": 2, "attention_heads": 2, "dropout": 0.0,
        "activation_dropout": 0.0, "layerdrop": 0.0,
    }),
    "ctrl": ("CTRLLMHeadModel", {**_GPT2, "dff": 64}),
    "gpt1": ("OpenAIGPTLMHeadModel", _GPT2),
    "minicpm3": ("MiniCPM3ForCausalLM", {
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "num_key_value_heads": 2, "head_dim": 8,
    }),
    "bitnet": ("BitNetForCausalLM", {}),
    "vaultgemma": ("VaultGemmaForCausalLM", {**_SLIDING, "query_pre_attn_scalar": 16}),
    "modernbert-decoder": ("ModernBertDecoderForCausalLM", {
        "local_attention": 8, "embedding_dropout": 0.0, "mlp_dropout": 0.0, "cls_token_id": 1,
        "sep_token_id": 2, "norm_bias": False,
    }),
})  # fmt: skip
