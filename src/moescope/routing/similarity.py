"""How alike signatures are."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist

Measure = Literal["cosine", "centred_cosine", "jensen_shannon", "weighted_jaccard"]
MEASURES: tuple[Measure, ...] = ("cosine", "centred_cosine", "jensen_shannon", "weighted_jaccard")


def similarity(values: np.ndarray, measure: Measure = "cosine") -> np.ndarray:
    """Similarity of every two signatures.

    Args:
        values: (N, D), rows of shares (one layer, or all layers side by side).
        measure: ``"cosine"`` as published; ``"centred_cosine"`` after taking the mean signature off, so that what all
            prompts share does not count; ``"jensen_shannon"``: 1 - Jensen-Shannon divergence in bits;
            ``"weighted_jaccard"``: shared over joint mass, sum of minima / sum of maxima.

    Returns:
        (N, N) float64, 1 on the diagonal.
    """
    if measure == "jensen_shannon":
        return np.asarray(1 - np.nan_to_num(cdist(values, values, "jensenshannon")) ** 2 / np.log(2))
    if measure == "weighted_jaccard":
        distance = cdist(values, values, "cityblock")
        total = values.sum(1)[:, None] + values.sum(1)[None]
        # min(a, b) = (a + b - |a - b|) / 2 and max likewise with +
        return np.asarray((total - distance) / np.maximum(total + distance, 1e-300))
    if measure == "centred_cosine":
        values = values - values.mean(0)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit = np.divide(values, length, out=np.zeros(values.shape), where=length > 1e-12)
    return np.asarray(unit @ unit.T)


def by_category(s: np.ndarray, y: np.ndarray, n_categories: int) -> np.ndarray:
    """(C, C) mean similarity of pairs from every two categories, a prompt with itself left out."""
    onehot = (y[:, None] == np.arange(n_categories)).astype(float)
    sums = onehot.T @ (s - np.diag(np.diag(s))) @ onehot
    size = onehot.sum(0)
    return np.asarray(sums / np.maximum(np.outer(size, size) - np.diag(size), 1))


def null_corrected(s: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Cosine beyond what random routing of the same lengths gives: 0 for that, 1 for equal signatures (N, N)."""
    return np.asarray((s - expected) / np.maximum(1 - expected, 1e-12))


def similarities(flat: np.ndarray, expected: np.ndarray) -> dict[str, np.ndarray]:
    """All measures of signatures (N, D); ``expected`` (N, N) is the cosine of random routing."""
    found: dict[str, np.ndarray] = {measure: similarity(flat, measure) for measure in MEASURES}
    found["null_corrected"] = null_corrected(found["cosine"], expected)
    return found
