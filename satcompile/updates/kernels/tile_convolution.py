"""Convolutions of which only some output channels count: the code puts these channels together, and
torch's own convolution computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from satcompile.updates.kernels import crossover

aten = torch.ops.aten
Rows = Sequence[tuple[int, int]]  # begin and end of runs of output channels


@dataclass(frozen=True)
class Convolution:
    """A convolution, neither grouped nor transposed, of which only some output channels count.

    Attributes:
        stride, padding, dilation: as in ``torch.nn.functional.conv2d``, one number per dimension.
        rows: the output channels that count.
        always_sparse: even where the dense one would be faster, to measure the memory.
    """

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    rows: Rows
    always_sparse: bool = False

    def weight_gradient(
        self, gradient: torch.Tensor, input: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """The gradient of the weight, 0 outside the rows.

        Args:
            gradient: (N, n, ...), of the output.
            input: (N, c, ...).
            weight: (n, c, ...); its values are not read.
        """

        def sparse() -> torch.Tensor:
            some = self._some(gradient, 1), input, self._some(weight, 0)
            found = _gradients(*some, self._geometry, wants_weight=True)
            return _spread(found, self.rows, weight.shape[0], 0)

        def dense() -> torch.Tensor:
            found = _gradients(gradient, input, weight, self._geometry, wants_weight=True)
            return self._cleared(found)

        return self._faster("weight", gradient, input, weight, sparse, dense)

    def input_gradient(
        self, gradient: torch.Tensor, input: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """The gradient of the input, as if the weight were 0 outside the rows."""

        def sparse() -> torch.Tensor:
            some = self._some(gradient, 1), input, self._some(weight, 0)
            return _gradients(*some, self._geometry, wants_weight=False)

        def dense() -> torch.Tensor:
            masked = self._cleared(weight.clone())
            return _gradients(gradient, input, masked, self._geometry, wants_weight=False)

        return self._faster("input", gradient, input, weight, sparse, dense)

    def forward(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The output, as if the weight were 0 outside the rows: only the bias is left there."""

        def sparse() -> torch.Tensor:
            some = convolve(input, self._some(weight, 0), None, *self._geometry)
            out = _spread(some, self.rows, weight.shape[0], 1)
            if bias is not None:
                out += bias.view(-1, *[1] * (out.dim() - 2))
            return out

        def dense() -> torch.Tensor:
            return convolve(input, self._cleared(weight.clone()), bias, *self._geometry)

        return self._faster("forward", input, weight, weight, sparse, dense)

    @property
    def _geometry(self) -> tuple[Sequence[int], ...]:
        return self.stride, self.padding, self.dilation

    def _some(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """The channels that count; a copy if they form several runs."""
        parts = [tensor.narrow(dim, begin, end - begin) for begin, end in self.rows]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def _cleared(self, weight: torch.Tensor) -> torch.Tensor:
        end = 0
        for begin, next_end in self.rows:
            weight[end:begin].zero_()
            end = next_end
        weight[end:].zero_()
        return weight

    def _faster(
        self,
        what: str,
        one: torch.Tensor,
        other: torch.Tensor,
        weight: torch.Tensor,
        sparse: Callable[[], torch.Tensor],
        dense: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        if self.always_sparse:
            return sparse()
        share = sum(end - begin for begin, end in self.rows) / weight.shape[0]
        kind = ("convolution", what, tuple(weight.shape), *map(tuple, self._geometry))
        return crossover.faster(kind, one, other, share, sparse, dense)


def weight_gradient(
    gradient: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    *geometry: Sequence[int],
) -> torch.Tensor:
    """The whole gradient of a weight."""
    return _gradients(gradient, input, weight, geometry, wants_weight=True)


def input_gradient(
    gradient: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    *geometry: Sequence[int],
) -> torch.Tensor:
    """The gradient of an input, with the whole weight."""
    return _gradients(gradient, input, weight, geometry, wants_weight=False)


def convolve(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *geometry: Any
) -> torch.Tensor:
    """A convolution with the whole weight."""
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


def _spread(some: torch.Tensor, rows: Rows, count: int, dim: int) -> torch.Tensor:
    """Zeros of ``count`` channels with ``some`` in their places, in the same memory format."""
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
