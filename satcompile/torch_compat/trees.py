"""Nested containers as torch flattens them."""

from __future__ import annotations

# ``tree_map``, ``arg_tree_leaves``: 2.11, 2.13.
from torch.utils import _pytree as pytree  # noqa: F401
