"""Convolutions of which some output channels count: those are put together, and torch's own
convolution does the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

aten = torch.ops.aten
Rows = Sequence[tuple[int, int]]  # begin and end of runs of output channels


def weight_gradient(
    gradient: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    rows: Rows | None,
) -> torch.Tensor:
    """The gradient of a convolution's weight, 0 outside ``rows`` (None for all of them).

    Args:
        gradient: (N, n, ...), of the output.
        input: (N, c, ...).
        weight: (n, c, ...); its values are not looked at.
    """
    geometry = (stride, padding, dilation)
    if rows is None:
        return _gradients(gradient, input, weight, geometry, wants_weight=True)
    some = _gradients(
        _channels(gradient, rows, 1), input, _channels(weight, rows, 0), geometry, wants_weight=True
    )
    return _spread(some, rows, weight.shape[0], 0)


def input_gradient(
    gradient: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    rows: Rows | None,
) -> torch.Tensor:
    """The gradient of a convolution's input, as if its weight were 0 outside ``rows``."""
    if rows is not None:
        gradient, weight = _channels(gradient, rows, 1), _channels(weight, rows, 0)
    return _gradients(gradient, input, weight, (stride, padding, dilation), wants_weight=False)


def forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    rows: Rows | None,
) -> torch.Tensor:
    """A convolution, as if its weight were 0 outside ``rows``: there is the bias alone."""
    if rows is None:
        return _convolution(input, weight, bias, stride, padding, dilation)
    some = _convolution(input, _channels(weight, rows, 0), None, stride, padding, dilation)
    out = _spread(some, rows, weight.shape[0], 1)
    if bias is not None:
        out += bias.view(-1, *[1] * (out.dim() - 2))
    return out


def _convolution(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *geometry: Any
) -> torch.Tensor:
    found: torch.Tensor = aten.convolution.default(
        input, weight, bias, *geometry, False, [0] * len(geometry[0]), 1
    )
    return found


def _gradients(
    gradient: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    geometry: tuple[Sequence[int], ...],
    wants_weight: bool,
) -> torch.Tensor:
    wanted = [not wants_weight, wants_weight, False]
    results = aten.convolution_backward.default(
        gradient, input, weight, None, *geometry, False, [0] * len(geometry[0]), 1, wanted
    )
    found: torch.Tensor = results[int(wants_weight)]
    return found


def _channels(tensor: torch.Tensor, rows: Rows, dim: int) -> torch.Tensor:
    """Some channels, in memory of their own where there are several runs of them."""
    parts = [tensor.narrow(dim, begin, end - begin) for begin, end in rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _spread(some: torch.Tensor, rows: Rows, count: int, dim: int) -> torch.Tensor:
    """Zeros of ``count`` channels with these in their places, in the same order of memory."""
    shape = list(some.shape)
    shape[dim] = count
    is_last = some.dim() == 4 and not some.is_contiguous() and some.is_contiguous(
        memory_format=torch.channels_last
    )  # fmt: skip
    order = torch.channels_last if is_last else torch.contiguous_format
    out = torch.empty(shape, dtype=some.dtype, device=some.device, memory_format=order).zero_()
    first = 0
    for begin, end in rows:
        out.narrow(dim, begin, end - begin).copy_(some.narrow(dim, first, end - begin))
        first += end - begin
    return out
