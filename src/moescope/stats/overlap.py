"""Overlap of feature sets against what chance would give.

Two random sets of 10 out of 131,072 are disjoint with probability 99.92 %, so "no overlap" alone says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import hypergeom

from moescope.errors import InputError


def _check(k: int, n: int) -> None:
    if not 0 < k <= n:
        raise InputError(f"a set of k={k} out of n={n} features does not exist: k must lie between 1 and n")


def expected_overlap(k: int, n: int) -> float:
    """Expected size of the intersection of two independent random k-sets of n features: k² / n."""
    _check(k, n)
    return k * k / n


def disjoint_probability(k: int, n: int) -> float:
    """Probability that two independent random k-sets of n features share nothing."""
    _check(k, n)
    return float(hypergeom.pmf(0, n, k, k))


def overlap_p(overlap: int, k: int, n: int) -> float:
    """Probability that two independent random k-sets of n features share at least ``overlap`` (hypergeometric tail).

    Raises:
        InputError: when ``overlap`` is not between 0 and k.
    """
    _check(k, n)
    if not 0 <= overlap <= k:
        raise InputError(f"an overlap of {overlap} between two sets of {k} does not exist")
    return float(hypergeom.sf(overlap - 1, n, k, k))


def kuncheva(a: Iterable[int], b: Iterable[int], n: int) -> float:
    """Chance-corrected overlap of two sets of equal size k (Kuncheva 2007): (r n - k²) / (k (n - k)).

    1 for equal sets, 0 on average for random ones, at least -k / (n - k).

    Raises:
        InputError: when the sizes differ, or k = n (every set is then the same set).
    """
    left, right = {int(i) for i in a}, {int(i) for i in b}
    k = len(left)
    if k != len(right):
        raise InputError(f"Kuncheva's index compares sets of one size, but these have {k} and {len(right)}: use nogueira")
    _check(k, n)
    if k == n:
        raise InputError(f"Kuncheva's index is undefined for k = n = {n}: every set is the same")
    return (len(left & right) * n - k * k) / (k * (n - k))


def nogueira(selections: ArrayLike) -> float:
    """Stability of M selections, corrected for chance (Nogueira, Sechidis and Brown 2018, equation 4).

    1 - mean_f s_f² / (q (1 - q)), with s_f² the unbiased variance of feature f's selection over the M runs and q the
    mean share of features selected. For M = 2 sets of one size it equals Kuncheva's index.

    Args:
        selections: shape (M, D), bool or 0/1: row m marks the features that run m selected.

    Raises:
        InputError: with fewer than two rows, or when all or none of the features are selected everywhere.
    """
    z = np.asarray(selections, dtype=np.float64)
    if z.ndim != 2 or z.shape[0] < 2:
        raise InputError(f"stability needs at least two selections as rows of a matrix, got shape {z.shape}")
    runs = z.shape[0]
    share = z.mean(axis=0)
    q = share.mean()
    if q in (0.0, 1.0):
        raise InputError("stability is undefined when every run selects all features, or none")
    variance = runs / (runs - 1) * share * (1 - share)
    return float(1 - variance.mean() / (q * (1 - q)))
