"""Training on the stub against training on the CPU: kernels are interpreted, operators have twins.

STUB_NUMBERS=1 python -m tests.stub_gpu.numbers CASE [CASE ...]
"""

from __future__ import annotations

import copy
import json
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from tests.stub_gpu import interpreter  # before triton is imported

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import satcompile  # noqa: E402
from satcompile.runtime import registry  # noqa: E402
from tests.stub_gpu import twins  # noqa: E402
from tests.stub_gpu.zoo import Convolutions, Inputs, Llama, Mlp  # noqa: E402

STEPS = 2


@dataclass(frozen=True)
class Case:
    """A training job.

    Attributes:
        build: makes model and inputs, on the CPU.
        options: of the backend.
        fuse: for ``fuse_optimizer``; None for the optimizer as it is.
        autocast: whether the forward runs in bfloat16 under autocast.
        reference: what it is compared with on the CPU: ``"eager"``; ``"compiled"``, by this backend
            with the same options, where eager has nothing like it; ``"default"``, torch's own plan
            on the stub from the same seed, where the numbers drawn are the device's.
    """

    build: Callable[[], tuple[nn.Module, Inputs]]
    options: dict[str, Any] = field(default_factory=dict)
    fuse: dict[str, Any] | None = None
    autocast: bool = False
    reference: str = "eager"


def _llama() -> tuple[nn.Module, Inputs]:
    return Llama(layers=1), {"tokens": torch.randint(0, 512, (4, 64))}


class LargeVocabulary(nn.Module):
    def __init__(self, words: int = 2048, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(words, width), nn.Linear(width, words)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.head(F.gelu(self.embedding(tokens)))
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def _large_vocabulary() -> tuple[nn.Module, Inputs]:
    return LargeVocabulary(), {"tokens": torch.randint(0, 2048, (4, 64))}


def _budget(share: int) -> dict[str, Any]:
    return {"memory_budget": f"{share}% of default"}


CASES: dict[str, Case] = {
    "budget": Case(_llama, _budget(92)),
    "autocast": Case(_llama, _budget(94), autocast=True),
    "convolutions": Case(lambda: (Convolutions(), {"x": torch.randn(4, 3, 32, 32)}), _budget(92)),
    "dropout": Case(
        lambda: (Mlp(64, dropout=0.2), {"x": torch.randn(512, 64)}),
        _budget(85),
        reference="default",
    ),
    "updates by step": Case(_llama, fuse={}),
    "updates in the backward": Case(_llama, _budget(92), fuse={"in_backward": True}),
    "chunked": Case(_large_vocabulary, _budget(80)),
    "sparse": Case(
        _llama,
        {"sparsity": {"density": 0.5, "block": 32, "interval": 1}},
        fuse={},
        reference="compiled",
    ),
}


@dataclass
class Trained:
    """Parameters after some steps, and the first step's gradients where they are to be seen."""

    losses: list[float]
    gradients: list[torch.Tensor]
    parameters: list[torch.Tensor]
    run: Any


def trained(
    case: Case, model: nn.Module, inputs: Inputs, device: str, options: dict[str, Any] | None
) -> Trained:
    """Options of None train in eager mode."""
    torch.manual_seed(1)
    model = copy.deepcopy(model).to(device)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    # So large an epsilon that no update depends on the sign of a gradient that is nothing but noise.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-2)
    run: Any = model
    if options is not None:
        if case.fuse is not None:
            satcompile.fuse_optimizer(optimizer, **case.fuse)
        run = torch.compile(model, backend="sat", options=options)
    losses, gradients = [], []
    for _ in range(STEPS):
        with torch.autocast(device, torch.bfloat16) if case.autocast else nullcontext():
            loss = run(**inputs)
        loss.backward()
        losses.append(float(loss.detach().cpu()))
        gradients = gradients or [_seen(p.grad) for p in model.parameters() if p.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
    return Trained(losses, gradients, [_seen(p) for p in model.parameters()], run)


def _seen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().double()


def distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest difference, in units of the largest value; infinite where something is missing."""
    if len(ours) != len(theirs):
        return float("inf")
    largest = max((float(each.abs().max()) for each in theirs), default=1.0)
    pairs = zip(ours, theirs, strict=True)
    return max((float((a - b).abs().max()) / largest for a, b in pairs), default=0.0)


def compared(name: str) -> dict[str, Any]:
    case = CASES[name]
    torch.manual_seed(0)
    model, inputs = case.build()
    if case.reference == "default":
        expected = trained(case, model, inputs, "cuda", {})
    else:
        options = case.options if case.reference == "compiled" else None
        expected = trained(case, model, inputs, "cpu", options)
    torch.compiler.reset()
    registry.forget_all()
    ours = trained(case, model, inputs, "cuda", case.options)
    start = [_seen(parameter) for parameter in model.parameters()]
    moved = [
        [a - b for a, b in zip(each.parameters, start, strict=True)] for each in (ours, expected)
    ]
    (graph,) = satcompile.report(ours.run).graphs
    return {
        "case": name,
        "losses": ours.losses,
        "expected_losses": expected.losses,
        "gradients": distance(ours.gradients, expected.gradients) if ours.gradients else None,
        "updates": distance(*moved),
        "recomputed": len(graph.recomputed),
        "saved_bytes": graph.saved_bytes,
        "tiled": len(graph.sparsity.parameters) if graph.sparsity else 0,
        "passes": {row.name: row.changed for row in graph.passes},
    }


def main() -> None:
    interpreter.install()
    twins.install()
    torch.backends.cudnn.enabled = False  # the stub has none
    torch.backends.cuda.enable_cudnn_sdp(False)
    for name in sys.argv[1:]:
        torch.compiler.reset()
        registry.forget_all()
        print(json.dumps(compared(name)), flush=True)
    os._exit(0)  # what torch does at exit asks the device for more


if __name__ == "__main__":
    main()
