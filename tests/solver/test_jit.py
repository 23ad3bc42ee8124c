"""Code is compiled wherever there is no place to keep it."""

from __future__ import annotations

import numba
import pytest

from satcompile.solver.base.jit import compiled


def test_without_a_place_to_keep_it_code_is_compiled_anyway():
    add_one = eval("lambda number: number + 1")  # of no file
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(add_one)
    assert compiled(add_one)(2) == 3
