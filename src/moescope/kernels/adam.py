"""One step of Adam in one pass over a weight whose gradient is known for some rows only.

A row without a gradient has gradient zero: its moments decay and it still moves, exactly as with a dense gradient. With
``lazy`` such a row is left alone, as in torch's SparseAdam.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moescope.kernels.loops import compiled
from moescope.kernels.threads import FAST, over_rows


def adam_rows(
    weight: Tensor,
    first: Tensor,
    second: Tensor,
    rows: Tensor | None,
    values: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    step: int,
    lazy: bool = False,
) -> None:
    """Update ``weight`` and its moments ``first`` and ``second``, all float32 or float64 (m, d) on the CPU, in place.

    Args:
        rows: int64 (G,), distinct: the rows that ``values`` (G, d) are the gradients of; None: all, in order.
        step: 1 for the first update (Kingma & Ba 2015, algorithm 1).
    """
    kind = np.float32 if weight.dtype == torch.float32 else np.float64
    slot = np.full(len(weight), -1, np.int64)
    if rows is None:
        slot[:] = np.arange(len(weight))
    else:
        slot[rows.numpy()] = np.arange(len(rows))
    rate = kind(lr / (1 - betas[0] ** step))
    scale = kind(1 / np.sqrt(1 - betas[1] ** step))
    over_rows(
        _adam,
        len(weight),
        weight.detach().numpy(),
        first.numpy(),
        second.numpy(),
        slot,
        values.contiguous().numpy(),
        kind(betas[0]),
        kind(betas[1]),
        rate,
        scale,
        kind(eps),
        lazy,
    )


@compiled(fastmath=FAST, error_model="numpy")
def _adam(
    weight: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    slot: np.ndarray,
    values: np.ndarray,
    b1: float,
    b2: float,
    rate: float,
    scale: float,
    eps: float,
    lazy: bool,
    start: int,
    stop: int,
) -> None:
    one = weight.dtype.type(1)
    for r in range(start, stop):
        s = slot[r]
        if s >= 0:
            for c in range(weight.shape[1]):
                g = values[s, c]
                m = b1 * first[r, c] + (one - b1) * g
                v = b2 * second[r, c] + (one - b2) * g * g
                first[r, c] = m
                second[r, c] = v
                weight[r, c] -= rate * m / (np.sqrt(v) * scale + eps)
        elif not lazy:
            for c in range(weight.shape[1]):
                m = b1 * first[r, c]
                v = b2 * second[r, c]
                first[r, c] = m
                second[r, c] = v
                weight[r, c] -= rate * m / (np.sqrt(v) * scale + eps)
