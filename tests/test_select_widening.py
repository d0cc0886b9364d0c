"""Intervals of cross-validated accuracies cover what they say, where those of independent hits do not."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.select.nested import nested_cv
from moescope.select.widening import interval_widening
from moescope.studies.circuits.scorer import Scorer
from moescope.tasks import dealt_folds


def planted(rows: int, seed: int, gap: float, width: int = 64) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Three neurons of many tell the class; and ten divisions into five folds."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(rows) % 2)
    x = rng.normal(size=(rows, width))
    x[:, :3] += gap * (y - 0.5)[:, None]
    return x, y, [dealt_folds(y, np.arange(rows), 5, rng) for _ in range(10)]


def factor(rows: int, gap: float, seeds: int = 5) -> float:
    found = []
    for seed in range(seeds):
        x, y, divisions = planted(rows, seed, gap)
        found.append(interval_widening(x, y, np.arange(rows), divisions, (5,))[0])
    return float(np.median(found))


def test_a_choice_that_rests_on_few_rows_widens_and_a_clear_one_does_not() -> None:
    assert factor(40, 0.9) > 1.3
    assert factor(600, 2.0) < 1.25


def test_each_size_has_its_factor_within_its_bounds() -> None:
    x, y, divisions = planted(100, 0, 0.9)
    found = interval_widening(x, y, np.arange(100), divisions, (1, 5, 10))
    assert found.shape == (3,)
    assert (found >= 1).all()
    assert (found <= np.sqrt(5) * 1.06).all()  # 2.093 / 1.984, t of a fold of 20 over t of 100
    with pytest.raises(InputError, match="three folds"):
        interval_widening(x, y, np.arange(100), [np.arange(100) % 2], (5,))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [40, 100, 400])
def test_intervals_cover(rows: int) -> None:
    """Of the accuracy over data sets of this size; the interval of independent hits is beside it."""
    value, plain, wide = [], [], []
    for seed in range(1000):
        x, y, divisions = planted(rows, seed, 0.9)
        hits = nested_cv(x, y, divisions[0], (5,)).even[0]
        (widening,) = interval_widening(x, y, np.arange(rows), divisions, (5,))
        value.append(hits.mean())
        plain.append(Scorer(y, np.arange(rows)).interval(hits))
        wide.append(Scorer(y, np.arange(rows), widening=float(widening)).interval(hits))
    truth = np.mean(value)
    covered = [float(np.mean([low <= truth <= high for low, high in ends])) for ends in (plain, wide)]
    print(f"{rows} rows: independent hits {covered[0]:.3f}, widened {covered[1]:.3f}")
    assert 0.93 <= covered[1] <= 0.97
    assert covered[0] < covered[1]


def test_the_spread_of_sets_leaves_out_what_comes_of_few_rows() -> None:
    """Sets that are all right in seven of ten rows differ by luck alone; others are right more or less often by a tenth."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    scorer = Scorer(y, np.arange(300) // 2)
    alike, apart = (rng.random((200, 300)) < rate for rate in (0.7, 0.7 + 0.1 * rng.normal(size=(200, 1))))
    plain = np.std([scorer.balanced(hits) for hits in alike])
    assert scorer.spread(alike) < plain / 2
    assert scorer.spread(apart) == pytest.approx(0.1, abs=0.02)
