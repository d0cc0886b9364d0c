"""Confidence intervals that resample what is independent: groups, not rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, binomtest, norm
from scipy.stats import t as student

from moescope.errors import InputError
from moescope.stats.permutation import permutation_p

_BLOCK = 1 << 22  # entries of the resampling-weight matrix held at once: 32 MiB


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927).

    Args:
        successes: number of successes, 0..n.
        n: number of independent trials.
        level: confidence, in (0, 1).

    Raises:
        InputError: when n is not positive or successes lie outside 0..n.

    >>> low, high = wilson(74, 80)
    >>> round(low, 3), round(high, 3)
    (0.846, 0.965)
    """
    if n <= 0 or not 0 <= successes <= n:
        raise InputError(f"no interval for {successes} successes out of {n}: successes must lie in 0..n and n be positive")
    found = binomtest(int(successes), int(n)).proportion_ci(_checked_level(level), method="wilson")
    return float(found.low), float(found.high)


def wilson_bounds(successes: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends of :func:`wilson` for whole arrays, which broadcast; (0, 1) where ``n`` is 0."""
    hits, trials = np.asarray(successes, float), np.asarray(n, float)
    z2 = float(norm.ppf((1 + _checked_level(level)) / 2)) ** 2
    share = np.divide(hits, trials, out=np.full(np.broadcast(hits, trials).shape, 0.5), where=trials > 0)
    middle = (share * trials + z2 / 2) / (trials + z2)
    half = np.sqrt(z2 * (share * (1 - share) * trials + z2 / 4)) / (trials + z2)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def group_bootstrap(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    stat: Callable[[NDArray[Any]], float] | None = None,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of a statistic, resampling whole groups.

    The percentiles are expanded (Hesterberg 2015, "What teachers should know about the bootstrap"): the plain percentile
    interval is too narrow by sqrt((G - 1) / G) and by using z for t, which matters with few groups. When the values are
    all 0 or all 1 (every answer right), each bootstrap sample is the same and would claim certainty; the mean then gets
    Wilson's interval over groups.

    Args:
        values: shape (N,) or (N, ...): one entry per row, such as ``correct``; ``stat`` sees resampled rows.
        groups: shape (N,); None for one group per row.
        stat: function of the resampled rows; None for the mean, which is much faster.
        n_boot: number of resamples.
        level: confidence, in (0, 1).
        seed: the interval is a function of it.

    Returns:
        (low, high).

    Raises:
        InputError: for no rows, a wrong number of groups, or fewer than two groups.
    """
    rows = np.asarray(values)
    code, n_groups = _codes(rows, groups)
    if stat is None:
        flat = rows.astype(np.float64)
        if flat.ndim != 1:
            raise InputError(f"the mean needs one value per row, got shape {flat.shape}: give stat= for rows of several values")
        if np.all(flat == flat[0]) and flat[0] in (0.0, 1.0):
            return wilson(n_groups if flat[0] else 0, n_groups, level)
        draws = _bootstrap_means(flat, code, n_groups, n_boot, seed)
    else:
        rng = np.random.default_rng(seed)
        order = np.argsort(code, kind="stable")
        members = np.split(order, np.flatnonzero(np.diff(code[order])) + 1)
        draws = np.empty(n_boot)
        for b in range(n_boot):
            pick = rng.integers(n_groups, size=n_groups)
            draws[b] = stat(rows[np.concatenate([members[g] for g in pick])])
    return expanded_percentiles(draws, n_groups, level)


class Difference(NamedTuple):
    """A paired difference of means, with its interval and p-value."""

    value: float
    """mean(a) - mean(b)."""
    low: float
    high: float
    p: float
    """Two-sided, from exchanging a and b in whole groups."""


def paired_bootstrap_difference(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """mean(a) - mean(b) over the same rows, with an interval from resampled groups and a sign-flip p-value.

    Args:
        a: shape (N,), such as whether method A was right on each row.
        b: shape (N,), the same for method B on the same rows.
        groups: shape (N,); None for one group per row.
        n_boot: number of resamples, and of random exchanges for p.
        level: confidence, in (0, 1).
        seed: the result is a function of it.

    Raises:
        InputError: when the shapes differ, for no rows, or fewer than two groups.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1:
        raise InputError(f"a paired difference needs two arrays of one length, got shapes {left.shape} and {right.shape}")
    difference = left - right
    code, n_groups = _codes(difference, groups)
    draws = _bootstrap_means(difference, code, n_groups, n_boot, seed)
    low, high = expanded_percentiles(draws, n_groups, level)
    sums = np.bincount(code, weights=difference, minlength=n_groups)
    null = np.abs(_signs(n_groups, n_boot, seed) @ sums)
    # Exchanges that restore the observed difference must count as ties, whatever the order of summation.
    p = permutation_p(abs(sums.sum()) - 1e-9 * np.abs(sums).sum(), null)
    return Difference(float(difference.mean()), low, high, p)


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise InputError(f"confidence level {level} is not between 0 and 1")
    return level


def _codes(rows: NDArray[Any], groups: ArrayLike | None) -> tuple[NDArray[np.intp], int]:
    if rows.ndim == 0 or len(rows) == 0:
        raise InputError("no interval without rows: the array of values is empty")
    if groups is None:
        code, n_groups = np.arange(len(rows)), len(rows)
    else:
        names, code = np.unique(np.asarray(groups), return_inverse=True)
        n_groups = len(names)
        if len(code) != len(rows):
            raise InputError(f"{len(code)} groups for {len(rows)} rows: give one group per row")
    if n_groups < 2:
        raise InputError("all rows belong to one group, so there is nothing to resample: give groups that are independent")
    return code, n_groups


def _bootstrap_means(
    values: NDArray[np.float64], code: NDArray[np.intp], n_groups: int, n_boot: int, seed: int
) -> NDArray[np.float64]:
    """Means of values (N,) under resampled groups, shape (n_boot,); works on group sums, not on rows."""
    size = np.bincount(code, minlength=n_groups).astype(np.float64)
    sums = np.asarray(np.bincount(code, weights=values, minlength=n_groups), dtype=np.float64)[:, None]
    if n_boot * n_groups <= _BLOCK:
        blocks: Iterable[NDArray[Any]] = [_kept_draws(n_groups, n_boot, seed)[0]]
    else:
        blocks = _weights(n_groups, n_boot, np.random.default_rng(seed))
    return np.concatenate([_means_of(block.astype(np.float64), sums, size) for block in blocks])


def _means_of(weight: NDArray[np.float64], sums: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(((weight @ sums) / (weight @ size)[:, None])[:, 0])


def _weights(n_groups: int, n_boot: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """How often each group is drawn in each resample, (n_boot, n_groups) in blocks of rows."""
    step = max(1, _BLOCK // n_groups)
    for start in range(0, n_boot, step):
        count = min(step, n_boot - start)
        pick = rng.integers(n_groups, size=(count, n_groups)) + np.arange(count)[:, None] * n_groups
        yield np.bincount(pick.ravel(), minlength=count * n_groups).reshape(count, n_groups)


def _signs(n_groups: int, n_boot: int, seed: int) -> NDArray[np.float64]:
    """Random exchanges (n_boot, n_groups), -1 or 1, from the stream that the resamples have left."""
    if n_boot * n_groups <= _BLOCK:
        return _kept_draws(n_groups, n_boot, seed)[1].astype(np.float64)
    rng = np.random.default_rng(seed)
    for _ in _weights(n_groups, n_boot, rng):
        pass
    return rng.choice((-1.0, 1.0), size=(n_boot, n_groups))


@lru_cache(maxsize=4)
def _kept_draws(n_groups: int, n_boot: int, seed: int) -> tuple[NDArray[np.uint16], NDArray[np.int8]]:
    """A study asks for hundreds of intervals over the same groups and seed, whose draws are the same; 12 MiB are kept."""
    rng = np.random.default_rng(seed)
    (weight,) = _weights(n_groups, n_boot, rng)
    return weight.astype(np.uint16), rng.choice((-1.0, 1.0), size=(n_boot, n_groups)).astype(np.int8)


def bootstrap_sums(values: ArrayLike, *, n_boot: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Sums over rows drawn with replacement, for statistics of several sums at once, such as a ratio of them.

    Args:
        values: shape (G, M): one row for each group.

    Returns:
        Shape (n_boot, M); an interval follows by :func:`expanded_percentiles` of the statistic of each row.
    """
    rows = np.asarray(values, dtype=np.float64)
    drawn = _weights(len(rows), n_boot, np.random.default_rng(seed))
    return np.concatenate([weight @ rows for weight in drawn])


def expanded_percentiles(draws: NDArray[np.float64], n_groups: int, level: float = 0.95) -> tuple[float, float]:
    """The interval that bootstrap ``draws`` (n_boot,) over ``n_groups`` groups give: see :func:`group_bootstrap`."""
    tail = (1 - _checked_level(level)) / 2
    expanded = norm.cdf(np.sqrt(n_groups / (n_groups - 1)) * student.ppf(tail, n_groups - 1))
    low, high = np.quantile(draws, [expanded, 1 - expanded])
    return float(low), float(high)


def ratios_left_out(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n + 1,): the ratio of the sums of two arrays (n,) without each of their units, and at last of all."""
    sums = [np.append(values.sum() - values, values.sum()) for values in (above, below)]
    with np.errstate(invalid="ignore"):  # of a single unit, nothing is left without it
        return np.asarray(sums[0] / sums[1])


def jackknife(ratios: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval by the jackknife of the logarithm (Student's t), of what :func:`ratios_left_out` gives; NaN of a single
    unit."""
    n = len(ratios) - 1
    if n < 2:
        return float("nan"), float("nan")
    logs = np.log(ratios)
    error = float(np.sqrt((n - 1) * logs[:-1].var()) * student.ppf(0.975, n - 1))
    return float(np.exp(logs[-1] - error)), float(np.exp(logs[-1] + error))


def median_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval of the median from the order of ``values`` (n,) alone (Thompson 1936, "On confidence ranges for the median"):
    between those that are r-th from either end, r the largest with a coverage of ``level`` at least. NaN of fewer than six
    values at 95 %, by whose whole range it would not be reached.

    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 900.0])
    (1.0, 900.0)
    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 900.0])
    (2.0, 8.0)
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    rank = int(binom.ppf((1 - _checked_level(level)) / 2, len(ordered), 0.5))  # P(fewer than rank) is within the tail
    if rank < 1:
        return float("nan"), float("nan")
    return float(ordered[rank - 1]), float(ordered[-rank])
