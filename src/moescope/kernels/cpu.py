"""Gathered products on the CPU, forward and backward, that never hold (tokens, k, d).

Each is one pass over the chosen rows as they lie in the weight. The weight's gradient is row-sparse: only experts that had
a token have one. A dense gradient would be as large as the weight and mostly zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moescope.kernels.loops import compiled
from moescope.kernels.routed import Routed, gathered
from moescope.kernels.threads import FAST, over_rows


def dot(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """(B, k): x[b] · weight[index[b, j]], without a graph."""
    out = x.new_empty(index.shape)
    over_rows(_dot, len(x), _array(x), _array(weight), index.numpy(), out.numpy())
    return out


def weighted_sum(scale: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """(B, d): Σ_j scale[b, j] · weight[index[b, j]], without a graph."""
    out = scale.new_zeros(len(scale), weight.shape[1])
    over_rows(_weighted_sum, len(scale), _array(scale), _array(weight), index.numpy(), out.numpy())
    return out


def grouped_sum(scale: Tensor, x: Tensor, shape: torch.Size, routed: Routed) -> Tensor:
    """Row-sparse (m, d): at each chosen expert, the sum of scale[b, j] · x[b] over the pairs that chose it."""
    groups = routed.groups()
    values = x.new_zeros(len(groups.rows), x.shape[1])
    over_rows(_grouped_sum, len(groups.rows), _array(scale), _array(x), groups.offsets, groups.pairs, values.numpy())
    return groups.row_gradient(values, shape)


GatheredDot, GatheredSum = gathered(dot, weighted_sum, grouped_sum)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


@compiled(fastmath=FAST)
def _dot(x: np.ndarray, weight: np.ndarray, index: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    for b in range(start, stop):
        for j in range(index.shape[1]):
            row = index[b, j]
            total = x.dtype.type(0)
            for c in range(x.shape[1]):
                total += x[b, c] * weight[row, c]
            out[b, j] = total


@compiled(fastmath=FAST)
def _weighted_sum(scale: np.ndarray, weight: np.ndarray, index: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    k, whole = index.shape[1], index.shape[1] - index.shape[1] % 4
    for b in range(start, stop):
        for j in range(0, whole, 4):  # four rows at once: a quarter of the passes over the output
            i0, i1, i2, i3 = index[b, j], index[b, j + 1], index[b, j + 2], index[b, j + 3]
            a0, a1, a2, a3 = scale[b, j], scale[b, j + 1], scale[b, j + 2], scale[b, j + 3]
            for c in range(weight.shape[1]):
                out[b, c] += a0 * weight[i0, c] + a1 * weight[i1, c] + a2 * weight[i2, c] + a3 * weight[i3, c]
        for j in range(whole, k):
            row = index[b, j]
            a = scale[b, j]
            for c in range(weight.shape[1]):
                out[b, c] += a * weight[row, c]


@compiled(fastmath=FAST)
def _grouped_sum(
    scale: np.ndarray, x: np.ndarray, offsets: np.ndarray, pairs: np.ndarray, out: np.ndarray, start: int, stop: int
) -> None:
    k = scale.shape[1]
    for g in range(start, stop):
        for q in range(offsets[g], offsets[g + 1]):
            token, slot = pairs[q] // k, pairs[q] % k
            a = scale[token, slot]
            for c in range(x.shape[1]):
                out[g, c] += a * x[token, c]
