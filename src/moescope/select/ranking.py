"""Ranking of neurons, and the sets that a ranking is compared with.

The heart is elsewhere and is exported here: :func:`fold_class_sums` and :func:`divergence` (``sums``),
:func:`permutation_max` (``null``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moescope.errors import InputError, check_count
from moescope.select.null import MaxNull, permutation_max
from moescope.select.sums import SIGMAS, ClassMoments, FoldSums, Sigma, divergence, fold_class_sums

__all__ = [
    "SIGMAS",
    "ClassMoments",
    "FoldSums",
    "MaxNull",
    "Sigma",
    "divergence",
    "fold_class_sums",
    "layer_matched_sets",
    "massive_dimensions",
    "permutation_max",
    "random_sets",
    "rank",
    "top_k",
    "top_variance",
]


def top_k(score: NDArray[np.float64], k: int, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Indices of the k largest scores, best first; of equal scores the lowest index first.

    Args:
        score: shape (D,), no NaN.
        k: how many.
        allowed: bool mask, shape (D,): features that may be chosen; None for all.

    Raises:
        InputError: when fewer than k features may be chosen, the scores or the mask are of another shape or dtype, or a score
            is NaN.
    """
    check_score(score)
    check_count("k", k)
    candidates = _candidates(len(score), allowed)
    if k > len(candidates):
        raise InputError(f"cannot choose k={k} features out of {len(candidates)}: k must lie between 1 and that number")
    values = score[candidates]
    # Everything at or above the k-th value, so that ties at the edge are settled by index and not by the partition.
    edge = np.partition(values, len(values) - k)[len(values) - k]
    best = np.flatnonzero(values >= edge)
    best = best[np.argsort(-values[best], kind="stable")][:k]
    return candidates[best].astype(np.int64)


def rank(score: NDArray[np.float64], allowed: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """All (allowed) features, best first; of equal scores the lowest index first.

    Raises:
        InputError: the scores or the mask are of another shape or dtype, or a score is NaN.
    """
    check_score(score)
    candidates = _candidates(len(score), allowed)
    return candidates[np.argsort(-score[candidates], kind="stable")].astype(np.int64)


def top_variance(moments: ClassMoments, k: int, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """The k features of the largest total variance: a control that never looks at labels."""
    share = (moments.n / moments.n.sum())[:, None]
    grand = (share * moments.mean).sum(axis=0)
    return top_k((share * (moments.var + (moments.mean - grand) ** 2)).sum(axis=0), k, allowed)


def massive_dimensions(
    X: NDArray[Any] | FoldSums | ClassMoments, factor: float = 20.0, layer_of: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """Flag features whose root mean square exceeds ``factor`` times the median of their layer.

    A few residual coordinates of most models are orders of magnitude above the rest (Sun et al. 2024, "Massive
    activations in large language models"), by their mean, their spread or both; they dominate norms and total variance
    whatever the task. A layer whose median is 0 flags what is above 0.

    Args:
        X: activations (N, D), or their sums or moments.
        factor: positive.
        layer_of: layer of each feature, shape (D,); None for one layer.

    Returns:
        Bool, shape (D,).

    Raises:
        InputError: for a factor that is not positive, or layers of another length.
    """
    if not factor > 0:
        raise InputError(f"factor={factor} must be positive")
    if isinstance(X, np.ndarray):
        nothing = np.zeros(len(X), dtype=np.int64)
        X = fold_class_sums(X, nothing, nothing)
    moments = X.total() if isinstance(X, FoldSums) else X
    share = (moments.n / moments.n.sum())[:, None]
    size = np.sqrt((share * (moments.var + moments.mean**2)).sum(axis=0))
    layer = np.zeros(len(size), dtype=np.int64) if layer_of is None else _layers(layer_of, len(size))
    flagged = np.zeros(len(size), dtype=bool)
    for one in np.unique(layer):
        inside = layer == one
        flagged[inside] = size[inside] > factor * np.median(size[inside])
    return flagged


def random_sets(
    rng: np.random.Generator, n_features: int, k: int, n_sets: int, allowed: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """``n_sets`` random sets of k distinct features, shape (n_sets, k).

    Raises:
        InputError: when k features do not exist.
    """
    if not isinstance(rng, np.random.Generator):
        raise InputError(f"{type(rng).__name__} is no generator; give numpy.random.default_rng(SEED)", "rng")
    candidates = _candidates(n_features, allowed)
    if not 0 < k <= len(candidates):
        raise InputError(f"cannot draw k={k} features out of {len(candidates)}: k must lie between 1 and that number")
    return np.stack([candidates[rng.choice(len(candidates), k, replace=False)] for _ in range(n_sets)]).astype(np.int64)


def layer_matched_sets(
    rng: np.random.Generator, circuit_idx: ArrayLike, layer_of: ArrayLike, k: int, n_sets: int
) -> NDArray[np.int64]:
    """Random sets that match a circuit in layers: entry j comes from the layer of the circuit's j-th feature.

    The circuit's own k features are left out, so a set never holds part of what it is a control for.

    Args:
        rng: source of randomness.
        circuit_idx: features of the circuit, best first, at least k.
        layer_of: layer of each feature, shape (D,).
        k: features per set.
        n_sets: number of sets.

    Returns:
        Shape (n_sets, k), distinct within a row.

    Raises:
        InputError: when a layer has too few other features.
    """
    circuit = np.asarray(circuit_idx, dtype=np.int64)[:k]
    if len(circuit) < k or k < 1:
        raise InputError(f"a set of k={k} cannot be matched to a circuit of {len(circuit)} features")
    layer = _layers(layer_of, None)
    if circuit.min() < 0 or circuit.max() >= len(layer):
        raise InputError(f"circuit feature {circuit.max()} is outside the {len(layer)} features that have a layer")
    out = np.empty((n_sets, k), dtype=np.int64)
    for one in np.unique(layer[circuit]):
        places = np.flatnonzero(layer[circuit] == one)
        pool = np.setdiff1d(np.flatnonzero(layer == one), circuit)
        if len(pool) < len(places):
            raise InputError(f"layer {one} has {len(pool)} features outside the circuit, too few to match its {len(places)}")
        for row in out:
            row[places] = rng.choice(pool, len(places), replace=False)
    return out


def check_score(score: NDArray[np.float64]) -> None:
    """That ``score`` has a number for each feature.

    Raises:
        InputError: it is no numpy array of real numbers, shape (D,), or holds a NaN.
    """
    if not isinstance(score, np.ndarray) or score.ndim != 1 or score.dtype.kind not in "fiu":
        what = f"{score.dtype} of shape {score.shape}" if isinstance(score, np.ndarray) else type(score).__name__
        raise InputError(f"{what} was given; give a numpy array of a number for each feature, shape (features,)", "score")
    if np.isnan(score).any():
        raise InputError(
            f"that of feature {int(np.flatnonzero(np.isnan(score))[0])} is NaN, so features cannot be ranked", "score"
        )


def _candidates(n_features: int, allowed: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    if allowed is None:
        return np.arange(n_features)
    mask = np.asarray(allowed)
    if mask.shape != (n_features,) or mask.dtype != np.bool_:
        raise InputError(f"the mask of allowed features has shape {mask.shape}, {mask.dtype}: give bool ({n_features},)")
    return np.flatnonzero(mask)


def _layers(layer_of: ArrayLike, n_features: int | None) -> NDArray[Any]:
    layer = np.asarray(layer_of)
    if layer.ndim != 1 or (n_features is not None and len(layer) != n_features):
        raise InputError(f"layers have shape {layer.shape}: give one layer per feature")
    return layer
