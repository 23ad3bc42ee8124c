"""What is measured on a GPU, in the order of its worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_GPT2 = ("--device", "cuda", "--layers", "24", "--hidden", "1024", "--dtype", "bfloat16")
_SMALL_GPT2 = ("--device", "cuda", "--layers", "2", "--hidden", "128", "--length", "64")


@dataclass(frozen=True)
class Section:
    """A command of its own process.

    Attributes:
        name: as the summary has it.
        arguments: of Python; ``small`` takes their place where nothing is really computed.
        limit_s: after so long it is ended, and the next one begins.
    """

    name: str
    arguments: Sequence[str]
    limit_s: int
    small: Sequence[str] | None = None

    def command(self, is_small: bool) -> list[str]:
        return list(self.small if is_small and self.small is not None else self.arguments)


def _memory(model: str, limit_s: int, small: str) -> Section:
    command = ("-m", "benchmarks.gpu.memory", "--model")
    return Section(
        f"memory, {model}", (*command, model), limit_s, (*command, small, "--rounds", "1")
    )


SECTIONS = (
    Section("rates", ("-m", "benchmarks.gpu.rates"), 60, ("-m", "benchmarks.gpu.rates", "--small")),
    _memory("gpt2-medium", 420, "gpt2"),
    _memory("resnet-50", 240, "resnet"),
    _memory("llama-1b", 420, "llama-8"),
    _memory("vit-l", 300, "mlp"),
    Section(
        "tests",
        (
            "-m", "pytest", "tests", "-n", "8", "-q", "-k", "cuda or gpu", "-p", "no:cacheprovider",
            "--ignore", "tests/report", "--ignore", "tests/solver",
        ),
        360,
        ("-m", "pytest", "tests/planner/test_devices.py", "-q"),
    ),
    Section(
        "update",
        ("-m", "benchmarks.update", *_GPT2, "--length", "1024", "--rounds", "10"),
        240,
        ("-m", "benchmarks.update", *_SMALL_GPT2, "--rounds", "1", "--batches", "1"),
    ),
    Section(
        "tile products", ("-m", "benchmarks.tile_mm", "--rounds", "5", "--densities", "0.1", "0.3", "0.5", "1"),
        120, ("-c", "print('CUDA graphs need a GPU')"),
    ),
    Section(
        "sparse step",
        ("-m", "benchmarks.sparse_step", *_GPT2, "--length", "1024", "--rounds", "10"),
        300,
        ("-m", "benchmarks.sparse_step", *_SMALL_GPT2, "--rounds", "1", "--forward-densities"),
    ),
    Section(
        "all at once",
        ("-m", "benchmarks.together", "--device", "cuda", "--layers", "16", "--hidden", "1024",
         "--intermediate", "4096", "--length", "1024", "--rounds", "10"),
        300,
        ("-m", "benchmarks.together", "--device", "cuda", "--layers", "2", "--hidden", "128",
         "--intermediate", "256", "--length", "64", "--steps", "2", "--rounds", "1"),
    ),
)  # fmt: skip
