"""Rematerialization problems made up from a seed: the shapes that training graphs have, in numbers.

Times are in arbitrary units, bytes in elements. Nothing here is measured on a model; the problems
are for comparing solvers with each other and with bounds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from satcompile.solver import Problem


@dataclass
class Graph:
    """Nodes in the order in which they are added."""

    times: list[float] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    inputs: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, time: float, num_bytes: int, *inputs: int) -> int:
        self.times.append(time)
        self.num_bytes.append(num_bytes)
        self.inputs.append(tuple(dict.fromkeys(inputs)))
        return len(self.times) - 1

    def problem(self, name: str) -> Problem:
        edges = [[i, j] for j, inputs in enumerate(self.inputs) for i in inputs]
        return Problem.from_dict(
            {"name": name, "times": self.times, "bytes": self.num_bytes, "edges": edges}
        )


def with_backward(forward: Graph) -> Graph:
    """A gradient for every node, last node first: it reads the gradients of the node's readers
    and what those readers read, and takes the time of the readers."""
    whole = Graph(list(forward.times), list(forward.num_bytes), list(forward.inputs))
    readers: list[list[int]] = [[] for _ in forward.times]
    for node, inputs in enumerate(forward.inputs):
        for i in inputs:
            readers[i].append(node)
    gradient: dict[int, int] = {}
    for node in reversed(range(len(forward.times))):
        read = [gradient[reader] for reader in readers[node]]
        read += [i for reader in readers[node] for i in forward.inputs[reader]]
        time = sum(forward.times[reader] for reader in readers[node])
        gradient[node] = whole.add(time or 1, forward.num_bytes[node], *(read or [node]))
    return whole


def layered(nodes: int, seed: int) -> Problem:
    """Layers of random width; a node reads one to three of the three layers before its own, and
    one in four nodes another from anywhere before."""
    draw, graph = random.Random(seed), Graph()
    layers: list[list[int]] = []
    while len(graph.times) < nodes:
        near = [node for layer in layers[-3:] for node in layer]
        before, layer = len(graph.times), []
        for _ in range(min(draw.randint(1, 8), nodes - before)):
            read = draw.sample(near, min(len(near), draw.randint(1, 3)))
            if before and draw.random() < 0.25:
                read.append(draw.randrange(before))
            layer.append(graph.add(draw.randint(1, 100), draw.randint(1, 1_000), *read))
        layers.append(layer)
    return graph.problem(f"layered_{nodes}")


def chain(steps: int) -> Problem:
    """Equal costs, with a backward: Revolve's problem."""
    graph = Graph()
    last = graph.add(1, 100)
    for _ in range(steps - 1):
        last = graph.add(1, 100, last)
    return with_backward(graph).problem(f"chain_{steps}")


def resnet(blocks: int) -> Problem:
    """Residual blocks in four stages, each of half the elements and more time than the last."""
    graph = Graph()
    last = graph.add(5, 8_000)
    for block in range(blocks):
        stage = 4 * block // blocks
        num_bytes, kept = 8_000 >> stage, last
        for kernel in (4, 9, 4):
            convolved = graph.add(kernel * (1 + stage), num_bytes, last)
            normed = graph.add(1, num_bytes, convolved)
            last = graph.add(1, num_bytes, normed)
        last = graph.add(1, num_bytes, last, kept)
    graph.add(1, 1, last)
    return with_backward(graph).problem(f"resnet_{blocks}")


def unet(levels: int) -> Problem:
    """Down and up again, each level of the way up reading that of the way down."""
    graph, skips = Graph(), []
    last = graph.add(2, 16_000)
    for level in range(levels):
        last = _convolutions(graph, level, last)
        skips.append(last)
        last = graph.add(1, max(1, 16_000 >> level + 1), last)
    last = _convolutions(graph, levels, last)
    for level in reversed(range(levels)):
        upward = graph.add(4, max(1, 16_000 >> level), last)
        last = _convolutions(graph, level, graph.add(1, 32_000 >> level, upward, skips[level]))
    graph.add(1, 1, last)
    return with_backward(graph).problem(f"unet_{levels}")


def _convolutions(graph: Graph, level: int, last: int) -> int:
    for _ in range(2):
        convolved = graph.add(8, max(1, 16_000 >> level), last)
        last = graph.add(1, max(1, 16_000 >> level), convolved)
    return last


def transformer(layers: int, heads: int = 8) -> Problem:
    """Equal layers; attention head by head, so that there are many nodes."""
    graph = Graph()
    last = graph.add(2, 1_000)
    for _ in range(layers):
        last = _mixed(graph, _attended(graph, last, heads))
    graph.add(10, 1, last)
    return with_backward(graph).problem(f"transformer_{layers}")


def _attended(graph: Graph, last: int, heads: int) -> int:
    normed = graph.add(1, 1_000, last)
    query, key, value = (graph.add(30, 1_000, normed) for _ in range(3))
    found = []
    for _ in range(heads):
        scores = graph.add(2, 500, query, key)
        weights = graph.add(1, 500, scores)
        dropped = graph.add(1, 500, weights)
        found.append(graph.add(2, 1_000 // heads, dropped, value))
    joined = graph.add(1, 1_000, *found)
    return graph.add(1, 1_000, graph.add(30, 1_000, joined), last)


def _mixed(graph: Graph, last: int) -> int:
    normed = graph.add(1, 1_000, last)
    wide = graph.add(120, 4_000, normed)
    curved = graph.add(2, 4_000, wide)
    return graph.add(1, 1_000, graph.add(120, 1_000, curved), last)


SUITE: tuple[Callable[[], Problem], ...] = (
    lambda: chain(50),
    lambda: unet(5),
    lambda: resnet(16),
    lambda: layered(100, seed=0),
    lambda: layered(250, seed=0),
    lambda: layered(500, seed=0),
    lambda: transformer(12),
    lambda: transformer(56),
    lambda: transformer(104),
)


def suite() -> list[Problem]:
    """The problems of the benchmark, up to about 10,000 nodes."""
    return [make() for make in SUITE]


def load_folder(folder: Path) -> list[Problem]:
    """Every problem of a folder, named after its file."""
    found = []
    for path in sorted(folder.glob("*.json")):
        found.append(Problem.from_dict({**Problem.load(path).to_dict(), "name": path.stem}))
    return found


def save_folder(problems: Iterable[Problem], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for problem in problems:
        (folder / f"{problem.name}.json").write_text(json.dumps(problem.to_dict()) + "\n")
