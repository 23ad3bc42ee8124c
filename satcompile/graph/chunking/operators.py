"""The operator that adds a chunk's share of a weight's gradient, in half precision, to the sum.

Inductor would leave plain additions to the last chunk: it computes a chain of them in one kernel,
for which the shares of all chunks stay alive.
"""

from __future__ import annotations

import torch

_library = torch.library.Library("satcompile", "FRAGMENT")
_library.define("add_share(Tensor total, Tensor share) -> Tensor")

_PARTS = 16

ADD_SHARE = torch.ops.satcompile.add_share.default


@torch.library.impl(_library, "add_share", "CompositeExplicitAutograd")
def _add_share(total: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    if total.device.type != "cpu" or not total.dim():
        return total + share
    # A CPU's addition first widens the whole share; in parts of the rows, it widens one part.
    added = torch.empty_like(total)
    rows = -(-len(total) // _PARTS)
    for out, one, other in zip(
        *(t.split(max(rows, 1)) for t in (added, total, share)), strict=True
    ):
        torch.add(one, other, out=out)
    return added


@torch.library.register_fake("satcompile::add_share", lib=_library)
def _add_share_fake(total: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(total)
