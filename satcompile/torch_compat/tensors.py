"""Fake tensors, tensors made of tensors, storages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._python_dispatch


@contextlib.contextmanager
def without_tracing() -> Iterator[None]:
    """Inside, tensors are real, even in a compilation that traces with fake ones. 2.11, 2.13."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily(), torch.utils._python_dispatch._disable_current_modes():
        yield


def storage_address(storage: torch.UntypedStorage) -> int:
    """An address that tells live storages apart. ``_cdata``: 2.11, 2.13."""
    return storage._cdata


class StorageReferences:
    """Refers to storages without keeping their memory. While this object exists, no other storage
    gets the address of one of these. ``UntypedStorage._weak_ref``, which returns the value of
    ``_cdata``, and ``_free_weak_ref``: 2.11, 2.13."""

    __slots__ = ("_addresses",)

    def __init__(self) -> None:
        self._addresses: set[int] = set()

    def add(self, storage: torch.UntypedStorage) -> bool:
        """Add a reference; returns whether there was none to this storage yet."""
        address = storage._cdata
        if address in self._addresses:
            return False
        self._addresses.add(address)
        storage._weak_ref()
        return True

    def addresses(self) -> frozenset[int]:
        """The addresses that tell the storages apart."""
        return frozenset(self._addresses)

    def __del__(self, free: Callable[[int], None] = torch.UntypedStorage._free_weak_ref) -> None:
        for address in self._addresses:
            free(address)


def fake_tensor_mode(**settings: Any) -> Any:
    """A context in which tensors have shapes, dtypes and devices, but no memory. 2.11, 2.13."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(**settings)


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` has no memory of its own. 2.11, 2.13."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def fake_mode_of(tensor: torch.Tensor) -> Any:
    """The context in which a traced value was made. 2.11, 2.13."""
    return tensor.fake_mode  # type: ignore[attr-defined]


def is_static_input(tensor: torch.Tensor) -> bool:
    """Whether Dynamo marked a tensor as outliving a call: parameters, buffers. 2.11, 2.13."""
    return bool(getattr(tensor, "_dynamo_static_input_type", None))


def is_wrapper_tensor(tensor: torch.Tensor) -> bool:
    """Whether a tensor is made of other tensors (DTensor and the like). 2.11, 2.13."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return bool(is_traceable_wrapper_subclass(tensor))


def same_strided_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, on which generated code relies."""
    copied = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copied.copy_(tensor)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements fill its memory without gaps, in any order. 2.11, 2.13."""
    return bool(torch.ops.aten.is_non_overlapping_and_dense.default(tensor))
