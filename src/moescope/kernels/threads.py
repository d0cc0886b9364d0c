"""Numba loops over rows, spread over as many threads as torch uses.

Python threads around functions compiled without the interpreter lock, not numba's own parallel loops: those compile for
seconds and one of their backends must not be entered from two threads at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch

# Sums may be reordered (for SIMD); NaN and infinity keep their meaning, unlike under fastmath=True.
FAST = {"reassoc", "contract", "nsz", "arcp"}


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="moescope-kernel")


def over_rows(function: Callable[..., None], rows: int, *arguments: Any, smallest: int = 64) -> None:
    """Call ``function(*arguments, start, stop)`` on disjoint ranges that cover ``range(rows)``.

    ``smallest``: rows below which a range is not worth a thread.
    """
    parts = max(1, min(torch.get_num_threads(), rows // smallest))
    if parts == 1:
        function(*arguments, 0, rows)
        return
    bounds = [rows * i // parts for i in range(parts + 1)]
    jobs = [_pool(parts).submit(function, *arguments, a, b) for a, b in pairwise(bounds[1:])]
    function(*arguments, bounds[0], bounds[1])
    for job in jobs:
        job.result()
