"""Neurons for a graded label: correlation instead of divergence, ridge regression instead of a classifier, the same folds.

What is a divergence between two classes becomes |r|, the absolute Pearson correlation with the label: the slope of the
standardised label on the standardised neuron. On a label of two values r is the divergence by the total spread times the root
of the product of the classes' shares (the point-biserial correlation), so that both rank the same neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moescope.errors import InputError
from moescope.select.nested import Selection, checked_ks
from moescope.select.null import MaxNull
from moescope.select.ranking import top_k
from moescope.select.sums import check_activations, check_ints
from moescope.select.widening import widening_of
from moescope.stats import permutation_p, permuted_label_matrix

PENALTIES = tuple(10.0**power for power in range(-3, 5))
"""of a ridge on standardised features, as a multiple of the number of rows; which is chosen in training"""
_COLUMNS = 4096  # of float64 at a time
_TINY = 1e-12
_SLACK = 1e-6


@dataclass(frozen=True)
class GradedSums:
    """Sums over the rows of each fold, of the features less ``shift`` and the values less their mean.

    ``n``, ``y1``, ``y2`` (F,): rows, sums and squares of the values; ``x1``, ``x2``, ``xy`` (F, D).
    """

    n: NDArray[np.int64]
    y1: NDArray[np.float64]
    y2: NDArray[np.float64]
    x1: NDArray[np.float64]
    x2: NDArray[np.float64]
    xy: NDArray[np.float64]

    def correlation(self, *held: int) -> NDArray[np.float64]:
        """Pearson's r of each feature with the values over the rows outside the folds ``held``, (D,); 0 without spread."""
        use = [f for f in range(len(self.n)) if f not in held]
        n = float(self.n[use].sum())
        x1, x2, xy = (part[use].sum(axis=0) / n for part in (self.x1, self.x2, self.xy))
        y1, y2 = float(self.y1[use].sum() / n), float(self.y2[use].sum() / n)
        spread = np.maximum(x2 - x1 * x1, 0.0) * max(y2 - y1 * y1, 0.0)
        known = spread > _TINY * np.maximum(x2, _TINY) * max(y2, _TINY)
        return np.asarray(np.where(known, (xy - x1 * y1) / np.sqrt(np.where(known, spread, 1.0)), 0.0))


def graded_sums(X: NDArray[Any], values: ArrayLike, folds: ArrayLike) -> GradedSums:
    """Sums by fold in one pass over ``X`` (N, D), float16, float32 or float64, in float64.

    Raises:
        InputError: for wrong shapes, values or activations that are not finite, or values that are all the same.
    """
    check_activations(X)
    parts, y = check_ints(folds, len(X), "fold"), check_values(values, len(X))
    y = y - y.mean()
    member = (parts == np.arange(int(parts.max()) + 1)[:, None]).astype(np.float64)  # (F, N)
    width = X.shape[1]
    x1, x2, xy = (np.empty((len(member), width)) for _ in range(3))
    for begin in range(0, width, _COLUMNS):
        at = slice(begin, min(begin + _COLUMNS, width))
        block = X[:, at].astype(np.float64)
        if not np.isfinite(block).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(block))[0])
            raise InputError(f"activations are not finite at row {row}, feature {begin + column}: drop that row")
        block -= block.mean(axis=0)
        x1[:, at], x2[:, at], xy[:, at] = member @ block, member @ block**2, (member * y) @ block
    return GradedSums(member.sum(axis=1).astype(np.int64), member @ y, member @ y**2, x1, x2, xy)


def check_values(values: ArrayLike, n_rows: int) -> NDArray[np.float64]:
    """Graded labels as float64 (N,), or an InputError."""
    y = np.asarray(values, dtype=np.float64)
    if y.shape != (n_rows,) or n_rows == 0:
        raise InputError(f"values have shape {y.shape} for {n_rows} rows: give one value per row")
    if not np.isfinite(y).all():
        raise InputError(f"the value of row {int(np.flatnonzero(~np.isfinite(y))[0])} is not finite: drop that row")
    if np.ptp(y) == 0:
        raise InputError(f"all {n_rows} values are {y[0]:g}: a graded label must differ between rows")
    return y


@dataclass(frozen=True)
class Ridge:
    """A fitted linear reading of K features: ``predict(X)`` is (N,)."""

    coef: NDArray[np.float64]
    mean: NDArray[np.float64]
    intercept: float
    penalty: float

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        return np.asarray((np.asarray(X, dtype=np.float64) - self.mean) @ self.coef + self.intercept)


def fit_ridge(X: ArrayLike, values: ArrayLike) -> Ridge:
    """Ridge regression (Hoerl and Kennard 1970) on standardised features; the penalty of :data:`PENALTIES` with the least
    leave-one-out error over these rows, in closed form (PRESS, Allen 1974).

    Args:
        X: (N, K), any float dtype; computed in float64. K may exceed N.
        values: (N,).
    """
    rows, y = np.asarray(X, dtype=np.float64), np.asarray(values, dtype=np.float64)
    mean, middle = rows.mean(axis=0), float(y.mean())
    sd = rows.std(axis=0)
    scale = np.where(sd > _TINY * np.maximum(np.abs(mean), 1.0), 1.0 / np.where(sd > 0, sd, 1.0), 0.0)
    u, s, vt = np.linalg.svd((rows - mean) * scale, full_matrices=False)
    projected, n = u.T @ (y - middle), len(y)
    best, error = PENALTIES[-1], np.inf
    for penalty in PENALTIES:
        shrunk = s**2 / (s**2 + penalty * n)
        leverage = 1 / n + (u**2) @ shrunk
        left = float(np.square((y - middle - u @ (shrunk * projected)) / np.maximum(1 - leverage, _TINY)).mean())
        if left < error:
            best, error = penalty, left
    return Ridge(scale * (vt.T @ (s / (s**2 + best * n) * projected)), mean, middle, best)


@dataclass(frozen=True)
class GradedCV:
    """Held-out readings of a cross-validation for several circuit sizes; every row is held out once."""

    ks: tuple[int, ...]
    said: NDArray[np.float64]
    """the value that each row is given when held out, (nK, N)"""
    selected: NDArray[np.int64]
    """features chosen for each fold, best first, (F, max K)"""


def graded_cv(
    X: NDArray[Any],
    values: ArrayLike,
    folds: ArrayLike,
    ks: Sequence[int],
    *,
    selection: Selection = "nested",
    allowed: NDArray[np.bool_] | None = None,
    sums: GradedSums | None = None,
) -> GradedCV:
    """Choose the K features of the largest |r| on the training folds, fit a ridge on them, and read the held-out fold.

    Args:
        X: activations (N, D). values: (N,). folds: (N,) ints 0..F-1; groups must not straddle folds.
        selection: ``"nested"``, or ``"global"``, which chooses on all rows and is optimistic.
        allowed: bool (D,), features that may be chosen.
        sums: those of X, values and folds when they are known.

    Raises:
        InputError: as :func:`graded_sums`; fewer than two folds; k out of range.
    """
    sizes = checked_ks(ks)
    sums = graded_sums(X, values, folds) if sums is None else sums
    n_folds, largest = len(sums.n), max(sizes)
    if n_folds < 2:
        raise InputError("cross-validation needs at least two folds", "n_folds")
    # of all rows: nothing is held out
    held = [(fold,) if selection == "nested" else () for fold in range(n_folds)]
    chosen = [top_k(np.abs(sums.correlation(*out)), largest, allowed) for out in held]
    return _held_out(X, np.asarray(values, dtype=np.float64), np.asarray(folds), chosen, sizes)


def fixed_graded_cv(X: NDArray[Any], values: ArrayLike, folds: ArrayLike) -> NDArray[np.float64]:
    """Held-out readings (N,) of a ridge on given features, X (N, K), with no selection."""
    y, parts = np.asarray(values, dtype=np.float64), np.asarray(folds)
    every = [np.arange(X.shape[1])] * (int(parts.max()) + 1)
    return np.asarray(_held_out(X, y, parts, every, (X.shape[1],)).said[0])


def _held_out(
    X: NDArray[Any], y: NDArray[np.float64], folds: NDArray[Any], chosen: Sequence[NDArray[np.int64]], sizes: tuple[int, ...]
) -> GradedCV:
    said = np.empty((len(sizes), len(y)))
    for fold, features in enumerate(chosen):
        held = folds == fold
        rows = X[:, features].astype(np.float64)
        for i, k in enumerate(sizes):
            said[i, held] = fit_ridge(rows[~held, :k], y[~held]).predict(rows[held, :k])
    return GradedCV(sizes, said, np.stack(chosen))


def training_means(values: NDArray[np.float64], folds: NDArray[Any]) -> NDArray[np.float64]:
    """(N,): the mean over the rows that a row's fold was not held out of: what is said of it without any knowledge."""
    means = [float(values[folds != fold].mean()) for fold in range(int(folds.max()) + 1)]
    return np.asarray(np.asarray(means)[folds], dtype=np.float64)


def correlation_max(
    X: NDArray[Any], values: ArrayLike, groups: ArrayLike | None = None, *, n_permutations: int = 1000, seed: int = 0
) -> MaxNull:
    """Null of the largest |r| over features under permuted values (Westfall and Young 1993), as
    :func:`~moescope.select.null.permutation_max` for classes; values of one group are permuted as labels are.
    """
    y = check_values(values, len(X))
    folds = np.zeros(len(X), dtype=np.int64)
    observed = np.abs(graded_sums(X, y, folds).correlation())
    drawn = permuted_label_matrix(y, groups, n_permutations, np.random.default_rng(seed))
    drawn = drawn - drawn.mean(axis=1, keepdims=True)
    drawn /= np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), _TINY)
    best = np.zeros(n_permutations)
    for begin in range(0, X.shape[1], _COLUMNS):
        block = X[:, begin : begin + _COLUMNS].astype(np.float64)
        block -= block.mean(axis=0)
        size = np.linalg.norm(block, axis=0)
        block *= np.where(observed[begin : begin + _COLUMNS] > 0, 1 / np.where(size > 0, size, 1.0), 0.0)
        best = np.maximum(best, np.abs(drawn @ block).max(axis=1))
    return MaxNull(best, observed, permutation_p(observed * (1 - _SLACK), best))


def graded_widening(
    X: NDArray[Any],
    values: NDArray[np.float64],
    groups: ArrayLike,
    folds: Sequence[NDArray[np.int64]],
    k: int,
    *,
    selection: Selection = "nested",
) -> float:
    """:func:`~moescope.select.widening.interval_widening` for the share of variance that K features explain."""
    code = np.unique(np.asarray(groups), return_inverse=True)[1]
    outcomes = []
    for parts in folds:
        sums, n_folds = graded_sums(X, values, parts), int(parts.max()) + 1
        spread = float(np.square(values - training_means(values, parts)).mean())
        gained = np.zeros((n_folds, 1, len(values)))
        for f in range(n_folds):
            for g in range(f, n_folds):
                held = (parts == f) | (parts == g)
                chosen = top_k(np.abs(sums.correlation(f, g) if selection == "nested" else sums.correlation()), k)
                rows = X[:, chosen].astype(np.float64)
                left = np.square(values - fit_ridge(rows[~held], values[~held]).predict(rows))
                gained[f, 0, parts == g] = 1 - left[parts == g] / spread
                gained[g, 0, parts == f] = 1 - left[parts == f] / spread
        outcomes.append((parts, gained))
    return float(widening_of(outcomes, code)[0])
