"""Linear discriminant analysis in closed form from K x K moments.

With K features there is no need for a singular value decomposition of the rows: class means and the pooled
within-class scatter determine the classifier, and those of the first k features are the leading blocks of those of all K.
So one pass over the rows of a fold serves every K. Predictions equal those of scikit-learn's
``LinearDiscriminantAnalysis`` with the maximum-likelihood covariance: solver "lsqr", and "svd" (the default), which in
older versions divides the scatter by N - C instead of N. Constant and collinear features are dropped as "svd" does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from moescope.errors import InputError

_RANK_TOLERANCE = 1e-4  # scikit-learn's tol: a standardised direction with a smaller singular value is dropped


@dataclass(frozen=True)
class LDA:
    """A fitted classifier. Scores of a row x are ``x @ coef.T + intercept``, one per class."""

    classes: NDArray[Any]
    """Shape (C,)."""
    coef: NDArray[np.float64]
    """Shape (C, K)."""
    intercept: NDArray[np.float64]
    """Shape (C,)."""
    mean: NDArray[np.float64]
    """Overall mean, shape (K,); rows are centred on it first, so a large offset costs no precision."""

    def decision(self, X: ArrayLike) -> NDArray[np.float64]:
        """Log-posterior of each class up to a constant per row, shape (N, C)."""
        rows = np.asarray(X, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise InputError(f"this LDA was fitted on {len(self.mean)} features, but the rows have shape {rows.shape}")
        return (rows - self.mean) @ self.coef.T + self.intercept

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Posterior probabilities, shape (N, C)."""
        return np.asarray(softmax(self.decision(X), axis=-1))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class, shape (N,); the first of equals."""
        return np.asarray(self.classes[self.decision(X).argmax(axis=1)])


@dataclass(frozen=True)
class WithinMoments:
    """Class counts, means and pooled within-class scatter of K features: all that LDA needs."""

    classes: NDArray[Any]
    n: NDArray[np.int64]
    """Rows of each class, shape (C,)."""
    mean: NDArray[np.float64]
    """Overall mean, shape (K,)."""
    offset: NDArray[np.float64]
    """Class means minus the overall mean, shape (C, K)."""
    scatter: NDArray[np.float64]
    """Sum over classes of sum (x - mu_c)(x - mu_c)ᵀ, shape (K, K)."""

    def lda(self, k: int | None = None) -> LDA:
        """LDA on the first k features (all, when None)."""
        k = len(self.mean) if k is None else k
        n_rows = int(self.n.sum())
        scatter, offset = self.scatter[:k, :k], self.offset[:, :k]
        std = np.sqrt(np.diag(scatter) / n_rows)
        std[std == 0] = 1.0
        # Correlations scaled so that eigenvalues are the squared singular values that scikit-learn thresholds.
        value, vector = np.linalg.eigh(scatter / np.outer(std, std) / n_rows)
        kept = value > _RANK_TOLERANCE**2
        whiten = vector[:, kept] / np.sqrt(value[kept]) / std[:, None]  # (K, rank)
        projected = offset @ whiten  # (C, rank)
        intercept = np.log(self.n / n_rows) - 0.5 * (projected**2).sum(axis=1)
        return LDA(self.classes, projected @ whiten.T, intercept, self.mean[:k])


def within_moments(X: ArrayLike, y: ArrayLike) -> WithinMoments:
    """Moments of rows X (N, K) with classes y (N,), in float64, about the overall mean.

    Raises:
        InputError: for fewer than two classes, no more rows than classes, or a value that is not finite.
    """
    rows = np.asarray(X, dtype=np.float64)
    labels = np.asarray(y)
    if rows.ndim != 2 or rows.shape[1] == 0 or labels.shape != (len(rows),):
        raise InputError(f"LDA needs rows (N, K) and labels (N,), got shapes {rows.shape} and {labels.shape}")
    classes, code = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"LDA needs at least two classes, but all {len(rows)} rows are of class {classes.tolist()}")
    if len(rows) <= len(classes):
        raise InputError(f"LDA needs more rows than classes, but has {len(rows)} rows of {len(classes)} classes")
    if not np.isfinite(rows).all():
        raise InputError(f"row {int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])} holds a value that is not finite")
    mean = rows.mean(axis=0)
    n = np.bincount(code)
    centred = rows - mean
    offset = np.stack([centred[code == c].mean(axis=0) for c in range(len(classes))])
    residual = centred - offset[code]
    return WithinMoments(classes, n, mean, offset, residual.T @ residual)


def fit_lda(X: ArrayLike, y: ArrayLike) -> LDA:
    """LDA with class priors from the data, equal in predictions to scikit-learn's.

    Args:
        X: rows, shape (N, K), any float dtype; computed in float64.
        y: class of each row, shape (N,), any dtype that sorts.

    Raises:
        InputError: for fewer than two classes, no more rows than classes, or a value that is not finite.
    """
    return within_moments(X, y).lda()
