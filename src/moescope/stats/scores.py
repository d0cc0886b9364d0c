"""Scores of a ranking or a confidence: AUROC with ties, and accuracy against coverage."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from moescope.errors import InputError


def class_weights(y: ArrayLike) -> NDArray[np.float64]:
    """Weights (N,) under which the mean of what is right is the balanced accuracy: its mean over the classes of ``y`` (N,)."""
    _, code, counts = np.unique(np.asarray(y), return_inverse=True, return_counts=True)
    return np.asarray(len(code) / (len(counts) * counts[code]))


def auroc(scores: ArrayLike, y: ArrayLike) -> Any:
    """Probability that a positive outscores a negative, ties counting half (Mann-Whitney U / n0 n1).

    Args:
        scores: shape (N,), or (N, M) for M scores of the same rows.
        y: shape (N,): bool or 0/1, True for positives.

    Returns:
        A float, or an array of shape (M,).

    Raises:
        InputError: when one class is missing, lengths differ, y is not binary, or a score is NaN.
    """
    values = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(y)
    if labels.ndim != 1 or values.shape[:1] != labels.shape or values.ndim > 2:
        raise InputError(f"AUROC needs one score and one label per row, got shapes {values.shape} and {labels.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise InputError("AUROC needs labels 0 and 1: compare one class against the rest")
    positive = labels.astype(bool)
    n1 = int(positive.sum())
    n0 = len(positive) - n1
    if n0 == 0 or n1 == 0:
        raise InputError(f"AUROC needs both classes, but these rows have {n1} positives and {n0} negatives")
    if np.isnan(values).any():
        raise InputError("a score is NaN, so AUROC is undefined")
    area = (rankdata(values, axis=0)[positive].sum(axis=0) - n1 * (n1 + 1) / 2) / (n0 * n1)
    return float(area) if values.ndim == 1 else area


def macro_auroc(scores: ArrayLike, y: ArrayLike) -> float:
    """AUROC of each class against the rest, the mean over classes; chance is 0.5 whatever their number (Provost and Domingos
    2001; unlike Hand and Till's, which is over pairs, every row counts for every class).

    Args:
        scores: shape (N, C), such as class probabilities. Two classes: :func:`auroc` of the second column, which is the mean.
        y: shape (N,): ints 0..C-1.

    Raises:
        InputError: as :func:`auroc`.
    """
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(y)
    if values.shape[1] == 2:
        return float(auroc(values[:, 1], labels))
    return float(np.mean([auroc(values[:, c], labels == c) for c in range(values.shape[1])]))


def sign_free_auroc(scores: ArrayLike, y: ArrayLike) -> Any:
    """max(AUROC, 1 - AUROC): how well scores separate when polarity is arbitrary, as it is in zero-shot transfer.

    Chance is above 0.5: about 0.5 + sqrt((n0 + n1 + 1) / (6 pi n0 n1)) for scores unrelated to the labels.
    """
    area = auroc(scores, y)
    folded = np.maximum(area, 1 - np.asarray(area))
    return float(folded) if np.ndim(area) == 0 else folded


class SelectiveCurve(NamedTuple):
    """Accuracy on the share of rows that are answered, as the confidence threshold falls."""

    threshold: NDArray[np.float64]
    """Distinct confidences, highest first, shape (T,): rows at or above are answered."""
    coverage: NDArray[np.float64]
    """Share of rows answered, shape (T,); the last is 1."""
    accuracy: NDArray[np.float64]
    """Accuracy on the answered rows, shape (T,); the last is the full accuracy."""

    def at(self, threshold: float) -> tuple[float, float]:
        """(coverage, selective accuracy) when rows with confidence >= threshold are answered; NaN accuracy for none."""
        answered = int(np.searchsorted(-self.threshold, -threshold, side="right"))
        if answered == 0:
            return 0.0, float("nan")
        return float(self.coverage[answered - 1]), float(self.accuracy[answered - 1])


def selective(confidence: ArrayLike, correct: ArrayLike) -> SelectiveCurve:
    """Risk-coverage curve (El-Yaniv and Wiener 2010). What the circuits paper calls "coverage" is this abstention.

    Args:
        confidence: shape (N,), larger is surer, such as the highest class probability.
        correct: shape (N,), bool.

    Raises:
        InputError: when shapes differ, there are no rows, or a confidence is NaN.
    """
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if sure.ndim != 1 or sure.shape != right.shape or len(sure) == 0:
        raise InputError(f"a selective curve needs one confidence per row, got shapes {sure.shape} and {right.shape}")
    if np.isnan(sure).any():
        raise InputError("a confidence is NaN, so rows cannot be ordered by it")
    order = np.argsort(-sure, kind="stable")
    ranked = sure[order]
    # Rows of equal confidence are answered together: a threshold cannot split them.
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    answered = last + 1
    hits = np.cumsum(right[order])[last]
    return SelectiveCurve(ranked[last], answered / len(sure), hits / answered)
