"""Matrix products that leave out frozen tiles of the result, or of the second factor.

Both accumulate in float32 and round once. On a GPU, the first call of a kind is timed to choose how
the work is cut. However it is cut, sums are added in the order of the inner dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace

import torch

from satcompile.updates.kernels.checks import check_numbers, check_tiles
from satcompile.updates.kernels.launch import is_aligned, launching_on
from satcompile.updates.optimizers.rules import Tiles

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_GROUP_ROWS = 8  # rows of parts that are computed together, for the cache
_MAX_STRIDE = 2**23  # offsets within 256 rows are 32 bits long
_SMALLEST = 16  # fewest rows, columns or depth that tensor cores multiply
_VECTOR = 8  # elements of half precision in 16 bytes
_TIMED_RUNS = 5


@dataclass(frozen=True)
class Parts:
    """How the work is cut.

    Attributes:
        rows, columns: part of the result that one program computes; powers of two from 16.
        depth: part of the inner dimension that is read at once; a power of two from 16.
        num_warps: of a program.
        num_stages: loads in flight at once.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


# Built ahead of time for sm_80 and sm_90, none spills. Without a GPU nothing can be timed, and the
# first is taken.
HALF_PRECISION = (
    Parts(rows=128, columns=128, depth=64, num_warps=8, num_stages=3),
    Parts(rows=128, columns=128, depth=64, num_warps=8, num_stages=4),
    Parts(rows=128, columns=128, depth=32, num_warps=8, num_stages=5),
    Parts(rows=256, columns=128, depth=64, num_warps=8, num_stages=3),
    Parts(rows=128, columns=64, depth=64, num_warps=4, num_stages=4),
    Parts(rows=64, columns=128, depth=64, num_warps=4, num_stages=4),
    Parts(rows=64, columns=64, depth=64, num_warps=4, num_stages=4),
)
TF32 = (
    Parts(rows=128, columns=128, depth=32, num_warps=8, num_stages=3),
    Parts(rows=128, columns=128, depth=32, num_warps=8, num_stages=4),
    Parts(rows=128, columns=128, depth=16, num_warps=8, num_stages=5),
    Parts(rows=128, columns=64, depth=32, num_warps=4, num_stages=4),
    Parts(rows=64, columns=128, depth=32, num_warps=4, num_stages=4),
    Parts(rows=64, columns=64, depth=32, num_warps=8, num_stages=4),
)
# Full float32: without tensor cores, factors need registers.
EXACT = (
    Parts(rows=128, columns=128, depth=16, num_warps=8, num_stages=3),
    Parts(rows=128, columns=128, depth=16, num_warps=8, num_stages=5),
    Parts(rows=64, columns=64, depth=32, num_warps=8, num_stages=4),
)
# Where nothing is read 16 bytes at once, addresses need registers.
UNALIGNED_HALF = (
    Parts(rows=128, columns=128, depth=32, num_warps=8, num_stages=3),
    Parts(rows=64, columns=64, depth=32, num_warps=4, num_stages=3),
)
UNALIGNED_SINGLE = (
    Parts(rows=128, columns=64, depth=16, num_warps=8, num_stages=3),
    Parts(rows=64, columns=64, depth=16, num_warps=4, num_stages=3),
)

_fastest: dict[Hashable, Parts] = {}


def tile_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    tiles: Tiles,
    transposed: bool,
    out: torch.Tensor,
    *,
    tf32: bool = False,
    parts: Parts | None = None,
) -> None:
    """``out = a @ b`` at the tiles of the list; everything else of ``out`` becomes zero.

    The work is proportional to the list. ``out.zero_()`` writes the zeros first: the list names
    active tiles only, in any order, and a fill runs at the speed of memory. (It writes two bytes
    per element in half precision, beside 2 T operations for an active element.)

    Args:
        a: (M, T), of any strides: float32, bfloat16 or float16.
        b: (T, N), of any strides and the same dtype.
        tiles: of any height and width; no tile may be in the list twice.
        transposed: the tiles cut ``out.T``, not ``out``.
        out: (M, N), float32, bfloat16 or float16; its rows or its columns are contiguous, with or
            without gaps between them.
        tf32: float32 inputs are rounded to TF32 for the tensor cores.
        parts: by default the fastest of those known to suit dtype and alignment.

    Raises:
        ValueError: tensors do not fit each other. Nothing is changed then.
    """
    _check_product(a, b, out)
    if transposed:
        a, b, out = b.t(), a.t(), out.t()
    check_tiles(tiles, out)
    out.zero_()
    if not (out.numel() and tiles.numbers.numel()):
        return
    tile = min(tiles.height, out.shape[0]), min(tiles.width, out.shape[1])

    def launch(parts: Parts) -> None:
        _launch_tile_mm(a, b, tiles.numbers, tile, out, parts, tf32)

    def fitted(parts: Parts) -> Parts:
        rows, columns = _within(parts.rows, tile[0]), _within(parts.columns, tile[1])
        return replace(parts, rows=rows, columns=columns)

    kind = ("tile_mm", tiles.numbers.numel().bit_length())
    candidates = (parts,) if parts else _candidates((a, b, out), tile, tf32)
    with launching_on(out.device):
        launch(_chosen((kind, tile, tf32), (a, b, out), map(fitted, candidates), launch))


def masked_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    starts: torch.Tensor,
    blocks: torch.Tensor,
    depth: int,
    width: int,
    out: torch.Tensor,
    *,
    tf32: bool = False,
    parts: Parts | None = None,
) -> None:
    """``out = a @ b``, where only the listed tiles of ``b`` count and the others are taken as zero.

    ``b`` is cut into tiles of ``depth`` x ``width``; those at the lower and right edges are
    smaller. In its j-th block of columns, the blocks of rows ``blocks[starts[j]:starts[j + 1]]``
    count; where there is none, ``out`` is zero. Tiles that are not listed are not read.

    Args:
        a: (M, K), of any strides: float32, bfloat16 or float16.
        b: (K, N), of any strides and the same dtype.
        starts: int32, one more than there are blocks of columns; never decreases.
        blocks: int32, at least ``starts[-1]`` of them, each at least 0 and below the number of
            blocks of rows. (Both stay on the GPU: their values are not checked.)
        depth, width: rows and columns of a tile, multiples of 16.
        out: (M, N), contiguous, float32, bfloat16 or float16; all of it is written.
        tf32: float32 inputs are rounded to TF32 for the tensor cores.
        parts: by default the fastest of those known to suit dtype and alignment.

    Raises:
        ValueError: tensors do not fit each other. Nothing is changed then.
    """
    _check_product(a, b, out)
    _check_blocks(b, starts, blocks, depth, width)
    if not out.is_contiguous():
        raise ValueError(f"a contiguous result is needed; its strides are {out.stride()}")
    if not out.numel():
        return
    tile = depth, min(width, out.shape[1])

    def launch(parts: Parts) -> None:
        _launch_masked_mm(a, b, starts, blocks, tile, out, parts, tf32)

    def fitted(parts: Parts) -> Parts:
        rows, columns = _within(parts.rows, out.shape[0]), _within(parts.columns, tile[1])
        whole = min(parts.depth, depth & -depth)  # the largest power of two that divides it
        return replace(parts, rows=rows, columns=columns, depth=whole)

    kind = ("masked_mm", blocks.numel().bit_length())
    candidates = (parts,) if parts else _candidates((a, b, out), tile, tf32)
    with launching_on(out.device):
        launch(_chosen((kind, tile, tf32), (a, b, out), map(fitted, candidates), launch))
    torch.autograd.graph.increment_version(out)


def _check_product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    are_matrices = all(tensor.dim() == 2 for tensor in (a, b, out))
    if not are_matrices or a.shape[1] != b.shape[0] or out.shape != (a.shape[0], b.shape[1]):
        raise ValueError(
            f"a product (M, K) @ (K, N) = (M, N) is needed, not "
            f"{tuple(a.shape)} @ {tuple(b.shape)} = {tuple(out.shape)}"
        )
    if a.dtype != b.dtype or not {a.dtype, out.dtype}.issubset(_DTYPES):
        raise ValueError(
            f"factors of one dtype among {_DTYPES} and a result of one of these are needed, not "
            f"{a.dtype}, {b.dtype} and {out.dtype}"
        )
    if not a.device == b.device == out.device:
        raise ValueError(
            f"factors and result must be on one device, not on {a.device}, {b.device} and "
            f"{out.device}"
        )
    longest = max(*a.stride(), *b.stride(), *out.stride())
    if longest > _MAX_STRIDE:
        raise ValueError(f"strides of at most {_MAX_STRIDE} are supported, not {longest}")
    if not (_has_whole_rows(out) or _has_whole_rows(out.t())):
        raise ValueError(
            f"a result of contiguous rows or columns is needed; its strides are {out.stride()}"
        )


def _has_whole_rows(matrix: torch.Tensor) -> bool:
    (height, width), (pitch, step) = matrix.shape, matrix.stride()
    return (width <= 1 or step == 1) and (height <= 1 or pitch >= width)


def _check_blocks(
    b: torch.Tensor, starts: torch.Tensor, blocks: torch.Tensor, depth: int, width: int
) -> None:
    if min(depth, width) < 1 or depth % _SMALLEST or width % _SMALLEST:
        raise ValueError(
            f"tiles of {depth} x {width} cannot be multiplied: multiples of {_SMALLEST} are needed"
        )
    check_numbers("starts", starts, b.device)
    check_numbers("blocks", blocks, b.device)
    wanted = -(-b.shape[1] // width) + 1
    if starts.dim() != 1 or blocks.dim() != 1 or len(starts) != wanted:
        raise ValueError(
            f"{b.shape[1]} columns in blocks of {width} need one row of {wanted} starts and one of "
            f"blocks, not {tuple(starts.shape)} and {tuple(blocks.shape)}"
        )


def _within(limit: int, size: int) -> int:
    """The smallest power of two that covers ``size``, within limits."""
    return min(limit, max(1 << (size - 1).bit_length(), _SMALLEST))


def _chosen(
    kind: Hashable,
    tensors: tuple[torch.Tensor, ...],
    candidates: Iterable[Parts],
    launch: Callable[[Parts], None],
) -> Parts:
    """The fastest candidate for calls like this one; timed once, on this call's own tensors.

    Sizes up to a factor of two apart count as alike, so that a batch of another length is not timed
    again.
    """
    different = tuple(dict.fromkeys(candidates))
    device = tensors[0].device
    if device.type != "cuda" or len(different) == 1:
        return different[0]
    key = (kind, device, *(_likeness(tensor) for tensor in tensors))
    if key not in _fastest:
        if torch.cuda.is_current_stream_capturing():
            return different[0]  # nothing runs during capture, so nothing can be timed
        _fastest[key] = _timed(different, launch)
    return _fastest[key]


def _candidates(
    tensors: tuple[torch.Tensor, ...], tile: tuple[int, int], tf32: bool
) -> tuple[Parts, ...]:
    are_aligned = all(map(is_aligned, tensors)) and not any(side % _VECTOR for side in tile)
    if tensors[0].dtype != torch.float32:
        return HALF_PRECISION if are_aligned else UNALIGNED_HALF
    if not are_aligned:
        return UNALIGNED_SINGLE
    return TF32 if tf32 else EXACT


def _likeness(tensor: torch.Tensor) -> Hashable:
    sizes = tuple(size.bit_length() for size in tensor.shape)
    return tensor.dtype, sizes, tensor.stride(1) == 1, is_aligned(tensor)


def _timed(candidates: Iterable[Parts], launch: Callable[[Parts], None]) -> Parts:
    times_ms = {parts: _milliseconds(launch, parts) for parts in candidates}
    return min(times_ms, key=times_ms.__getitem__)


def _milliseconds(launch: Callable[[Parts], None], parts: Parts) -> float:
    """The time of one launch; infinite where this GPU has too little shared memory for it."""
    from satcompile.updates.kernels.device_code_sparse import OutOfResources

    try:
        launch(parts)
    except OutOfResources:
        return float("inf")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(_TIMED_RUNS):
        launch(parts)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / _TIMED_RUNS


def _launch_tile_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    numbers: torch.Tensor,
    tile: tuple[int, int],
    out: torch.Tensor,
    parts: Parts,
    tf32: bool,
) -> None:
    from satcompile.updates.kernels.device_code_sparse import tile_mm_kernel

    parts_of_tile = -(-tile[0] // parts.rows) * -(-tile[1] // parts.columns)
    tile_mm_kernel[(numbers.numel() * parts_of_tile,)](
        a,
        b,
        numbers,
        out,
        a.shape[1],
        *out.shape,
        a.stride(1),
        a.stride(0),
        *b.stride(),
        *out.stride(),
        TILE_HEIGHT=tile[0],
        TILE_WIDTH=tile[1],
        ROWS=parts.rows,
        COLUMNS=parts.columns,
        DEPTH=parts.depth,
        PRECISION="tf32" if tf32 else "ieee",
        num_warps=parts.num_warps,
        num_stages=parts.num_stages,
    )


def _launch_masked_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    starts: torch.Tensor,
    blocks: torch.Tensor,
    tile: tuple[int, int],
    out: torch.Tensor,
    parts: Parts,
    tf32: bool,
) -> None:
    from satcompile.updates.kernels.device_code_sparse import masked_mm_kernel

    depth, width = tile
    parts_of_block = -(-width // parts.columns)
    num_programs = -(-out.shape[0] // parts.rows) * -(-out.shape[1] // width) * parts_of_block
    masked_mm_kernel[(num_programs,)](
        a,
        b,
        starts,
        blocks,
        out,
        a.shape[0],
        *b.shape,
        *a.stride(),
        *b.stride(),
        TILE_DEPTH=depth,
        TILE_WIDTH=width,
        ROWS=parts.rows,
        COLUMNS=parts.columns,
        DEPTH=parts.depth,
        GROUP=_GROUP_ROWS,
        PRECISION="tf32" if tf32 else "ieee",
        num_warps=parts.num_warps,
        num_stages=parts.num_stages,
    )
