"""Encoders of text."""

from benchmarks.coverage.architecture import HIDDEN, TOKENS, text, tokens_alone
from benchmarks.coverage.architectures.hugging_face import LANGUAGE, rows_of

_DISTIL = {
    "dim": HIDDEN, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "dropout": 0.0,
    "attention_dropout": 0.0,
}  # fmt: skip
_ALBERT = {"embedding_size": 16, "num_hidden_groups": 1, "inner_group_num": 1}
_DEBERTA = {
    "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8,
    "type_vocab_size": 0, "position_biased_input": False, "pooler_hidden_size": HIDDEN,
}  # fmt: skip
_XLM = {
    "emb_dim": HIDDEN, "n_layers": 2, "n_heads": 2, "dropout": 0.0, "n_langs": 1,
    "use_lang_emb": False,
}  # fmt: skip
_FUNNEL = {
    "block_sizes": [1, 1], "d_model": HIDDEN, "n_head": 2, "d_head": 16, "d_inner": 64,
    "num_decoder_layers": 1, "activation_dropout": 0.0, "num_hidden_layers": None,
}  # fmt: skip
_POSITIONS = {"max_position_embeddings": 2 * TOKENS + 2}  # which are counted from the padding's

ROWS = rows_of("encoders", LANGUAGE, text, {
    "bert": ("BertForMaskedLM", {}),
    "deberta-v2": ("DebertaV2ForMaskedLM", _DEBERTA),
    "albert": ("AlbertForMaskedLM", _ALBERT),
    "modernbert": ("ModernBertForMaskedLM", {
        "local_attention": 8, "embedding_dropout": 0.0, "mlp_dropout": 0.0, "cls_token_id": 1,
        "sep_token_id": 2, "global_attn_every_n_layers": 2,
    }),
    "fnet": ("FNetForMaskedLM", {}),
    "electra": ("ElectraForMaskedLM", {"embedding_size": 16}),
    "roberta": ("RobertaForMaskedLM", _POSITIONS),
    "distilbert": ("DistilBertForMaskedLM", _DISTIL),
    "deberta": ("DebertaForMaskedLM", _DEBERTA),
    "camembert": ("CamembertForMaskedLM", _POSITIONS),
    "xlm-roberta": ("XLMRobertaForMaskedLM", _POSITIONS),
    "mpnet": ("MPNetForMaskedLM", _POSITIONS),
    "convbert": ("ConvBertForMaskedLM", {"embedding_size": HIDDEN, "conv_kernel_size": 3}),
    "megatron-bert": ("MegatronBertForMaskedLM", {}),
    "rembert": ("RemBertForMaskedLM", {
        "input_embedding_size": 16, "output_embedding_size": 24, "classifier_dropout_prob": 0.0,
    }),
    "roformer": ("RoFormerForMaskedLM", {"embedding_size": HIDDEN}),
    "squeezebert": ("SqueezeBertForMaskedLM", {"embedding_size": HIDDEN}),
    "mobilebert": ("MobileBertForMaskedLM", {
        "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16,
        "num_feedforward_networks": 2,
    }),
    "ibert": ("IBertForMaskedLM", _POSITIONS),
    "xlm": ("XLMWithLMHeadModel", _XLM),
    "flaubert": ("FlaubertWithLMHeadModel", _XLM),
    "xlnet": ("XLNetLMHeadModel", {
        "d_model": HIDDEN, "n_layer": 2, "n_head": 2, "d_inner": 64, "dropout": 0.0,
        "max_position_embeddings": None,
    }),
    "funnel": ("FunnelForMaskedLM", _FUNNEL),
    "nystromformer": ("NystromformerForMaskedLM", {
        "num_landmarks": 4, "segment_means_seq_len": TOKENS, "conv_kernel_size": 3,
    }),
    "esm": ("EsmForMaskedLM", {**_POSITIONS, "position_embedding_type": "rotary"}),
    "eurobert": ("EuroBertForMaskedLM", {}),
    "nomic-bert": ("NomicBertModel", {}, tokens_alone),
    "ernie": ("ErnieForMaskedLM", {}),
    "roberta-prelayernorm": ("RobertaPreLayerNormForMaskedLM", _POSITIONS),
    "bert-generation": ("BertGenerationDecoder", {"is_decoder": True}),
})  # fmt: skip
