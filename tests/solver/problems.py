"""Small random problems: a chain, mirrored skips as between forward and backward, some edges more."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from satcompile.solver import Problem


@st.composite
def problems(draw, least: int = 3, most: int = 9):
    count = draw(st.integers(least, most))
    times = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    num_bytes = draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))
    return Problem.from_dict(
        {"times": times, "bytes": num_bytes, "edges": edges(count, draw(st.randoms()))}
    )


@st.composite
def problems_with_budget(draw, most: int = 9):
    """A budget from a little below what a node has around it to just below the peak."""
    problem = draw(problems(most=most))
    around = max(
        size + sum(problem.num_bytes[i] for i in inputs)
        for size, inputs in zip(problem.num_bytes, problem.inputs, strict=True)
    )
    most_bytes = max(around, problem.peak_bytes - 1)
    return problem, draw(st.integers(max(0, around - 1), most_bytes))


def edges(count: int, source: random.Random) -> list[list[int]]:
    found = []
    for j in range(1, count):
        mirrored = count - 1 - j
        if source.random() < 0.85:
            found.append([j - 1, j])
        if mirrored < j - 1 and source.random() < 0.6:
            found.append([mirrored, j])
        if source.random() < 0.35:
            found.append([source.randrange(j), j])
    return found
