"""Intervals cover at their nominal rate, and resample groups where rows of a group are alike."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from moescope.errors import InputError
from moescope.stats import group_bootstrap, paired_bootstrap_difference, wilson


@pytest.mark.parametrize(("successes", "n"), [(74, 80), (0, 5), (5, 5), (1, 1000), (500, 1000)])
def test_wilson_is_scipy_s(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_the_published_74_of_80() -> None:
    assert wilson(74, 80) == pytest.approx((0.846, 0.965), abs=5e-4)


def grouped(rng: np.random.Generator, n_groups: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong for whole groups at a time, more or less: accuracy 0.7."""
    ability = rng.beta(0.7, 0.3, n_groups)
    return (rng.random((n_groups, size)) < ability[:, None]).ravel().astype(float), np.repeat(np.arange(n_groups), size)


def test_group_bootstrap_covers_and_a_row_bootstrap_would_not() -> None:
    rng = np.random.default_rng(0)
    covered = {"groups": 0, "rows": 0}
    trials = 300
    for trial in range(trials):
        values, groups = grouped(rng, 40, 8)
        for name, given in (("groups", groups), ("rows", None)):
            low, high = group_bootstrap(values, given, n_boot=400, seed=trial)
            covered[name] += low <= 0.7 <= high
    # 3 standard deviations of a binomial at 0.95 are 3.8 points.
    assert covered["groups"] / trials == pytest.approx(0.95, abs=0.04)
    assert covered["rows"] / trials < 0.75


@pytest.mark.parametrize("n_groups", [6, 12])
def test_few_groups_still_cover(n_groups: int) -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(n_groups), 5)
    hits = 0
    for trial in range(400):
        values = np.repeat(rng.normal(size=n_groups), 5) + rng.normal(size=5 * n_groups)
        low, high = group_bootstrap(values, groups, n_boot=400, seed=trial)
        hits += low <= 0 <= high
    assert hits / 400 >= 0.92  # a plain percentile interval covers 0.87 and 0.90


def test_any_statistic_and_the_mean_agree() -> None:
    values, groups = grouped(np.random.default_rng(2), 60, 3)
    fast = group_bootstrap(values, groups, seed=5)
    slow = group_bootstrap(values, groups, stat=lambda rows: float(rows.mean()), seed=5)
    assert fast == pytest.approx(slow, abs=0.01)


def test_all_right_is_not_certainty() -> None:
    assert group_bootstrap(np.ones(20), np.arange(20) // 2) == wilson(10, 10)
    assert group_bootstrap(np.ones(20), np.arange(20) // 2)[0] < 0.75


def test_paired_difference_covers_and_its_p_is_uniform() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(50), 4)
    inside, p = 0, []
    for trial in range(250):
        easy = np.repeat(rng.normal(size=50), 4)  # shared by both methods: pairing takes it out
        a, b = (easy + np.repeat(rng.normal(size=50), 4) + rng.normal(size=200) for _ in range(2))
        found = paired_bootstrap_difference(a, b, groups, n_boot=400, seed=trial)
        inside += found.low <= 0 <= found.high
        p.append(found.p)
        assert found.value == pytest.approx(a.mean() - b.mean())
    assert inside / 250 == pytest.approx(0.95, abs=0.045)
    assert kstest(p, "uniform").pvalue > 0.01


def test_paired_difference_sees_a_small_but_steady_gain() -> None:
    rng = np.random.default_rng(4)
    b = rng.normal(size=100) * 5
    found = paired_bootstrap_difference(b + 0.5 + rng.normal(size=100) * 0.5, b)
    assert found.low > 0
    assert found.p < 0.01
    assert found.low <= found.value <= found.high


def test_equal_methods_have_p_one() -> None:
    same = np.arange(30) % 3 == 0
    assert paired_bootstrap_difference(same, same, np.arange(30) // 3) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: wilson(3, 2), "3 successes out of 2"),
        (lambda: group_bootstrap([], None), "empty"),
        (lambda: group_bootstrap([1.0, 0.0], ["a", "a"]), "one group"),
        (lambda: group_bootstrap([1.0, 0.0], ["a"]), "1 groups for 2 rows"),
        (lambda: group_bootstrap([1.0, 0.0], level=1.5), "1.5"),
        (lambda: paired_bootstrap_difference([1, 0], [1]), "one length"),
    ],
)
def test_bad_input_is_named(call, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=said):
        call()
