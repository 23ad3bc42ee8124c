"""Programs as Hypothesis draws and shrinks them."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.programs.builder import build
from tests.programs.operators import FAMILIES
from tests.programs.program import Program

_NUMBER = st.integers(0, 255)
_GENE = st.tuples(st.integers(0, len(FAMILIES) - 1), *[_NUMBER] * 6)


def programs(max_size: int = 14) -> st.SearchStrategy[Program]:
    genes = st.lists(_GENE, min_size=1, max_size=max_size)
    settings = st.tuples(st.integers(0, 1), st.integers(0, 15), st.integers(0, 1))
    return st.builds(lambda g, s: build(g, s, FAMILIES), genes, settings)
