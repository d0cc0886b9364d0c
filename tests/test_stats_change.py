"""A jump is found where one is planted, a smooth curve has none, and points too far apart do not tell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from moescope.errors import InputError
from moescope.stats import largest_jump

X = np.arange(12.0)


def answers(rate: np.ndarray, seed: int, rows: int = 200) -> np.ndarray:
    """(rows, T) hits at these rates; a row that is hard is hard at every point."""
    rng = np.random.default_rng(seed)
    luck = 0.7 * rng.normal(size=(rows, 1)) + np.sqrt(0.51) * rng.normal(size=(rows, len(rate)))
    return np.asarray(norm.cdf(luck) < rate)


def logistic(rise: float) -> np.ndarray:
    """From 50 to 90 %; the rise from 10 to 90 % of that takes ``rise`` points."""
    return np.asarray(0.5 + 0.4 / (1 + np.exp(-(X - 5.7) * np.log(81) / rise)))


@pytest.mark.parametrize("rate", [np.full(12, 0.6), 0.5 + 0.03 * X, logistic(2.0), logistic(5.0)])
def test_a_smooth_curve_has_no_jump_more_often_than_it_may(rate: np.ndarray) -> None:
    found = [largest_jump(X, answers(rate, seed), draws=199, seed=seed) for seed in range(60)]
    assert np.mean([jump.p <= 0.05 for jump in found if jump]) <= 0.15  # 9 of 60: once in two thousand by chance
    assert np.mean([jump.low <= 0 <= jump.high for jump in found if jump]) >= 0.85


def test_a_jump_is_found_where_it_is() -> None:
    for seed in range(5):
        found = largest_jump(X, answers(np.where(X < 7, 0.5, 0.9), seed, 400), draws=199)
        assert found is not None
        assert (found.after, found.hidden) == (6, False)
        assert found.p < 0.05, found
        assert found.low > 0, found


def test_rows_of_one_group_are_no_more_than_one() -> None:
    few = answers(np.where(X < 7, 0.55, 0.75), 0, 30)
    many = np.repeat(few, 20, 0)
    apart = largest_jump(X, many, draws=199)
    together = largest_jump(X, many, np.repeat(np.arange(30), 20), draws=199)
    assert apart is not None
    assert together is not None
    assert together.high - together.low > 3 * (apart.high - apart.low)
    assert together.p > apart.p


def test_what_lies_between_far_points_is_not_told() -> None:
    x = np.array([0.0, 1, 2, 3, 9, 10, 11])
    found = largest_jump(x, answers(np.where(x < 5, 0.5, 0.9), 0, 400), draws=199)
    assert found is not None
    assert found.hidden
    assert found.after != 3
    assert largest_jump(3 * X, answers(0.5 + 0.03 * X, 0)) is None
    assert largest_jump(X[:5], answers(np.full(5, 0.6), 0)) is None
    with pytest.raises(InputError, match="points that rise"):
        largest_jump(X[::-1], answers(np.full(12, 0.6), 0))
