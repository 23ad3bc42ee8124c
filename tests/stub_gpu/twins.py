"""Numbers for CUDA's operators on the stub: the CPU's own kernels, on the same bytes.

Device memory is host memory there, so that a CUDA tensor has a twin on the CPU that shares its
bytes. Every operator that has a kernel for CUDA gets the CPU's; CUDA's attention, which has no
CPU kernel, gets that of the CPU's flash attention. With STUB_NUMBERS=1 whatever has no twin and
launches a kernel of CUDA's ends the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

Tensor = torch.Tensor

# They make memory or look at it another way, and compute nothing.
_AS_THEY_ARE = {
    "empty", "empty_strided", "as_strided", "view", "_reshape_alias", "resize_", "set_", "unfold",
    "record_stream", "_efficientzerotensor", "is_set_to", "is_pinned", "_pin_memory",
    "_local_scalar_dense",
}  # fmt: skip
# Computes on CUDA without a kernel of its own there.
_FOR_ALL_DEVICES = {"copy_"}

_library: torch.library.Library | None = None


def install() -> int:
    """Replace CUDA's kernels; how many were."""
    global _library
    _library = torch.library.Library("aten", "IMPL")
    replaced = 0
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        if (
            space != "aten"
            or base in _AS_THEY_ARE
            or not (
                base in _FOR_ALL_DEVICES
                or torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
            )
        ):
            continue
        op = getattr(getattr(torch.ops.aten, base), overload or "default")
        twin = _Twin(op, _ATTENTION.get(base, op))
        _library.impl(rest, twin, "CUDA", allow_override=True)
        replaced += 1
    return replaced


def on_host(tensor: Tensor) -> Tensor:
    """A CPU tensor of the same bytes."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    same = torch._C._construct_storage_from_data_pointer(
        storage.data_ptr(), torch.device("cpu"), storage.nbytes()
    )
    empty = torch.empty(0, dtype=tensor.dtype)
    return empty.set_(same, tensor.storage_offset(), tensor.shape, tensor.stride())


def on_device(tensor: Tensor) -> Tensor:
    """A copy in the device's memory."""
    copied = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    if tensor.numel():
        on_host(copied).copy_(tensor)
    return copied


class _Twin:
    """An operator's kernel for CUDA, by what computes the same on the CPU."""

    def __init__(self, op: Any, on_cpu: Callable[..., Any]) -> None:
        self._op, self._on_cpu = op, on_cpu

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given: list[tuple[Tensor, Tensor]] = []  # ours, theirs

        def down(value: Any) -> Any:
            if isinstance(value, Tensor):
                given.append((on_host(value) if value.is_cuda else value, value))
                return given[-1][0]
            if isinstance(value, torch.device) and value.type == "cuda":
                return torch.device("cpu")
            return value

        def up(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            theirs = [device for host, device in given if host is value]
            return theirs[0] if theirs else on_device(value)

        args, kwargs = pytree.tree_map(down, (args, kwargs))
        with torch.no_grad():
            found = self._on_cpu(*args, **kwargs)
        for host, device in given:
            if host.shape != device.shape:  # an out= that the operator gave its size
                device.resize_(host.shape)
                on_host(device).copy_(host)
        return pytree.tree_map(up, found)


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _no_dropout(probability: float) -> None:
    if probability:
        raise NotImplementedError("stub GPU: attention with dropout has no twin")


def _number() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False,
    return_debug_mask: bool = False, *, scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    _no_dropout(dropout)
    out, logsumexp = _flash(q, k, v, 0.0, causal, scale=scale)
    seed = torch.zeros(2, dtype=torch.uint64)
    unused = torch.zeros((), dtype=torch.uint64)
    return (
        out,
        logsumexp.contiguous(),
        None,
        None,
        q.shape[2],
        k.shape[2],
        seed,
        unused,
        q.new_empty(0),
    )


def _flash_attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor,
    cum_q: Any, cum_k: Any, max_q: int, max_k: int, dropout: float, causal: bool, seed: Any, offset: Any,
    *, scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _flash_backward(gradient, q, k, v, out, logsumexp, 0.0, causal, scale=scale)


def _efficient_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, with_logsumexp: bool, dropout: float = 0.0,
    causal: bool = False, *, scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    _no_dropout(dropout)
    out, found = _flash(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
    queries = found.shape[-1]
    padded = -(-queries // 32) * 32 if with_logsumexp else 0  # as CUDA's kernel wants it
    logsumexp = found.new_full((*found.shape[:-1], padded), float("inf"))
    logsumexp[..., :queries] = found[..., :padded]
    return out, logsumexp, _number(), _number()


def _efficient_attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor,
    logsumexp: Tensor, seed: Any, offset: Any, dropout: float, wanted: list[bool],
    causal: bool = False, *, scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    if wanted[3]:
        raise NotImplementedError("stub GPU: the gradient of attention's bias has no twin")
    short = logsumexp[..., : q.shape[2]].contiguous()
    found = _flash_backward(gradient, q, k, v, out, short, 0.0, causal, attn_mask=bias, scale=scale)
    return *found, q.new_empty(0)


_ATTENTION: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention": _flash_attention,
    "_scaled_dot_product_flash_attention_backward": _flash_attention_backward,
    "_scaled_dot_product_efficient_attention": _efficient_attention,
    "_scaled_dot_product_efficient_attention_backward": _efficient_attention_backward,
}
