"""How much wider an interval must be because cross-validated hits share their training rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from moescope.errors import InputError
from moescope.select.nested import Classifier, Selection, check_training_sets, checked_ks, fitted
from moescope.select.ranking import top_k
from moescope.select.sums import Sigma, check_ints, divergence, fold_class_sums
from moescope.stats import class_weights


def interval_widening(
    X: NDArray[Any],
    y: ArrayLike,
    groups: ArrayLike,
    folds: Sequence[ArrayLike],
    ks: Sequence[int],
    *,
    sigma: Sigma = "pooled",
    classifier: Classifier = "lda",
    selection: Selection = "nested",
) -> NDArray[np.float64]:
    """By how much the interval of a cross-validated accuracy must be wider than one for independent hits, shape (nK,).

    Hits share training rows and the features that were chosen on them, so an interval of independent hits covers far less
    than it says. Nested cross-validation (Bates, Hastie and Tibshirani 2021, "Cross-validation: what does it estimate and how
    well does it do it?", algorithm 1) measures the error: for each fold, how far the cross-validation inside the other folds
    is from what the fold itself gives. The factor is that error's root over the naive standard error, from 1 to sqrt(F), times
    what the quantile of t with the degrees of freedom of one fold is over that of all rows.

    Args:
        groups: of each row, shape (N,): what is independent.
        folds: several divisions into the same number of folds, each (N,); the more, the steadier the factor.

    Raises:
        InputError: as :func:`nested_cv`; fewer than three folds.
    """
    labels, sizes = check_ints(y, len(X), "label"), checked_ks(ks)
    code = np.unique(np.asarray(groups), return_inverse=True)[1]
    weight = class_weights(labels)
    outcomes: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for division in folds:
        parts = check_ints(division, len(X), "fold")
        n_folds = check_training_sets(labels, parts)
        if n_folds < 3:
            raise InputError("nested cross-validation needs at least three folds", "n_folds")
        sums = fold_class_sums(X, labels, parts)
        overall = top_k(divergence(*sums.total(), sigma=sigma), max(sizes))
        pairs = [(f, g) for f in range(n_folds) for g in range(f, n_folds)]
        chosen = [
            top_k(divergence(*sums.train(*pair), sigma=sigma), max(sizes)) if selection == "nested" else overall
            for pair in pairs
        ]
        # (F, nK, N): weighted hits of each row by what was fitted without fold f and the row's own
        hits = np.zeros((n_folds, len(sizes), len(labels)))
        union, place = np.unique(np.concatenate(chosen), return_inverse=True)
        columns = X[:, union].astype(np.float64)
        for (f, g), at in zip(pairs, place.reshape(len(pairs), -1), strict=True):
            held = (parts == f) | (parts == g)
            shares = np.bincount(labels[~held], minlength=int(labels.max()) + 1) / (~held).sum()
            rows, train = columns[:, at], np.flatnonzero(~held)
            for i, scores in enumerate(fitted(rows[train], labels[train], rows[held], sizes, classifier)):
                right = weight[held] * ((scores / shares).argmax(axis=1) == labels[held])
                own = parts[held]
                hits[f, i, np.flatnonzero(held)[own == g]] = right[own == g]
                hits[g, i, np.flatnonzero(held)[own == f]] = right[own == f]
        outcomes.append((parts, hits))
    return widening_of(outcomes, code)


def widening_of(
    outcomes: Iterable[tuple[NDArray[np.int64], NDArray[np.float64]]], code: NDArray[np.intp]
) -> NDArray[np.float64]:
    """The factor of :func:`interval_widening`, (M,), for what is any mean over rows.

    Args:
        outcomes: of each division the fold of each row (N,), and (F, M, N): what counts of each row by what was fitted without
            fold f and the row's own.
        code: number of the group of each row, (N,).
    """
    apart: list[NDArray[np.float64]] = []
    noise: list[NDArray[np.float64]] = []
    naive: list[NDArray[np.float64]] = []
    for parts, hits in outcomes:
        n_folds = len(hits)
        outer = hits[parts, :, np.arange(len(parts))]  # (N, M)
        naive.append(_variance(outer, code))
        for f in range(n_folds):
            fold = parts == f
            inside = hits[f][:, ~fold].mean(axis=1)
            apart.append((inside - outer[fold].mean(axis=0)) ** 2)
            noise.append(_variance(outer[fold], code[fold]))
    error = np.maximum(np.mean(apart, axis=0) - np.mean(noise, axis=0), 0.0) * (n_folds - 1) / n_folds
    usual = np.mean(naive, axis=0)
    factor = np.clip(np.sqrt(error / np.where(usual > 0, usual, 1.0)), 1.0, np.sqrt(n_folds))
    # The error rests on means over folds, and is known no better than a fold has groups: the quantile of t, not the normal's.
    n_groups = int(code.max()) + 1
    tail = student.ppf(0.975, max(n_groups // n_folds - 1, 1)) / student.ppf(0.975, n_groups - 1)
    return np.asarray(np.where(usual > 0, factor, 1.0) * tail)


def _variance(values: NDArray[np.float64], code: NDArray[np.intp]) -> NDArray[np.float64]:
    """Variance of the mean over the rows (n, m), whose groups are independent, shape (m,)."""
    part = np.unique(code, return_inverse=True)[1]
    n_groups = int(part.max()) + 1
    sums = np.zeros((n_groups, values.shape[1]))
    np.add.at(sums, part, values - values.mean(axis=0))
    return np.asarray((sums**2).sum(axis=0) / len(values) ** 2 * n_groups / max(n_groups - 1, 1))
