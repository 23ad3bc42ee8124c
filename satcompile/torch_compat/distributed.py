"""DistributedDataParallel and FSDP2."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any

import torch


def inside_data_parallel() -> bool:
    """Whether a forward of DistributedDataParallel is running, whose hooks Python cannot see.
    2.11, 2.13."""
    if not torch.distributed.is_available():
        return False
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel._get_active_ddp_module() is not None


def active_process_group() -> Any | None:
    """The group of processes over which the running DistributedDataParallel sums gradients; None
    outside its forward. 2.11, 2.13."""
    if not torch.distributed.is_available():
        return None
    from torch.nn.parallel import DistributedDataParallel

    module = DistributedDataParallel._get_active_ddp_module()
    return None if module is None else module.process_group


def sum_over(group: Any, values: torch.Tensor) -> None:
    """Sum ``values`` in place over the processes of a group; all of them must call this."""
    torch.distributed.all_reduce(values, group=group)


def gathered_by_fully_shard(parameters: Sequence[Any]) -> bool:
    """Whether FSDP2 has gathered some of these parameters for a module's forward or backward.
    Gathered parameters are plain and carry no mark; ``FSDPParam._unsharded_param`` refers to each.
    2.11, 2.13."""
    module = sys.modules.get("torch.distributed.fsdp._fully_shard._fsdp_param")
    if module is None or not parameters:
        return False
    looked_for = {id(parameter) for parameter in parameters}
    shards = [o for o in gc.get_objects() if type(o) is module.FSDPParam]
    return any(id(getattr(shard, "_unsharded_param", None)) in looked_for for shard in shards)
