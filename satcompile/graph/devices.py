"""Where a graph's values live."""

from __future__ import annotations

import torch
from torch import fx


def graph_device(gm: fx.GraphModule) -> torch.device:
    """The device that most of the graph's values live on."""
    devices = devices_of(gm)
    return max(set(devices), key=devices.count) if devices else torch.device("cpu")


def is_on_cpu(gm: fx.GraphModule) -> bool:
    """Whether all of the graph's values are on the CPU."""
    return all(device.type == "cpu" for device in devices_of(gm))


def devices_of(gm: fx.GraphModule) -> list[torch.device]:
    """The devices of a graph's values; Dynamo's graphs keep values elsewhere than AOTAutograd's."""
    values = (n.meta.get("val", n.meta.get("example_value")) for n in gm.graph.nodes)
    return [value.device for value in values if isinstance(value, torch.Tensor)]
