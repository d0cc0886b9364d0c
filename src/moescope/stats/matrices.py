"""Regression of one matrix of distances or similarities on others, where pairs that share a member are not independent.

A permutation of the members' order keeps that dependence. Permuting a whole predictor (the Mantel test, and its partial forms)
also breaks the predictor's own relation with the other predictors, and finds too much where they are alike; *double
semi-partialling* permutes only what the others leave of it (Dekker, Krackhardt and Snijders 2007, "Sensitivity of MRQAP tests
to collinearity and autocorrelation conditions", Psychometrika 72).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, permutations

import numpy as np
from numpy.typing import NDArray

from moescope.errors import InputError


@dataclass(frozen=True)
class MatrixRegression:
    """What one predictor says of a response, the others given.

    Attributes:
        partial: correlation of the two once the others are taken out, -1 to 1. In its order is t, the statistic of the source:
            ``t = partial * sqrt(df / (1 - partial**2))``.
        draws: (P,) the same under permuted members; all other orders where there are no more than were asked for.
        members, pairs: how many there are.
    """

    partial: float
    draws: NDArray[np.float64] = field(repr=False)
    members: int
    pairs: int


def semi_partialled(
    response: NDArray[np.float64],
    predictor: NDArray[np.float64],
    others: Sequence[NDArray[np.float64]] = (),
    *,
    n: int = 999,
    seed: int = 0,
) -> MatrixRegression:
    """Regress a symmetric matrix (M, M) on a predictor and ``others`` of that shape; diagonals are not read.

    Args:
        n: permutations at most.

    Raises:
        InputError: fewer pairs than the regression needs, a matrix of another shape or that is not symmetric, a value that
            is not finite, or no variation beyond the others.
    """
    members = len(response)
    upper = np.triu_indices(members, 1)
    matrices = [np.asarray(m, dtype=np.float64) for m in (response, predictor, *others)]
    if any(m.shape != (members, members) or not np.array_equal(m[upper], m.T[upper], equal_nan=True) for m in matrices):
        raise InputError(f"matrices must be symmetric and of one shape, that of the response {np.shape(response)}")
    y, x, *z = (m[upper] for m in matrices)
    if not all(np.isfinite(values).all() for values in (y, x, *z)):
        raise InputError("a pair has a value that is not finite; leave its members out")
    given, _ = np.linalg.qr(np.column_stack([np.ones(len(y)), *map(_scaled, z)]))
    if len(y) < given.shape[1] + 2:
        raise InputError(f"{members} members have {len(y)} pairs, too few for {len(matrices) - 1} predictors")
    left_y, left_x = (values - given @ (given.T @ values) for values in (y, x))
    if min(np.ptp(left_y) / (np.ptp(y) or 1.0), np.ptp(left_x) / (np.ptp(x) or 1.0)) < 1e-9:
        raise InputError("the response or the predictor does not vary beyond the other predictors")
    residual = np.zeros((members, members))
    residual[upper] = left_x
    residual += residual.T
    orders = _orders(members, n, seed)
    drawn = residual[orders[:, upper[0]], orders[:, upper[1]]]  # (P, pairs)
    drawn -= drawn @ given @ given.T
    size = np.linalg.norm(left_y) * np.linalg.norm(drawn, axis=1)
    draws = drawn @ left_y / np.where(size > 0, size, 1.0)
    partial = float(left_x @ left_y / (np.linalg.norm(left_x) * np.linalg.norm(left_y)))
    return MatrixRegression(partial, draws, members, len(y))


def members_needed(draws: int) -> int:
    """The fewest members of which there are so many orders beside their own."""
    members = 2
    while math.factorial(members) - 1 < draws:
        members += 1
    return members


def _orders(members: int, n: int, seed: int) -> NDArray[np.int64]:
    """(P, M) orders other than the given one: all, or ``n`` at random."""
    if math.factorial(min(members, 20)) - 1 <= n:
        return np.array(list(islice(permutations(range(members)), 1, None)), dtype=np.int64)
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((n, members)), axis=1)


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((values - values.mean()) / (values.std() or 1.0))
