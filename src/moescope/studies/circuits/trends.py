"""A quantity over models of several sizes: its slope, with an interval over texts and over models."""

from __future__ import annotations

import math
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from moescope.study.paired import interval_p, joined

_EVERY = 7  # models, up to which every order of them is tried
_ORDERS = 9999  # drawn where there are more


class Trend(NamedTuple):
    """The change of a quantity for one unit of ``x``, such as a tenfold of parameters."""

    slope: float
    low: float
    high: float
    """95 % interval over both texts and models; NaN of two models, which say nothing of how models differ"""
    text_low: float
    text_high: float
    """95 % interval over texts alone: that of these very models"""
    p: float
    """two-sided: the larger of that over orders of the models and that over texts"""


def slopes(x: ArrayLike, curves: ArrayLike) -> NDArray[np.float64]:
    """(...): least-squares slope over ``x`` (M,) of each of ``curves`` (..., M)."""
    at = np.asarray(x, float)
    at = at - at.mean()
    return np.asarray(np.asarray(curves, float) @ at / (at @ at))


def trend(x: ArrayLike, values: ArrayLike, texts: tuple[float, float]) -> Trend:
    """The slope of ``values`` (M,), a value a model, over ``x`` (M,).

    Models stand for further models, so the interval has the width of Student's t with M - 2 degrees of freedom about the line;
    that of texts comes on top (:func:`moescope.study.paired.joined`), which counts the texts' share of each model's distance
    from the line twice and is too wide rather than too narrow. p is that of all M! orders of the sizes over the models, twice
    the smaller tail (9,999 random ones of more than seven models), so of fewer than five models it cannot fall to 0.05.

    Args:
        texts: 95 % interval of the slope over texts.
    """
    at, found = np.asarray(x, float), np.asarray(values, float)
    slope = round(float(slopes(at, found)), 12)  # of equal values not quite nought
    low, high = float("nan"), float("nan")
    if len(at) > 2:
        off = found - found.mean() - slope * (at - at.mean())
        error = math.sqrt(float(off @ off) / (len(at) - 2) / float(((at - at.mean()) ** 2).sum()))
        half = error * float(student.ppf(0.975, len(at) - 2))
        low, high = joined(slope, texts, (slope - half, slope + half))
    return Trend(slope, low, high, *texts, max(_order_p(at, found), interval_p(slope, *texts)))


def _order_p(x: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    if len(x) <= _EVERY:
        orders = np.array(list(permutations(range(len(x)))))
    else:
        rng = np.random.default_rng(0)
        orders = np.stack([np.arange(len(x)), *(rng.permutation(len(x)) for _ in range(_ORDERS))])
    drawn = slopes(x, values[orders])
    tie = 1e-9 * float(np.abs(values).max() + 1)
    tails = (drawn >= drawn[0] - tie).mean(), (drawn <= drawn[0] + tie).mean()
    return float(min(1.0, 2 * min(tails)))


def least_models(family: int, alpha: float) -> int:
    """How few models can show a trend at ``alpha`` among ``family`` claims that are judged together: 2 / M! must reach it."""
    count = 2
    while 2 * family / math.factorial(count) > alpha + 1e-9:
        count += 1
    return count
