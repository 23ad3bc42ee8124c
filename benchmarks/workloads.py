"""Models and text for benchmarks that run: real architectures, random weights, real data."""

from __future__ import annotations

import contextlib
import itertools
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers


def llama(layers: int, hidden: int, intermediate: int, vocabulary: int) -> torch.nn.Module:
    """A Llama with heads of 64."""
    config = transformers.LlamaConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=intermediate,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
        vocab_size=vocabulary, use_cache=False, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2(
    layers: int,
    hidden: int,
    vocabulary: int,
    positions: int,
    heads_of: int = 32,
    dropout: float = 0.1,
    initial: float = 0.02,
) -> torch.nn.Module:
    """A GPT-2, its weights drawn with a standard deviation of ``initial``."""
    config = transformers.GPT2Config(
        n_layer=layers, n_embd=hidden, n_head=hidden // heads_of, vocab_size=vocabulary,
        n_positions=positions, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        initializer_range=initial, use_cache=False, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # transformers guesses it from class names, with a warning
    return model


def text(batch: int, length: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """Bytes of CPython's own library sources, as a language model's input and labels."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    wanted = batch * length
    read = b""
    for file in sorted(folder.glob("*.py")):
        read += file.read_bytes()
        if len(read) >= wanted:
            break
    tokens = torch.tensor(list(itertools.islice(read, wanted))).reshape(batch, length) % vocabulary
    return {"input_ids": tokens, "labels": tokens}


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
