"""Architectures x budgets x variants of training: is it right, does it hold, is it not slow?

Each row trains one tiny model of random weights for a few steps, uncompiled, with torch.compile's
default and with ours, and asks:

1. are loss, gradients and buffers those of eager, at the first step and at the third? In float64
   where the model runs so. The tolerance is of the least precise type that a forward computes
   in, and never below a small multiple of torch.compile's own distance from eager;
2. is the measured peak within the budget, and within 1% of the predicted one?
3. how many graphs, compile seconds and seconds of a step does it take, beside torch.compile's?

    python -m benchmarks.coverage [--minutes 30] [--only PATTERN ...] [--list]

An architecture's rows of one variant share a process with a time limit: a crash or a hang costs
one row. Results are kept row by row in ``results/coverage.json``, and a later run spends its
minutes on rows that never ran, then on those that ran longest ago.

Seconds are of the processor, which a busy machine changes little. Those of compiling are without
the C++ compiler's, whose results a cache keeps. Kernels are not vectorised, on either side: they
compile in half the time, and nothing that is asked here depends on it.

Needs transformers and peft; diffusers and timm where they are installed
(``pip install -e ".[bench]"``). Nothing is downloaded.
"""
