"""Every architecture that is covered, by name."""

from itertools import zip_longest

from benchmarks.coverage.architecture import Architecture
from benchmarks.coverage.architectures import (
    audio,
    convolutions,
    decoders,
    diffusion,
    encoders,
    mixtures,
    multimodal,
    recurrent,
    sequences,
    small,
    vision,
)

_MODULES = (
    decoders, small, vision, recurrent, encoders, mixtures, sequences, audio, multimodal,
    convolutions, diffusion,
)  # fmt: skip

# In turns, so that a run of few minutes sees something of everything.
ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for turn in zip_longest(*(module.ROWS for module in _MODULES))
    for architecture in turn
    if architecture is not None
}
