"""Does a curve over training jump, or does a smooth one suffice?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moescope.errors import InputError
from moescope.stats.intervals import bootstrap_sums, expanded_percentiles
from moescope.stats.permutation import permutation_p

_LEAST = 6  # points of a curve in which a jump can be told from a bend
_CENTRES = 25
_WIDTHS = (1.0, 1.5, 2.25, 3.4, 5.0, 10.0)
_TAILS = float(np.log(81))  # from 10 to 90 % of a logistic curve, in units of its scale


class Jump(NamedTuple):
    """The rise between two neighbouring points that a smooth curve explains least."""

    after: int
    """number of the point before it"""
    size: float
    """how much more the curve rises there than the smooth one, in the unit of the values; below 0 where it falls"""
    low: float
    high: float
    """95 % interval of ``size``, which holds at all places at once, so also at the one that was chosen"""
    p: float
    """that a smooth curve has as large a rise anywhere beyond it; the choice of the place is allowed for"""
    rise: float
    """the whole rise between the two points"""
    hidden: bool
    """a larger rise lies between two points that are too far apart to tell"""


def largest_jump(
    x: ArrayLike, values: ArrayLike, groups: ArrayLike | None = None, *, width: float = 2.0, draws: int = 999, seed: int = 0
) -> Jump | None:
    """The largest jump of the mean of ``values`` along ``x``, against a smooth curve.

    Smooth is a logistic curve whose rise from 10 to 90 % takes at least ``width`` of ``x``, up to a straight line. The
    statistic is the largest |rise beyond the fitted smooth curve| of all neighbours at most ``width`` apart (a sup test:
    Andrews 1993, "Tests for parameter instability and structural change with unknown change point"). Its null is drawn
    from that fitted curve, with the deviations of resampled groups, so that points share their rows' luck.

    Args:
        x: shape (T,), rising: for training, log2 of the steps plus one; ``width`` 2 is then a fourfold training.
        values: shape (N, T): of each row its value at each point, such as ``correct``.
        groups: shape (N,); None for one group a row.

    Returns:
        None of fewer than six points, and where no two neighbours lie within ``width``.

    Raises:
        InputError: ``x`` does not rise, or has not a value for each column.

    >>> import numpy as np
    >>> rng, x = np.random.default_rng(0), np.arange(12.0)
    >>> rate = np.where(x < 6, 0.5, 0.9)
    >>> found = largest_jump(x, rng.random((400, 12)) < rate)
    >>> found.after, found.p < 0.01
    (5, True)
    """
    at, rows = np.asarray(x, float), np.asarray(values, float)
    if rows.shape[1:] != at.shape or (np.diff(at) <= 0).any():
        raise InputError(f"a jump needs points that rise, and values of shape (rows, {len(at)}); got {rows.shape}")
    near = np.flatnonzero(np.diff(at) <= width)
    if len(at) < _LEAST or not len(near):
        return None
    means = _resampled(rows, groups, draws, seed)
    mean = rows.mean(0)
    smooth = _Smooth(at, width)

    def beyond(curves: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.diff(curves - smooth(curves), axis=-1)

    observed = beyond(mean[None])[0]
    chosen = int(near[np.abs(observed)[near].argmax()])
    size = float(observed[chosen])
    p = permutation_p(abs(size), np.abs(beyond(smooth(mean[None]) + means - mean))[:, near].max(1))
    apart = np.abs(beyond(means) - observed)[:, near].max(1)
    _, half = expanded_percentiles(apart, len(np.unique(groups)) if groups is not None else len(rows), 0.9)
    rises = np.diff(mean)
    far = np.setdiff1d(np.arange(len(rises)), near)
    hidden = bool(len(far)) and bool(np.abs(rises[far]).max() > np.abs(rises[near]).max())
    return Jump(chosen, size, size - half, size + half, p, float(rises[chosen]), hidden)


class _Smooth:
    """Fits logistic curves of bounded steepness, of which all but the place and the width is linear."""

    def __init__(self, x: NDArray[np.float64], width: float) -> None:
        onto = []
        for scale in width / _TAILS * np.asarray(_WIDTHS):
            for centre in np.linspace(x[0], x[-1], _CENTRES):
                columns = np.stack([np.ones_like(x), 1 / (1 + np.exp(-np.clip((x - centre) / scale, -50, 50)))], 1)
                onto.append(columns @ np.linalg.pinv(columns))
        columns = np.stack([np.ones_like(x), x], 1)
        self._onto = np.stack([*onto, columns @ np.linalg.pinv(columns)])  # (curves, T, T)

    def __call__(self, curves: NDArray[np.float64]) -> NDArray[np.float64]:
        """The smooth curve nearest to each of (B, T)."""
        best, least = np.zeros_like(curves), np.full(len(curves), np.inf)
        for onto in self._onto:
            fitted = curves @ onto
            off = ((curves - fitted) ** 2).sum(1)
            better = off < least
            best[better], least[better] = fitted[better], off[better]
        return best


def _resampled(rows: NDArray[np.float64], groups: ArrayLike | None, draws: int, seed: int) -> NDArray[np.float64]:
    """(draws, T): means of resampled groups."""
    code = np.arange(len(rows)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    count = int(code.max()) + 1
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, code, rows)
    drawn = bootstrap_sums(np.column_stack([sums, np.bincount(code, minlength=count)]), n_boot=draws, seed=seed)
    return drawn[:, :-1] / drawn[:, -1:]
