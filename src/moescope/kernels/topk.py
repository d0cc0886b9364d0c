"""The best k of m experts for each token, without all (tokens, m) scores at once.

Scores come block by block from a matrix product; a heap of k per token keeps the best so far. Once a heap is full few
scores beat its least one (about k·ln(m/k) in all), so the scan is a comparison per score.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moescope.kernels.loops import compiled
from moescope.kernels.threads import over_rows

_CHUNK = 128  # scores compared at once (a fixed count, for SIMD) before any is looked at alone


def top_rows(
    x: Tensor, weight: Tensor, k: int, bias: Tensor | None = None, *, block: int = 4096, half: bool = False
) -> tuple[Tensor, Tensor]:
    """As :func:`moescope.kernels.reference.top_rows`, for float32 and float64 on the CPU; no gradient.

    Args:
        half: compute scores from bfloat16 operands (several times faster where the CPU has matrix units); near ties may
            then be decided otherwise, and values carry three digits.

    Raises:
        FloatingPointError: a token has fewer than k scores that are numbers.
    """
    tokens, m = len(x), len(weight)
    x, weight = x.detach(), weight.detach()
    best = np.full((tokens, k), -np.inf, np.float64 if x.dtype == torch.float64 else np.float32)
    index = np.full((tokens, k), -1, np.int64)
    left = x.bfloat16() if half else x
    scores = x.new_empty(tokens, min(block, m))
    for first in range(0, m, block):
        rows = weight[first : first + block]
        part = scores[:, : len(rows)]
        if half:
            part.copy_(left @ rows.bfloat16().T)
        else:
            torch.mm(left, rows.T, out=part)
        if bias is not None:
            part += bias.detach()[first : first + block]
        over_rows(_keep_best, tokens, part.numpy(), first, best, index)
    over_rows(_sort, tokens, best, index)
    if k and (index[:, -1] < 0).any():
        raise FloatingPointError("router scores are not finite")
    return torch.from_numpy(best).to(x.dtype), torch.from_numpy(index)


@compiled()
def _sift(values: np.ndarray, index: np.ndarray, value: float, number: int, size: int) -> None:
    """Replace the least element (position 0) of a min-heap."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and values[child + 1] < values[child]:
            child += 1
        if values[child] >= value:
            break
        values[at], index[at] = values[child], index[child]
        at = child
    values[at], index[at] = value, number


@compiled()
def _keep_best(scores: np.ndarray, first: int, best: np.ndarray, index: np.ndarray, start: int, stop: int) -> None:
    k = best.shape[1]
    n = scores.shape[1]
    whole = n - n % _CHUNK
    for b in range(start, stop):
        low = best[b, 0]
        for c in range(0, whole, _CHUNK):
            above = 0
            for i in range(_CHUNK):
                above += scores[b, c + i] > low
            if above:
                for i in range(c, c + _CHUNK):
                    if scores[b, i] > low:
                        _sift(best[b], index[b], scores[b, i], first + i, k)
                        low = best[b, 0]
        for i in range(whole, n):
            if scores[b, i] > low:
                _sift(best[b], index[b], scores[b, i], first + i, k)
                low = best[b, 0]


@compiled()
def _sort(best: np.ndarray, index: np.ndarray, start: int, stop: int) -> None:
    """Largest first; heap sort in place."""
    k = best.shape[1]
    for b in range(start, stop):
        for end in range(k - 1, 0, -1):
            value, number = best[b, end], index[b, end]
            best[b, end], index[b, end] = best[b, 0], index[b, 0]
            _sift(best[b], index[b], value, number, end)
