"""What the examples share: a small real model, real text, and a look at the memory.

A GPT-2 over bytes with random weights, and CPython's own library sources as text, so that nothing
is downloaded and every example takes less than a minute on one core.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers

import satcompile

LENGTH = 128  # bytes of text in a sequence
BATCH = 16  # sequences in a step
_TEXT_BYTES = 500_000


def gpt2(**changes: int) -> transformers.GPT2LMHeadModel:
    """A GPT-2 of two layers, the same at every call."""
    config = transformers.GPT2Config(
        vocab_size=256,
        n_positions=LENGTH,
        n_embd=64,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,  # without dropout, so that two runs can be compared
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        **changes,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    # transformers looks the loss up by the name of the class and warns if it is not there. The
    # warning would break the graph in two; naming the loss keeps it whole.
    model.loss_type = "ForCausalLM"
    return model.train()


def text() -> torch.Tensor:
    """Library sources of the Python that runs this, as bytes: shape (n,), dtype int64."""
    collected = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        collected += path.read_bytes()
        if len(collected) >= _TEXT_BYTES:
            break
    return torch.frombuffer(collected, dtype=torch.uint8).long()


def windows(first: int, count: int) -> torch.Tensor:
    """Pieces of the text: shape (count, LENGTH), in memory of their own."""
    return text()[first * LENGTH : (first + count) * LENGTH].view(count, LENGTH).clone()


def batches(steps: int, batch: int = BATCH) -> Iterator[torch.Tensor]:
    """A batch for every step: shape (batch, LENGTH)."""
    for step in range(steps):
        yield windows(step * batch, batch)


def say_what_it_took(compiled: object) -> None:
    """Print budget, measured peak and prediction of the graphs of ``compiled``.

    ``satcompile.measure_peak(step)`` must have run before; without it there is nothing measured.
    """
    for graph in satcompile.report(compiled).graphs:
        assert graph.budget_bytes is not None and graph.measured_peak_bytes is not None
        print(
            f"{graph.name}: measured peak {graph.measured_peak_bytes:,} bytes, "
            f"budget {graph.budget_bytes:,}, predicted {graph.predicted_peak_bytes:,}, "
            f"torch.compile's own plan {graph.default_peak_bytes:,}"
        )
