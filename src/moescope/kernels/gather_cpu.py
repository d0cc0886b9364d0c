"""Sums of chosen rows for each token on the CPU, read where they lie: torch would first copy them together."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from moescope.kernels.openmp import Task, array_at, compiled, fork, mark_of, take
from moescope.kernels.threads import FAST

_MARK = mark_of(__file__)


def gather_sum(rows: Tensor, place: Tensor, scale: Tensor) -> Tensor:
    """``out[t] = Σ_j scale[t, j] · rows[place[t, j]]``: (T, d) from rows (S, d), place int64 and scale (T, k).

    Rows and scale have one dtype, float32 or float64, and all are contiguous. Where ``scale`` is nought no row is read.
    """
    (tokens, k), (n_rows, d) = place.shape, rows.shape
    out = torch.empty(tokens, d, dtype=rows.dtype)
    threads = torch.get_num_threads()
    fork(_function(rows.dtype), Task((tokens, k, n_rows, d, min(tokens, 4 * threads)), (rows, place, scale, out)), threads)
    return out


@cache
def _function(dtype: torch.dtype) -> Any:
    kind = {torch.float32: np.float32, torch.float64: np.float64}[dtype]

    def loop(at: Any) -> None:
        numbers = array_at(at[0], (6,), np.int64)
        _, tokens, k, n_rows, d, parts = numbers
        rows, out = array_at(at[1], (n_rows, d), kind), array_at(at[4], (tokens, d), kind)
        place, scale = array_at(at[2], (tokens, k), np.int64), array_at(at[3], (tokens, k), kind)
        while True:
            part = take(numbers)
            if part >= parts:
                return
            for t in range(tokens * part // parts, tokens * (part + 1) // parts):
                _sum(rows, place[t], scale[t], out[t])

    return compiled(loop, _MARK)


@njit(fastmath=FAST)
def _sum(rows: Any, place: Any, scale: Any, out: Any) -> None:
    out[:] = 0
    for j in range(len(place)):
        factor = scale[j]
        if factor != 0:
            row = rows[place[j]]
            for i in range(len(row)):
                out[i] += factor * row[i]
