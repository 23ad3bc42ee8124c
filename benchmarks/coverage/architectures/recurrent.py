"""State spaces, linear attention, and torch's own recurrent networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.coverage.architecture import HIDDEN, VOCABULARY, Architecture, text
from benchmarks.coverage.architectures.hugging_face import DECODER, rows_of

_MIXED = {"layer_types": ["linear_attention", "full_attention"]}


class Recurrent(nn.Module):
    """A language model over one of torch's recurrent networks of two layers."""

    def __init__(self, network: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.network = network(HIDDEN, HIDDEN, 2, batch_first=True, **settings)
        width = HIDDEN * (2 if settings.get("bidirectional") else 1)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden, _ = self.network(self.embedding(input_ids))
        logits = self.head(hidden)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


class Cells(nn.Module):
    """A loop over a cell, as people write one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.cell = nn.LSTMCell(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        state, outputs = None, []
        for token in self.embedding(input_ids).unbind(1):
            state = self.cell(token, state)
            outputs.append(self.head(state[0]))
        logits = torch.stack(outputs, 1)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


ROWS = [
    *(
        Architecture(name, "recurrent", partial(Recurrent, network, **settings), text)
        for name, network, settings in (
            ("lstm", nn.LSTM, {}),
            ("gru", nn.GRU, {"bidirectional": True}),
            ("rnn", nn.RNN, {"nonlinearity": "relu"}),
        )
    ),
    Architecture("lstm-cell", "recurrent", Cells, text),
    *rows_of("state spaces and linear attention", DECODER, text, {
        "mamba": ("MambaForCausalLM", {"state_size": 4, "time_step_rank": 4, "conv_kernel": 4}),
        "mamba2": ("Mamba2ForCausalLM", {
            "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 4,
        }),
        "rwkv": ("RwkvForCausalLM", {"attention_hidden_size": HIDDEN, "context_length": 32}),
        "falcon-mamba": ("FalconMambaForCausalLM", {"state_size": 4, "time_step_rank": 4}),
        "jamba": ("JambaForCausalLM", {
            "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2,
            "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
            "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False,
        }),
        "bamba": ("BambaForCausalLM", {
            "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 4,
            "attn_layer_indices": [1], "partial_rotary_factor": 0.5,
        }),
        "zamba2": ("Zamba2ForCausalLM", {
            "layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "mamba_headdim": 16,
            "n_mamba_heads": 4, "mamba_ngroups": 1, "chunk_size": 4, "num_mem_blocks": 1,
        }),
        "recurrent-gemma": ("RecurrentGemmaForCausalLM", {
            "lru_width": HIDDEN, "block_types": ["recurrent", "attention"],
            "attention_window_size": 8,
        }),
        "xlstm": ("xLSTMForCausalLM", {
            "embedding_dim": HIDDEN, "num_heads": 2, "num_blocks": 2, "chunk_size": 4,
            "qk_dim_factor": 0.5,
        }),
        "granite-hybrid": ("GraniteMoeHybridForCausalLM", {
            "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16,
            "mamba_d_state": 8, "mamba_chunk_size": 4, "num_local_experts": 2,
            "num_experts_per_tok": 1, "shared_intermediate_size": HIDDEN,
        }),
        "lfm2": ("Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
        "olmo-hybrid": ("OlmoHybridForCausalLM", _MIXED),
    }),
]  # fmt: skip
