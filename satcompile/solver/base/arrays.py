"""Lists of lists for compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def rows(lists: Sequence[Sequence[int]], dtype: type[np.integer[Any]]) -> tuple[Any, Any]:
    """Lists of numbers as one array, and where each begins in it.

    Returns:
        Where row i begins, with the end behind the last, and the numbers of all rows; of ``dtype``.
    """
    starts: NDArray[Any] = np.zeros(len(lists) + 1, dtype)
    np.cumsum([len(each) for each in lists], out=starts[1:])
    return starts, np.array([number for each in lists for number in each], dtype)
