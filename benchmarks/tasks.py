"""Small tasks on real data that a CPU trains in seconds, with what was learnt held against data that
was kept back: a GPT-2 on the bytes of CPython's own library, a residual network on scanned digits."""

from __future__ import annotations

import itertools
import math
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.workloads import gpt2

Batch = tuple[torch.Tensor, ...]
Predictions = tuple[torch.Tensor, torch.Tensor]  # the loss, and the class of each example if any

BYTES = 256
_KEPT_BACK = 8  # one file in so many


class Task(Protocol):
    """A model, its batches, and what it is judged by.

    Attributes:
        name: of model and data.
        width: of the model as it is; others may be asked for.
        block: rows and columns of a tile that suit it.
    """

    name: str
    width: int
    block: int

    def model(self, seed: int, width: int) -> nn.Module:
        """With random weights; called with a batch it returns a loss and predicted classes."""

    def batches(self, seed: int, count: int) -> Iterator[Batch]:
        """To train with, the same for a seed."""

    def kept_back(self, seed: int) -> Sequence[Batch]:
        """To judge with, of equal size each."""

    def widths(self) -> Sequence[int]:
        """That are possible, from ``width`` down."""


# -- bytes of Python ---------------------------------------------------------------------------


class ByteModel(nn.Module):
    """A GPT-2 over bytes, tied as GPT-2 is, without dropout. GPT-2's 0.02 is 0.8 by the root of the
    largest one's width; narrow ones learn much later from that."""

    def __init__(self, layers: int, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.gpt = gpt2(
            layers,
            width,
            BYTES,
            length,
            width // heads,
            dropout=0.0,
            initial=0.8 / math.sqrt(width),
        )

    def forward(self, tokens: torch.Tensor) -> Predictions:
        return self.gpt(input_ids=tokens, labels=tokens).loss, tokens


@dataclass(frozen=True)
class Bytes:
    """The next byte of Python source.

    Attributes:
        layers, width, heads: of the model; heads are of 32 where the width is as it is.
        length, batch: of the text in a step.
        judged: batches of text that was kept back.
    """

    layers: int
    width: int
    block: int = 16
    length: int = 64
    batch: int = 8
    judged: int = 48

    @property
    def name(self) -> str:
        return f"GPT-2, {self.layers} layers, {self.width} wide"

    @property
    def heads(self) -> int:
        return self.width // 32

    def model(self, seed: int, width: int) -> nn.Module:
        torch.manual_seed(seed)
        return ByteModel(self.layers, width, self.heads, self.length)

    def batches(self, seed: int, count: int) -> Iterator[Batch]:
        text, generator = library_bytes()[0], torch.Generator().manual_seed(seed)
        for _ in range(count):
            starts = torch.randint(len(text) - self.length, (self.batch,), generator=generator)
            yield (_windows(text, starts, self.length),)

    def kept_back(self, seed: int) -> Sequence[Batch]:
        """The same for all seeds, evenly spread over the files that were kept back."""
        text = library_bytes()[1]
        starts = torch.linspace(0, len(text) - self.length - 1, self.judged * self.batch).long()
        return [(_windows(text, part, self.length),) for part in starts.split(self.batch)]

    def widths(self) -> Sequence[int]:
        return range(self.width, 0, -self.heads)


def _windows(text: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    return text[starts[:, None] + torch.arange(length)].long()


@cache
def library_bytes() -> tuple[torch.Tensor, torch.Tensor]:
    """To train with, and kept back: whole files each."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(file for file in folder.glob("*.py") if not file.name.startswith("_"))
    kept = files[_KEPT_BACK // 2 :: _KEPT_BACK]
    return _joined([file for file in files if file not in kept]), _joined(kept)


def _joined(files: Sequence[Path]) -> torch.Tensor:
    read = bytearray(b"\n".join(file.read_bytes() for file in files))
    return torch.frombuffer(read, dtype=torch.uint8)


# -- digits ------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        stride = 1 if before == width else 2
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(self.norms[0](self.first(x)))
        inner = self.norms[1](self.second(inner))
        return functional.relu(inner + (x if self.shortcut is None else self.shortcut(x)))


class DigitModel(nn.Module):
    """A residual network for images of 8 x 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, width, 2 * width, 4 * width)
        self.stem = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> Predictions:
        x = functional.relu(self.norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        logits = self.head(x.mean((2, 3)))
        return functional.cross_entropy(logits, labels), logits.detach().argmax(1)


@dataclass(frozen=True)
class Digits:
    """Scanned digits (scikit-learn's, 1797 of them); the half that is kept back differs by seed."""

    width: int = 16
    block: int = 8
    batch: int = 64

    @property
    def name(self) -> str:
        return f"ResNet, {self.width} to {4 * self.width} wide"

    def model(self, seed: int, width: int) -> nn.Module:
        torch.manual_seed(seed)
        return DigitModel(width)

    def batches(self, seed: int, count: int) -> Iterator[Batch]:
        images, labels = digits()
        train = _order(seed)[: len(labels) // 2]
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            chosen = train[torch.randperm(len(train), generator=generator)[: self.batch]]
            yield images[chosen], labels[chosen]

    def kept_back(self, seed: int) -> Sequence[Batch]:
        images, labels = digits()
        kept = _order(seed)[len(labels) // 2 :]
        kept = kept[: len(kept) // self.batch * self.batch]
        return [(images[part], labels[part]) for part in kept.split(self.batch)]

    def widths(self) -> Sequence[int]:
        return range(self.width, 0, -1)


def _order(seed: int) -> torch.Tensor:
    return torch.randperm(len(digits()[1]), generator=torch.Generator().manual_seed(1000 + seed))


@cache
def digits() -> Batch:
    """Images between -1 and 1, of one channel, and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return pixels, torch.tensor(labels)


# -- what both share ---------------------------------------------------------------------------


def step_flops(model: nn.Module, batch: Batch) -> float:
    """FLOPs of the matrix products and convolutions in a forward and a backward as autograd does it."""
    with FlopCounterMode(display=False) as counter:
        model(*batch)[0].backward()
    for parameter in model.parameters():
        parameter.grad = None
    return float(counter.get_total_flops())
