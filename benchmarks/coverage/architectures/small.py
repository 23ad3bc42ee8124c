"""Networks that no library wrote: torch.nn's Transformer, graphs, Fourier, and the usual tiny ones."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.coverage.architecture import (
    BATCH,
    CLASSES,
    HIDDEN,
    IMAGE,
    TOKENS,
    VOCABULARY,
    Architecture,
    Inputs,
    images,
    text,
)

Result = dict[str, torch.Tensor]
NODES, EDGES = 24, 80
GRID, MODES = 16, 4


def classified(logits: torch.Tensor, labels: torch.Tensor) -> Result:
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
    return {"loss": loss, "logits": logits}


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(HIDDEN, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, CLASSES)
        )

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> Result:
        return classified(self.layers(features), labels)


class Seq2Seq(nn.Module):
    """torch.nn.Transformer with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.transformer = nn.Transformer(HIDDEN, 2, 2, 2, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Result:
        source = self.embedding(input_ids)
        mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        hidden = self.transformer(source, source.flip(1), tgt_mask=mask)
        return classified(self.head(hidden), labels)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        layer = nn.TransformerEncoderLayer(HIDDEN, 2, 64, 0.0, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Result:
        return classified(self.head(self.encoder(self.embedding(input_ids))), labels)


class GraphConvolution(nn.Module):
    """Mean of the neighbours by ``index_add``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2 * HIDDEN, HIDDEN) for _ in range(3))
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor, labels: torch.Tensor) -> Result:
        source, target = edges
        degree = torch.zeros(len(nodes), dtype=nodes.dtype).index_add(
            0, target, torch.ones(len(target), dtype=nodes.dtype)
        )
        for layer in self.layers:
            summed = torch.zeros_like(nodes).index_add(0, target, nodes[source])
            mean = summed / degree.clamp(min=1)[:, None]
            nodes = F.relu(layer(torch.cat([nodes, mean], 1)))
        return classified(self.head(nodes), labels)


class GraphAttention(nn.Module):
    """Attention over edges: a softmax by ``scatter_reduce`` and ``scatter_add``."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.score = nn.ModuleList(nn.Linear(2 * HIDDEN // heads, 1) for _ in range(2))
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor, labels: torch.Tensor) -> Result:
        source, target = edges
        for project, score in zip(self.project, self.score, strict=True):
            hidden = project(nodes).unflatten(1, (self.heads, -1))
            pairs = torch.cat([hidden[source], hidden[target]], -1)
            weight = F.leaky_relu(score(pairs).squeeze(-1))
            where = target[:, None].expand_as(weight)
            empty = torch.zeros(len(nodes), self.heads, dtype=nodes.dtype)
            largest = empty.scatter_reduce(0, where, weight.detach(), "amax", include_self=False)
            weight = (weight - largest[target]).exp()
            total = empty.scatter_add(0, where, weight)
            share = weight / total[target]
            messages = hidden[source] * share[..., None]
            nodes = F.elu(torch.zeros_like(hidden).index_add(0, target, messages).flatten(1))
        return classified(self.head(nodes), labels)


class Interaction(nn.Module):
    """Messages from both ends of an edge, and edges that change with them, as for molecules."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.ModuleList(nn.Linear(3 * HIDDEN, HIDDEN) for _ in range(2))
        self.update = nn.GRUCell(HIDDEN, HIDDEN)
        self.edge = nn.Linear(1, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor, labels: torch.Tensor) -> Result:
        source, target = edges
        apart = (nodes[source, :3] - nodes[target, :3]).norm(dim=1, keepdim=True)
        between = self.edge(apart)
        for message in self.message:
            between = F.silu(message(torch.cat([nodes[source], nodes[target], between], 1)))
            summed = torch.zeros_like(nodes)
            summed.index_add_(0, target, between)
            nodes = self.update(summed, nodes)
        return classified(self.head(nodes), labels)


class FourierLayer(nn.Module):
    """The lowest frequencies, each mixed by complex weights of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, MODES, MODES, 2) / width)
        self.skip = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft2(x)
        low = torch.zeros_like(spectrum)
        mixed = torch.einsum(
            "bixy,ioxy->boxy", spectrum[..., :MODES, :MODES], torch.view_as_complex(self.weight)
        )
        low[..., :MODES, :MODES] = mixed
        return F.gelu(torch.fft.irfft2(low, s=x.shape[-2:]) + self.skip(x))


class FourierOperator(nn.Module):
    """FNO in two dimensions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.lift = nn.Conv2d(1, width, 1)
        self.layers = nn.ModuleList(FourierLayer(width) for _ in range(2))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, field: torch.Tensor, target: torch.Tensor) -> Result:
        hidden = self.lift(field)
        for layer in self.layers:
            hidden = layer(hidden)
        found = self.head(hidden)
        return {"loss": F.mse_loss(found, target), "field": found}


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.norms[0](self.first(x)))
        hidden = self.norms[1](self.second(hidden))
        hidden += x  # in place, as people write it
        return self.act(hidden)


class ResNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(3)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> Result:
        hidden = self.blocks(self.stem(pixel_values))
        return classified(self.head(hidden.mean((2, 3))), labels)


class AutoEncoder(nn.Module):
    """Transposed convolutions, group norms and a vector-quantized middle."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.GroupNorm(2, width), nn.SiLU(),
            nn.Conv2d(width, width, 4, 2, 1),
        )  # fmt: skip
        self.codes = nn.Embedding(16, width)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.GroupNorm(2, width), nn.SiLU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1),
        )  # fmt: skip

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> Result:
        hidden = self.down(pixel_values).movedim(1, -1)
        nearest = torch.cdist(hidden.flatten(0, 2), self.codes.weight).argmin(1)
        code = self.codes(nearest).view_as(hidden)
        commitment = F.mse_loss(hidden, code.detach()) + F.mse_loss(code, hidden.detach())
        found = self.up((hidden + (code - hidden).detach()).movedim(-1, 1))
        return {"loss": F.mse_loss(found, pixel_values) + commitment, "pixel_values": found}


def features() -> Inputs:
    return {"features": torch.randn(16, HIDDEN), "labels": torch.randint(0, CLASSES, (16,))}


def graph() -> Inputs:
    return {
        "nodes": torch.randn(NODES, HIDDEN),
        "edges": torch.randint(0, NODES, (2, EDGES)),
        "labels": torch.randint(0, CLASSES, (NODES,)),
    }


def field() -> Inputs:
    return {
        "field": torch.randn(BATCH, 1, GRID, GRID),
        "target": torch.randn(BATCH, 1, GRID, GRID),
    }


assert IMAGE % 4 == 0  # the autoencoder halves twice
ROWS = [
    Architecture("mlp", "torch.nn", Mlp, features),
    Architecture("nn-transformer", "torch.nn", Seq2Seq, text),
    Architecture("nn-encoder", "torch.nn", Encoder, text),
    Architecture("resnet", "torch.nn", ResNet, images),
    Architecture("vq-autoencoder", "torch.nn", AutoEncoder, images),
    Architecture("graph-convolution", "graphs", GraphConvolution, graph),
    Architecture("graph-attention", "graphs", GraphAttention, graph),
    Architecture("interaction", "graphs", Interaction, graph),
    Architecture("fno", "Fourier", FourierOperator, field),
]
