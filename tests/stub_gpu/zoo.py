"""Training steps in the forms that CUDA's generated code has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests import zoo

Inputs = dict[str, torch.Tensor]
VOCABULARY, WIDTH, TOKENS, BATCH = 512, 128, 64, 4


@dataclass(frozen=True)
class Case:
    """A step, and how it is compiled.

    Attributes:
        build: makes model and inputs, on the CPU.
        options: of the backend.
        dynamic: for ``torch.compile``.
        autocast: whether the forward runs in bfloat16 under autocast.
        dtype: of the model.
        fuse: for ``fuse_optimizer``; None without an optimizer.
        deterministic: whether torch is to use deterministic algorithms.
    """

    build: Callable[[], tuple[nn.Module, Inputs]]
    options: dict[str, Any] = field(default_factory=dict)
    dynamic: bool | None = None
    autocast: bool = False
    dtype: torch.dtype = torch.float32
    fuse: dict[str, Any] | None = None
    deterministic: bool = False


class Mlp(nn.Module):
    def __init__(self, width: int = 256, layers: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.dropout(F.gelu(layer(x)), self.dropout, self.training)
        return x.float().square().mean()


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        return self.head(x.mean((2, 3))).square().mean()


class Llama(nn.Module):
    """Blocks of attention and gated layers; the loss over the vocabulary may be chunked."""

    def __init__(self, layers: int = 2, tied: bool = False, adapters: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        if adapters:
            self.requires_grad_(False)
            for block in self.blocks:
                block.adapter = nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), tokens.flatten())


class Block(nn.Module):
    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.adapter = heads, nn.Identity()
        self.norm_1, self.norm_2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate, self.up = (nn.Linear(WIDTH, 4 * WIDTH) for _ in range(2))
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        shape = (batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(self.norm_1(x)).view(shape).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        hidden = self.norm_2(x)
        return x + self.adapter(self.down(F.silu(self.gate(hidden)) * self.up(hidden)))


class Experts(nn.Module):
    """Every token to the expert of its largest score, all experts computed."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts)
        self.weights = nn.Parameter(torch.randn(experts, WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores, chosen = self.router(x).softmax(-1).topk(2)
        outputs = torch.einsum("nd,edf->enf", x, self.weights)
        gathered = outputs.permute(1, 0, 2).gather(1, chosen[..., None].expand(-1, -1, WIDTH))
        return (gathered * scores[..., None]).sum(1).square().mean()


class Reductions(nn.Module):
    """Scans, sorts and reductions over long rows, whose kernels take workspaces."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        values, places = y.topk(8, -1)
        ordered = torch.cumsum(y, -1).sort(-1).values
        chosen = y.index_select(0, places[0])
        return values.mean() + ordered.var() + chosen.std() + torch.logsumexp(y, 0).sum()


def rows() -> Inputs:
    return {"x": torch.randn(512, 256)}


def narrow_rows() -> Inputs:
    return {"x": torch.randn(512, WIDTH)}


def tokens() -> Inputs:
    return {"tokens": torch.randint(0, VOCABULARY, (BATCH, TOKENS))}


def inductor(**settings: Any) -> dict[str, Any]:
    return {"inductor": settings}


CASES: dict[str, Case] = {
    "dense": Case(lambda: (Mlp(), rows())),
    "dropout": Case(lambda: (Mlp(dropout=0.1), rows())),
    "convolutions": Case(lambda: (Convolutions(), {"x": torch.randn(4, 3, 32, 32)})),
    "llama": Case(lambda: (Llama(), tokens())),
    "llama, bf16": Case(lambda: (Llama(), tokens()), dtype=torch.bfloat16),
    "llama, autocast": Case(lambda: (Llama(), tokens()), autocast=True),
    "llama, dynamic": Case(lambda: (Llama(), tokens()), dynamic=True),
    "llama, deterministic": Case(lambda: (Llama(), tokens()), deterministic=True),
    "llama, adapters": Case(lambda: (Llama(adapters=True), tokens())),
    "llama, tied": Case(lambda: (Llama(tied=True), tokens())),
    "llama, updates in the backward": Case(lambda: (Llama(), tokens()), fuse={"in_backward": True}),
    "llama, sparse": Case(
        lambda: (Llama(), tokens()), {"sparsity": {"density": 0.5, "block": 32}}, fuse={}
    ),
    "gpt2": Case(lambda: zoo.build("gpt2")),
    "experts": Case(lambda: (Experts(), narrow_rows())),
    "reductions": Case(lambda: (Reductions(), narrow_rows())),
    "dense, memory planning": Case(lambda: (Mlp(), rows()), inductor(memory_planning=True)),
    "dense, combo kernels": Case(lambda: (Mlp(), rows()), inductor(combo_kernels=True)),
    "dense, cooperative": Case(
        lambda: (Mlp(), rows()), inductor(**{"triton.force_cooperative_reductions": True})
    ),
    # Products become kernels of Triton's, of which one is taken by its time: any, on a stub.
    "dense, tuned": Case(
        lambda: (Mlp(), rows()),
        inductor(
            max_autotune=True,
            max_autotune_gemm_backends="TRITON",
            **{"test_configs.max_mm_configs": 2},
        ),
    ),
    "dense, partitions": Case(lambda: (Mlp(), rows()), inductor(graph_partition=True)),
}
