"""Label permutations that respect groups, and the p-values that follow from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

from moescope.errors import InputError


def permute_labels(y: ArrayLike, groups: ArrayLike | None, rng: np.random.Generator) -> NDArray[Any]:
    """Draw labels under the null that labels are exchangeable given the groups.

    A group that holds several classes (the right and the wrong answer to one question) has its labels shuffled within
    itself, so what the group shares can never look like an effect. Groups that hold one class exchange their label as a
    whole with each other, so rows of one group stay together; with one row per group this is the ordinary permutation.

    Args:
        y: labels, shape (N,).
        groups: group of each row, shape (N,), any dtype that sorts; None for one group per row.
        rng: source of randomness; the draw is a function of its state.

    Returns:
        Permuted labels, shape (N,), dtype of ``y``.

    Raises:
        InputError: when the lengths differ.
    """
    return _sampler(y, groups)(rng)


def permuted_label_matrix(
    y: ArrayLike, groups: ArrayLike | None, n_permutations: int, rng: np.random.Generator
) -> NDArray[Any]:
    """``n_permutations`` draws of :func:`permute_labels`, shape (P, N), with the grouping worked out once."""
    draw = _sampler(y, groups)
    out = np.empty((n_permutations, np.shape(y)[0]), dtype=np.asarray(y).dtype)
    for row in out:
        row[:] = draw(rng)
    return out


def _sampler(y: ArrayLike, groups: ArrayLike | None) -> Callable[[np.random.Generator], NDArray[Any]]:
    labels = np.asarray(y)
    if groups is None:
        return lambda rng: rng.permutation(labels)
    names = np.asarray(groups)
    if names.shape != labels.shape:
        raise InputError(f"groups have shape {names.shape}, labels {labels.shape}: give one group per row")
    _, code = np.unique(names, return_inverse=True)
    _, first = np.unique(code, return_index=True)
    mixed_group = np.zeros(len(first), dtype=bool)
    mixed_group[code[labels != labels[first[code]]]] = True

    mixed_rows = np.flatnonzero(mixed_group[code])
    mixed_rows = mixed_rows[np.argsort(code[mixed_rows], kind="stable")]
    mixed_code = code[mixed_rows]
    mixed_labels = labels[mixed_rows]
    pure_rows = np.flatnonzero(~mixed_group[code])
    pure_groups, pure_code = np.unique(code[pure_rows], return_inverse=True)
    pure_labels = labels[first[pure_groups]]

    def draw(rng: np.random.Generator) -> NDArray[Any]:
        out = labels.copy()
        if len(pure_rows):
            out[pure_rows] = rng.permutation(pure_labels)[pure_code]
        if len(mixed_rows):
            # Sorting by (group, random) shuffles each group in place, all groups at once.
            order = np.lexsort((rng.random(len(mixed_rows)), mixed_code))
            out[mixed_rows] = mixed_labels[order]
        return out

    return draw


def permutation_p(observed: ArrayLike, null: ArrayLike) -> Any:
    """(1 + #{null >= observed}) / (1 + P): never 0, and valid at any P (Phipson and Smyth 2010).

    Args:
        observed: a number or an array of any shape; larger is more extreme.
        null: the statistic under P permutations, shape (P,).

    Returns:
        p, a float for a scalar ``observed``, else an array of its shape.

    Raises:
        InputError: when ``null`` is empty or not one-dimensional, or either holds NaN.
    """
    sorted_null = np.sort(np.asarray(null, dtype=np.float64))
    values = np.asarray(observed, dtype=np.float64)
    if sorted_null.ndim != 1 or sorted_null.size == 0:
        raise InputError("the permutation null is empty: ask for at least one permutation")
    if np.isnan(sorted_null).any() or np.isnan(values).any():
        raise InputError("a permutation p-value needs numbers, but the statistic is NaN: check the scores that went in")
    at_least = sorted_null.size - np.searchsorted(sorted_null, values, side="left")
    p = (1.0 + at_least) / (1.0 + sorted_null.size)
    return float(p) if values.ndim == 0 else p


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values whose thresholding at q bounds the false discovery rate by q (Benjamini and Hochberg 1995).

    Args:
        p: p-values, shape (M,).

    Returns:
        Adjusted p-values, shape (M,), in the order given.

    Raises:
        InputError: when a value lies outside [0, 1].
    """
    return np.asarray(false_discovery_control(_probabilities(p)))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values whose thresholding at alpha bounds the chance of any false one by alpha (Holm 1979).

    Args:
        p: p-values, shape (M,).

    Returns:
        Adjusted p-values, shape (M,), in the order given.

    Raises:
        InputError: when a value lies outside [0, 1].

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = _probabilities(p)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def _probabilities(p: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1:
        raise InputError(f"p-values have shape {values.shape}: give a one-dimensional array")
    if not np.all((values >= 0) & (values <= 1)):
        raise InputError("a p-value lies outside [0, 1]")
    return values
