"""Distribution-free guarantees from held-out data: conformal risk control, Learn-then-Test, conformal p-values.

The calibration units must be exchangeable with what comes later: where rows come in groups, a unit is a group and its loss
the mean over its rows. The candidates (thresholds, say) must be fixed before the calibration data are seen.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from moescope.errors import InputError


class Chosen(NamedTuple):
    """Which candidate the calibration data allow."""

    candidate: int
    """Position of the riskiest candidate that is allowed."""
    n: int
    """Calibration units."""
    risk: float
    """Its mean loss on the calibration data."""


def crc_size(alpha: float) -> int:
    """The fewest calibration units for which conformal risk control can promise ``alpha`` with losses in [0, 1]."""
    return math.ceil(1 / _open(alpha, "risk") - 1e-9) - 1


def ltt_size(alpha: float, delta: float) -> int:
    """The fewest calibration units whose losses, were all 0, reject "risk above ``alpha``" at level ``delta``."""
    return math.ceil(math.log(_open(delta, "delta")) / math.log1p(-_open(alpha, "risk")) - 1e-9)


def conformal_risk_control(losses: ArrayLike, alpha: float) -> Chosen:
    """The riskiest candidate whose expected loss on a new unit is at most ``alpha``.

    Angelopoulos et al. (2022), "Conformal Risk Control", eq. 4 with B = 1: the last candidate with
    n/(n+1) · mean loss + 1/(n+1) ≤ alpha. The guarantee, E[loss] ≤ alpha, is on average over calibration sets. The theorem
    asks for losses that grow with the candidate; where a unit's do not, its largest so far takes their place, which only
    makes the choice safer.

    Args:
        losses: shape (n, T), in [0, 1]: unit by candidate, candidates from the safest to the riskiest.
        alpha: the risk allowed, in (0, 1).

    Raises:
        InputError: too few units for ``alpha``, losses out of range, or not even the safest candidate will do.
    """
    table = _losses(losses)
    n = len(table)
    if n < crc_size(alpha):
        raise InputError(
            f"risk {alpha:g} needs at least {crc_size(alpha)} calibration groups, there are {n}; ask for more risk"
        )
    worst = np.maximum.accumulate(table, axis=1).mean(axis=0)
    allowed = np.flatnonzero((n * worst + 1) / (n + 1) <= alpha + 1e-12)
    if not len(allowed):
        raise InputError(f"no candidate keeps the risk at {alpha:g}: the safest has {worst[0]:.3g} on {n} calibration groups")
    last = int(allowed[-1])
    return Chosen(last, n, float(table[:, last].mean()))


def hoeffding_bentkus_p(risk: ArrayLike, n: int, alpha: float) -> NDArray[np.float64]:
    """p-values of "the expected loss exceeds ``alpha``", from mean losses of n independent units with losses in [0, 1].

    Bates et al. (2021), "Distribution-Free, Risk-Controlling Prediction Sets", and Angelopoulos et al. (2021), "Learn then
    Test", proposition 1: min(exp(-n h(min(R, alpha), alpha)), e · P(Bin(n, alpha) ≤ ⌈nR⌉)), h the Bernoulli relative entropy.

    Args:
        risk: any shape, in [0, 1].

    Returns:
        The same shape, in (0, 1].
    """
    _open(alpha, "risk")
    mean = np.asarray(risk, dtype=np.float64)
    low = np.minimum(mean, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(low > 0, low * np.log(low / alpha), 0.0) + (1 - low) * (np.log1p(-low) - np.log1p(-alpha))
    # a mean is a sum over n: rounding must not lift its ceiling by one
    bentkus = math.e * binom.cdf(np.ceil(n * mean - 1e-9), n, alpha)
    bound: NDArray[np.float64] = np.minimum(np.minimum(np.exp(-n * entropy), bentkus), 1.0)
    return bound


def binomial_p(risk: ArrayLike, n: int, alpha: float) -> NDArray[np.float64]:
    """p-values of "the expected loss exceeds ``alpha``" where each of n independent units loses 0 or 1: P(Bin(n, alpha) ≤ nR).

    It is the exact test, of which the upper bound of Clopper and Pearson (1934) is the inverse; smaller than
    :func:`hoeffding_bentkus_p`, which also holds for losses in between.

    Args:
        risk: mean losses, any shape, in [0, 1].
    """
    return np.asarray(binom.cdf(np.round(n * np.asarray(risk, dtype=np.float64)), n, _open(alpha, "risk")))


def learn_then_test(losses: ArrayLike, alpha: float, delta: float, *, binary: bool = False) -> Chosen:
    """The riskiest candidate that a fixed sequence of tests reaches: its risk is ≤ ``alpha`` with probability ≥ 1 - ``delta``.

    Angelopoulos et al. (2021), "Learn then Test": candidates are tested in order, from the safest, and the first that is not
    rejected at ``delta`` ends the sequence, which controls the family-wise error. Losses need not grow with the candidate.

    Args:
        losses: shape (n, T), in [0, 1]: unit by candidate, candidates from the safest to the riskiest.
        alpha, delta: in (0, 1).
        binary: a unit can lose 0 or 1 only, known before the losses are seen: the test is then the exact binomial one, else
            that of Hoeffding and Bentkus.

    Raises:
        InputError: too few units for ``alpha`` and ``delta``, losses out of range, or the first candidate fails.
    """
    table = _losses(losses)
    n, need = len(table), ltt_size(alpha, delta)
    if n < need:
        raise InputError(
            f"risk {alpha:g} at delta {delta:g} needs at least {need} calibration groups, there are {n}; "
            "ask for more risk, a larger delta, or give more rows"
        )
    if binary and not np.isin(table, (0.0, 1.0)).all():
        raise InputError("binary losses must be 0 or 1")
    risk = table.mean(axis=0)
    stop = tests_passed(risk, n, alpha, delta, binary=binary)
    if stop == 0:
        raise InputError(f"no candidate keeps the risk at {alpha:g}: the safest has {risk[0]:.3g} on {n} calibration groups")
    return Chosen(stop - 1, n, float(risk[stop - 1]))


def tests_passed(risk: NDArray[np.float64], n: int, alpha: float, delta: float, *, binary: bool) -> int:
    """How many candidates a fixed sequence of tests passes before the first that is not rejected at ``delta``.

    Args:
        risk: (T,) mean losses on n units, candidates from the safest to the riskiest.
        binary: as for :func:`learn_then_test`.
    """
    failed = np.flatnonzero((binomial_p if binary else hoeffding_bentkus_p)(risk, n, alpha) > delta)
    return int(failed[0]) if len(failed) else len(risk)


def conformal_p(calibration: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """p-values of "this one is like the calibration data": (1 + how many calibration scores reach it) / (n + 1).

    Vovk et al. (2005), "Algorithmic Learning in a Random World". For a score exchangeable with the calibration scores,
    P(p ≤ u) ≤ u, on average over calibration sets.

    Args:
        calibration: shape (n,): scores of held-out units, larger is stranger.
        scores: shape (M,).

    Raises:
        InputError: there is no calibration score, or one is not finite.
    """
    known = np.sort(np.asarray(calibration, dtype=np.float64))
    if not len(known) or not np.isfinite(known).all():
        raise InputError("conformal p-values need calibration scores, all of them finite")
    above = len(known) - np.searchsorted(known, np.asarray(scores, dtype=np.float64), side="left")
    return (1 + above) / (len(known) + 1)


def conformal_size(rate: float) -> int:
    """The fewest calibration units with which a conformal p-value can be as small as ``rate``."""
    return math.ceil(1 / _open(rate, "rate") - 1e-9) - 1


def group_means(values: NDArray[np.float64], groups: ArrayLike) -> NDArray[np.float64]:
    """Rows (N, T) to one row per group (G, T): the mean over the group's rows, groups in sorted order."""
    names, code = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, code, values)
    return sums / np.bincount(code, minlength=len(names))[:, None]


def _open(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise InputError(f"{name} {value:g} is not between 0 and 1")
    return value


def _losses(losses: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(losses, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise InputError(f"losses must be a table of units by candidates, got shape {table.shape}")
    if not ((table >= 0) & (table <= 1)).all():
        raise InputError("losses must lie between 0 and 1")
    return table
