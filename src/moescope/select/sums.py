"""Per-fold, per-class sums of activations in one pass, and the divergence that follows from them.

Every training set of a cross-validation is the whole minus one fold, so one pass that keeps sums per (fold, class) ranks
the features of all folds: the 2.6 GB of 5,000 x 131,072 activations are read once, not once per fold, class and K.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moescope.errors import InputError
from moescope.kernels.loops import compiled, for_each

Sigma = Literal["pooled", "total", "negative"]
SIGMAS: tuple[Sigma, ...] = ("pooled", "total", "negative")
EPSILON = 1e-8
"""Added to sigma, as in the circuits paper: a feature without spread has divergence 0 / 1e-8 = 0, not NaN."""

_COLUMNS = 4096  # two float64 accumulators and the shift of one block: 96 KiB, inside a second-level cache
_HALF_ROWS = 256  # rows of a float16 block converted at a time: 4 MiB
_SAMPLE = 64  # rows from which the shift is estimated


class ClassMoments(NamedTuple):
    """Moments of each class; ``divergence(*moments)`` accepts them in this order."""

    mean: NDArray[np.float64]
    """Shape (C, D)."""
    var: NDArray[np.float64]
    """Population variance (divided by n), shape (C, D)."""
    n: NDArray[np.int64]
    """Rows of each class, shape (C,)."""


@dataclass(frozen=True)
class FoldSums:
    """Sums over the rows of each fold and class, about ``shift``.

    ``s1[f, c]`` is the sum of x - shift and ``s2[f, c]`` the sum of (x - shift)² over the rows of fold f and class c.
    """

    n: NDArray[np.int64]
    """Rows, shape (F, C)."""
    s1: NDArray[np.float64]
    """Shape (F, C, D)."""
    s2: NDArray[np.float64]
    """Shape (F, C, D)."""
    shift: NDArray[np.float64]
    """Near the mean of each feature, shape (D,): keeps s2 free of cancellation when the mean dwarfs the spread."""

    @property
    def n_folds(self) -> int:
        return len(self.n)

    @property
    def n_classes(self) -> int:
        return int(self.n.shape[1])

    @property
    def n_features(self) -> int:
        return int(self.s1.shape[2])

    def total(self) -> ClassMoments:
        """Moments over all rows."""
        return self._moments(self.n.sum(axis=0), self.s1.sum(axis=0), self.s2.sum(axis=0))

    def train(self, *held: int) -> ClassMoments:
        """Moments over the rows outside the folds ``held``, from sums that never saw their rows."""
        others = [f for f in range(self.n_folds) if f not in held]
        # Adding the other folds, not subtracting this one from the total: no cancellation, and provably no leak.
        return self._moments(self.n[others].sum(axis=0), self.s1[others].sum(axis=0), self.s2[others].sum(axis=0))

    def fold(self, fold: int) -> ClassMoments:
        """Moments over the rows of ``fold`` alone."""
        return self._moments(self.n[fold], self.s1[fold], self.s2[fold])

    def against_rest(self, one: int) -> FoldSums:
        """The sums of two classes: 1 is class ``one``, 0 all others. Nothing is read again."""
        others = [c for c in range(self.n_classes) if c != one]
        n, s1, s2 = (np.stack([v[:, others].sum(axis=1), v[:, one]], axis=1) for v in (self.n, self.s1, self.s2))
        return FoldSums(n, s1, s2, self.shift)

    def _moments(self, n: NDArray[np.int64], s1: NDArray[np.float64], s2: NDArray[np.float64]) -> ClassMoments:
        rows = np.maximum(n, 1)[:, None]
        offset = s1 / rows
        return ClassMoments(self.shift + offset, np.maximum(s2 / rows - offset * offset, 0.0), n)


def fold_class_sums(X: NDArray[Any], y: ArrayLike, folds: ArrayLike) -> FoldSums:
    """Sums per fold and class in one pass over ``X``, accumulated in float64.

    Args:
        X: activations, shape (N, D), float16, float32 or float64; may be a memory map.
        y: class of each row, shape (N,), ints 0..C-1.
        folds: fold of each row, shape (N,), ints 0..F-1.

    Raises:
        InputError: for wrong shapes, labels or folds that are not ints from 0, or a value that is not finite.
    """
    check_activations(X)
    labels, parts = check_ints(y, len(X), "label"), check_ints(folds, len(X), "fold")
    n_classes, n_folds = int(labels.max()) + 1, int(parts.max()) + 1
    cell = parts * n_classes + labels
    rows = np.argsort(cell, kind="stable")
    n = np.bincount(cell, minlength=n_folds * n_classes)
    starts = np.concatenate([[0], np.cumsum(n)])
    sample = X[np.linspace(0, len(X) - 1, min(_SAMPLE, len(X))).astype(np.int64)]
    with np.errstate(invalid="ignore", over="ignore"):
        shift = sample.mean(axis=0, dtype=np.float64)
    # A value that is not finite must show in the sums of its own column, through s2, not poison the shift alone.
    s1 = np.zeros((n_folds * n_classes, X.shape[1]))
    s2 = np.zeros_like(s1)

    def work(begin: int) -> None:
        end = min(begin + _COLUMNS, X.shape[1])
        columns = slice(begin, end)
        if X.dtype != np.float16:
            _accumulate(X[:, columns], rows, starts, shift[columns], s1[:, columns], s2[:, columns])
            return
        for c, (first, last) in enumerate(pairwise(starts.tolist())):  # numba has no float16 on CPUs
            for at in range(first, last, _HALF_ROWS):
                piece = X[rows[at : min(at + _HALF_ROWS, last)], columns].astype(np.float32)
                order, ends = np.arange(len(piece)), np.array([0, len(piece)])
                _accumulate(piece, order, ends, shift[columns], s1[c : c + 1, columns], s2[c : c + 1, columns])

    for_each(work, range(0, X.shape[1], _COLUMNS))
    bad = np.flatnonzero(~np.isfinite(s2).all(axis=0))
    if len(bad):
        row = int(np.flatnonzero(~np.isfinite(X[:, bad[0]]))[0]) if not np.isfinite(X[:, bad[0]]).all() else -1
        where = f"row {row}, feature {bad[0]}" if row >= 0 else f"feature {bad[0]} (its squares overflow)"
        raise InputError(f"activations are not finite at {where}: drop that row or capture in a wider dtype (fp32)")
    shape = (n_folds, n_classes, X.shape[1])
    return FoldSums(n.reshape(n_folds, n_classes).astype(np.int64), s1.reshape(shape), s2.reshape(shape), shift)


def check_activations(X: NDArray[Any]) -> None:
    """That ``X`` is a numpy array (N, D) of floats, or an InputError."""
    if not isinstance(X, np.ndarray) or X.ndim != 2 or X.dtype not in (np.float16, np.float32, np.float64):
        raise InputError("activations must be a numpy array of shape (rows, features) and dtype float16, float32 or float64")


def check_ints(values: ArrayLike, n_rows: int, what: str) -> NDArray[np.int64]:
    """Labels or folds as int64, or an InputError."""
    array = np.asarray(values)
    if array.shape != (n_rows,) or n_rows == 0:
        raise InputError(f"{what}s have shape {array.shape} for {n_rows} rows: give one {what} per row")
    if array.dtype.kind not in "biu" or array.min() < 0:
        raise InputError(f"{what}s must be ints from 0, but the {what} of row 0 is {array.tolist()[0]!r} ({array.dtype})")
    return array.astype(np.int64)


@compiled()
def _accumulate(x: Any, rows: Any, starts: Any, shift: Any, s1: Any, s2: Any) -> None:
    """Add rows cell by cell, so one cell's accumulators stay in cache; four rows a turn halve their traffic again."""
    width = x.shape[1]
    for cell in range(len(starts) - 1):
        t1, t2 = s1[cell], s2[cell]
        i, end = starts[cell], starts[cell + 1]
        while i + 4 <= end:
            xa, xb, xc, xd = x[rows[i]], x[rows[i + 1]], x[rows[i + 2]], x[rows[i + 3]]
            for j in range(width):
                a, b, c, d = xa[j] - shift[j], xb[j] - shift[j], xc[j] - shift[j], xd[j] - shift[j]
                t1[j] += (a + b) + (c + d)
                t2[j] += (a * a + b * b) + (c * c + d * d)
            i += 4
        while i < end:
            xa = x[rows[i]]
            for j in range(width):
                a = xa[j] - shift[j]
                t1[j] += a
                t2[j] += a * a
            i += 1


def divergence(
    mean: NDArray[np.float64], var: NDArray[np.float64], n: NDArray[np.int64], sigma: Sigma = "pooled"
) -> NDArray[np.float64]:
    """Divergence of each feature: the largest |mu_c - mu_c'| / (sigma + 1e-8) over pairs of classes.

    The circuits paper defines it for two classes and leaves sigma open. ``"pooled"``: standard deviation within
    classes; ``"total"``: over all rows, which bounds the two-class divergence by 2 when classes are balanced;
    ``"negative"``: of class 0. All divide by n. For two classes total = pooled / sqrt(1 + w pooled²) with w the product
    of the class shares, so the two rank features identically: an identity, not agreement.

    Args:
        mean: class means, shape (C, D).
        var: class population variances, shape (C, D).
        n: rows of each class, shape (C,).
        sigma: one of ``SIGMAS``.

    Returns:
        Shape (D,), float64, not negative. Classes without rows take no part.

    Raises:
        InputError: for an unknown sigma, fewer than two classes with rows, or ``"negative"`` without rows of class 0.
    """
    if sigma not in SIGMAS:
        raise InputError(f"sigma={sigma!r} is not one of {', '.join(SIGMAS)}")
    if np.ndim(n) != 1 or np.ndim(mean) != 2 or np.shape(mean) != np.shape(var) or len(mean) != len(n):
        shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in (("mean", mean), ("var", var), ("n", n)))
        raise InputError(f"shapes do not fit ({shapes}); give the moments of fold_class_sums(X, y, folds).total()", "mean")
    present = np.asarray(n) > 0
    if present.sum() < 2:
        raise InputError("divergence compares classes, but fewer than two classes have rows: check the labels or the folds")
    if sigma == "negative":
        if not present[0]:
            raise InputError('sigma="negative" is the spread of class 0, which has no rows: number the negative class 0')
        variance = var[0]
    share = (np.asarray(n)[present] / np.asarray(n).sum())[:, None]
    centre, spread = mean[present], var[present]
    if sigma != "negative":
        variance = (share * spread).sum(axis=0)
    if sigma == "total":
        variance = variance + (share * (centre - (share * centre).sum(axis=0)) ** 2).sum(axis=0)
    # The largest difference over pairs is the range.
    return np.asarray((centre.max(axis=0) - centre.min(axis=0)) / (np.sqrt(variance) + EPSILON))


def separation(mean: NDArray[np.float64], var: NDArray[np.float64], n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Spread of the class means over that within classes, of each feature: the other way to make one number of C classes.

    sqrt(sum_c pi_c (mu_c - mu)²) / (sigma + 1e-8) with pi_c the classes' shares and sigma pooled: Cohen's f (Cohen 1988,
    "Statistical Power Analysis", section 8.2), whose square is Fisher's between-class over within-class variance (Fisher 1936)
    and which ranks features as the F test of one-way analysis of variance does. :func:`divergence` sees the two classes that
    lie furthest apart alone; this sees all. Two classes: f = D sqrt(pi_0 pi_1), so that both rank identically.

    Args:
        mean, var, n: as for :func:`divergence`.

    Returns:
        Shape (D,), float64, not negative. Classes without rows take no part.
    """
    present = np.asarray(n) > 0
    share = (np.asarray(n)[present] / np.asarray(n).sum())[:, None]
    centre = mean[present]
    between = (share * (centre - (share * centre).sum(axis=0)) ** 2).sum(axis=0)
    return np.asarray(np.sqrt(between) / (np.sqrt((share * var[present]).sum(axis=0)) + EPSILON))
