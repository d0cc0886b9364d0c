"""A ridge classifier from inner products alone: many columns and few rows cost what the rows do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PENALTIES = tuple(10.0**power for power in range(-4, 5))
"""Tried for the penalty, in units of the mean variance along the rows' own directions."""


def ridge_scores(
    train: NDArray[np.float64], y: NDArray[np.int64], held: NDArray[np.float64], n_classes: int
) -> NDArray[np.float64]:
    """Scores (M, C) of held-out rows by least squares on each class against the rest, with a penalty on the weights.

    With two classes this is Fisher's discriminant with a ridge (Hastie, Buja and Tibshirani 1995). The penalty is the one of
    :data:`PENALTIES` by which the training rows are best told when each is left out (Allen's PRESS, in closed form).

    Args:
        train: inner products (n, n) of the training rows.
        y: their classes (n,).
        held: inner products (M, n) of the held-out rows with the training rows.
    """
    n = len(y)
    targets = np.eye(n_classes)[y]
    mean = targets.mean(0)
    wanted = targets - mean
    by_row = train.mean(0)
    centred = train - by_row - by_row[:, None] + train.mean()
    value, vector = np.linalg.eigh(centred)
    value = np.maximum(value, 0.0)
    turned = vector.T @ wanted
    scale = max(float(value.sum()) / max(n - 1, 1), 1e-12)
    best, weights = np.inf, np.zeros_like(wanted)
    for penalty in PENALTIES:
        shrunk = value / (value + penalty * scale)
        own = np.square(vector) @ shrunk + 1 / n  # how much of a row's score is its own doing
        left = (wanted - vector @ (shrunk[:, None] * turned)) / np.maximum(1 - own, 1e-6)[:, None]
        error = float(np.square(left).sum())
        if error < best:
            best, weights = error, vector @ (turned / (value + penalty * scale)[:, None])
    return np.asarray(mean + (held - by_row) @ weights)
