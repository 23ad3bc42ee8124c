"""The operators in compiled graphs where a weight is trained sparsely.

Each computes what an operator of torch's computes (``dense_form``), restricted to the tiles that
are in its slot's mask when it runs. A *slot* is the position of the parameter among the graph's
inputs. The call, and not the graph, knows which parameter that is and which tiles are active. So
one graph serves several instances and is not compiled again when masks change.

Outside a graph of ours, where their memory is measured, the operators do what takes most memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from satcompile.torch_compat.operators import schema_of
from satcompile.updates.kernels import tile_convolution, tile_products
from satcompile.updates.kernels.tile_convolution import Convolution
from satcompile.updates.sparsity import masks
from satcompile.updates.sparsity.grid import Grid
from satcompile.updates.sparsity.pattern import Pattern
from satcompile.updates.sparsity.scores import tile_scores

aten = torch.ops.aten
_Geometry = tuple[Sequence[int], Sequence[int], Sequence[int]]  # stride, padding, dilation

_library = torch.library.Library("satcompile", "FRAGMENT")
_CONVOLUTION = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
for _schema in (
    "tile_mm(Tensor a, Tensor b, int slot, int block, bool transposed) -> Tensor",
    "masked_mm(Tensor a, Tensor b, int slot, bool transposed) -> Tensor",
    "masked_addmm(Tensor bias, Tensor a, Tensor b, int slot, bool transposed) -> Tensor",
    "tile_convolution_weight(Tensor gradient, Tensor input, Tensor weight, "
    f"{_CONVOLUTION}, int slot, int block) -> Tensor",
    f"masked_convolution(Tensor input, Tensor weight, Tensor? bias, {_CONVOLUTION}, int slot) "
    "-> Tensor",
    "masked_convolution_input(Tensor gradient, Tensor input, Tensor weight, "
    f"{_CONVOLUTION}, int slot) -> Tensor",
):
    # A replayed CUDA graph would not look masks up again: Inductor leaves these out of its graphs.
    _library.define(_schema, tags=(torch.Tag.cudagraph_unsafe,))

_ops = torch.ops.satcompile
TILE_MM = _ops.tile_mm.default
MASKED_MM, MASKED_ADDMM = _ops.masked_mm.default, _ops.masked_addmm.default
TILE_CONVOLUTION_WEIGHT = _ops.tile_convolution_weight.default
MASKED_CONVOLUTION = _ops.masked_convolution.default
MASKED_CONVOLUTION_INPUT = _ops.masked_convolution_input.default

TILED = (TILE_MM, TILE_CONVOLUTION_WEIGHT)
MASKED = (MASKED_MM, MASKED_ADDMM, MASKED_CONVOLUTION, MASKED_CONVOLUTION_INPUT)
# By operator: torch's operator, and how many of the arguments it takes.
_MATRIX_FORMS = {
    TILE_MM: (aten.mm.default, 2),
    MASKED_MM: (aten.mm.default, 2),
    MASKED_ADDMM: (aten.addmm.default, 3),
}


def slot_of(node: fx.Node) -> int:
    """The slot of a node with one of these operators."""
    names = [argument.name for argument in schema_of(node.target).arguments]
    return int(node.args[names.index("slot")])  # type: ignore[arg-type]


def dense_form(node: fx.Node) -> tuple[Any, tuple[Any, ...], int | None] | None:
    """A node's form if every tile were active: an operator of torch's, its arguments, and which of
    its results; None for a node without one of these operators."""
    if node.target in _MATRIX_FORMS:
        dense, count = _MATRIX_FORMS[node.target]
        return dense, tuple(node.args[:count]), None
    if node.target is MASKED_CONVOLUTION:
        return aten.convolution.default, (*node.args[:6], *_ungrouped(node.args[3])), None
    if node.target in (TILE_CONVOLUTION_WEIGHT, MASKED_CONVOLUTION_INPUT):
        arguments = (*node.args[:3], *node.args[3:6], *_ungrouped(node.args[3]))
        return (
            aten.convolution_backward.default,
            arguments,
            int(node.target is TILE_CONVOLUTION_WEIGHT),
        )
    return None


def _ungrouped(stride: Any) -> tuple[Any, ...]:
    """Further arguments of a convolution that is neither transposed nor grouped."""
    return False, [0] * len(stride), 1


# -- weight gradients --------------------------------------------------------------------------


@torch.library.impl(_library, "tile_mm", "CompositeExplicitAutograd")
def _tile_mm(
    a: torch.Tensor, b: torch.Tensor, slot: int, block: int, transposed: bool
) -> torch.Tensor:
    if not masks.is_running():
        gradient = torch.mm(a, b)
        _score_anything(gradient, block)
        return gradient
    bound = masks.bound(slot)
    if bound is None:
        return torch.mm(a, b)
    mask = bound.mask
    if not mask.is_scoring:
        return tile_products.tile_mm(a, b, mask.trained, transposed)
    gradient = torch.mm(a, b)
    upright = gradient.T if transposed else gradient
    mask.collect(bound.parameter, upright)
    clear_frozen(upright, mask.trained)
    return gradient


@torch.library.impl(_library, "tile_convolution_weight", "CompositeExplicitAutograd")
def _tile_convolution_weight(
    gradient: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    slot: int,
    block: int,
) -> torch.Tensor:
    geometry = (stride, padding, dilation)
    bound = masks.bound(slot) if masks.is_running() else None
    if bound is not None and not bound.mask.is_scoring and not bound.mask.trained.is_full:
        some = Convolution(*geometry, bound.mask.trained.whole_rows())
        return some.weight_gradient(gradient, input, weight)
    found = tile_convolution.weight_gradient(gradient, input, weight, *geometry)
    if bound is not None and bound.mask.is_scoring:
        bound.mask.collect(bound.parameter, found)
        clear_frozen(found, bound.mask.trained)
    elif not masks.is_running():
        _score_anything(found, block)
        del found
        return _almost_all(weight, geometry).weight_gradient(gradient, input, weight)
    return found


def _almost_all(weight: torch.Tensor, geometry: _Geometry) -> Convolution:
    """The case that takes most memory: all channels but one in the middle are copied."""
    middle = weight.shape[0] // 2
    rows = [(0, middle), (middle + 1, weight.shape[0])] if middle else [(0, weight.shape[0])]
    rows = [(begin, end) for begin, end in rows if begin < end]
    return Convolution(*geometry, rows, always_sparse=True)


def clear_frozen(gradient: torch.Tensor, trained: Pattern) -> None:
    """Set frozen tiles to zero. ``gradient`` has the weight's shape; rows need not be dense."""
    if trained.is_full:
        return
    if gradient.dim() == 2:
        for top, bottom, left, right in trained.frozen_rectangles:
            gradient[top:bottom, left:right].zero_()
    else:
        for top, bottom, _, _ in trained.frozen_rectangles:
            gradient[top:bottom].zero_()


def _score_anything(gradient: torch.Tensor, block: int) -> None:
    """Take the memory that scoring takes."""
    tile_scores("movement", Grid.of(gradient.shape, block), gradient, gradient)


# -- a sparse forward, and the gradient of its input -------------------------------------------


def _used(slot: int) -> Pattern | None:
    """The tiles that the forward uses; None for all."""
    bound = masks.bound(slot) if masks.is_running() else None
    if bound is None or bound.mask.forward is None or bound.mask.forward.is_full:
        return None
    return bound.mask.forward


def _with_copies(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors; copies of them, as sparse products make, where only memory is measured."""
    if masks.is_running():
        return a, b
    return a if a.dtype == torch.float32 else a.clone(), b.clone()


@torch.library.impl(_library, "masked_mm", "CompositeExplicitAutograd")
def _masked_mm(a: torch.Tensor, b: torch.Tensor, slot: int, transposed: bool) -> torch.Tensor:
    used = _used(slot)
    if used is None:
        return torch.mm(*_with_copies(a, b))
    return tile_products.masked_mm(a, b, used, transposed)


@torch.library.impl(_library, "masked_addmm", "CompositeExplicitAutograd")
def _masked_addmm(
    bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, slot: int, transposed: bool
) -> torch.Tensor:
    used = _used(slot)
    if used is None:
        return torch.addmm(bias, *_with_copies(a, b))
    return tile_products.masked_mm(a, b, used, transposed, bias)


@torch.library.impl(_library, "masked_convolution", "CompositeExplicitAutograd")
def _masked_convolution(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    slot: int,
) -> torch.Tensor:
    geometry, used = (stride, padding, dilation), _used(slot)
    if not masks.is_running():
        return _almost_all(weight, geometry).forward(input, weight, bias)
    if used is None:
        return tile_convolution.convolve(input, weight, bias, *geometry)
    return Convolution(*geometry, used.whole_rows()).forward(input, weight, bias)


@torch.library.impl(_library, "masked_convolution_input", "CompositeExplicitAutograd")
def _masked_convolution_input(
    gradient: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    slot: int,
) -> torch.Tensor:
    geometry, used = (stride, padding, dilation), _used(slot)
    if not masks.is_running():
        return _almost_all(weight, geometry).input_gradient(gradient, input, weight)
    if used is None:
        return tile_convolution.input_gradient(gradient, input, weight, *geometry)
    some = Convolution(*geometry, used.whole_rows())
    return some.input_gradient(gradient, input, weight)


# -- shapes ------------------------------------------------------------------------------------


@torch.library.register_fake("satcompile::tile_mm", lib=_library)
def _tile_mm_fake(a: Any, b: Any, slot: int, block: int, transposed: bool) -> Any:
    return torch.mm(a, b)


@torch.library.register_fake("satcompile::masked_mm", lib=_library)
def _masked_mm_fake(a: Any, b: Any, slot: int, transposed: bool) -> Any:
    return torch.mm(a, b)


@torch.library.register_fake("satcompile::masked_addmm", lib=_library)
def _masked_addmm_fake(bias: Any, a: Any, b: Any, slot: int, transposed: bool) -> Any:
    return torch.addmm(bias, a, b)


@torch.library.register_fake("satcompile::tile_convolution_weight", lib=_library)
def _weight_fake(
    gradient: Any, input: Any, weight: Any, stride: Any, padding: Any, dilation: Any,
    slot: int, block: int,
) -> Any:  # fmt: skip
    return _convolution_gradients(
        gradient, input, weight, stride, padding, dilation, [False, True, False]
    )[1]


@torch.library.register_fake("satcompile::masked_convolution", lib=_library)
def _convolution_fake(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, slot: int
) -> Any:
    return aten.convolution.default(
        input, weight, bias, stride, padding, dilation, False, [0] * len(stride), 1
    )


@torch.library.register_fake("satcompile::masked_convolution_input", lib=_library)
def _input_fake(
    gradient: Any, input: Any, weight: Any, stride: Any, padding: Any, dilation: Any, slot: int
) -> Any:
    return _convolution_gradients(
        gradient, input, weight, stride, padding, dilation, [True, False, False]
    )[0]


def _convolution_gradients(
    gradient: Any, input: Any, weight: Any, stride: Any, padding: Any, dilation: Any, mask: Any
) -> Any:
    return aten.convolution_backward.default(
        gradient, input, weight, None, stride, padding, dilation, False, [0] * len(stride), 1, mask
    )
