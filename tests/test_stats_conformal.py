"""Guarantees hold over resplits of data whose true risk is known, and too small a calibration set is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom

from moescope.errors import InputError
from moescope.stats.conformal import (
    binomial_p,
    conformal_p,
    conformal_risk_control,
    conformal_size,
    crc_size,
    group_means,
    hoeffding_bentkus_p,
    learn_then_test,
    ltt_size,
)

ALPHA, DELTA = 0.1, 0.1
LEVELS = np.linspace(0, 0.3, 61)  # true risk of each candidate, safest first


def draw(rng: np.random.Generator, n: int) -> np.ndarray:
    """0/1 losses (n, 61): a unit fails at every candidate whose level exceeds its own uniform number."""
    return (rng.random((n, 1)) < LEVELS).astype(float)


def test_learn_then_test_keeps_its_promise_over_resplits() -> None:
    rng = np.random.default_rng(0)
    reached = [LEVELS[learn_then_test(draw(rng, 300), ALPHA, DELTA).candidate] for _ in range(400)]
    # 400 draws: three standard errors below 1 - delta
    assert np.mean(np.array(reached) <= ALPHA) >= 1 - DELTA - 3 * np.sqrt(DELTA * (1 - DELTA) / 400)
    assert np.median(reached) > 0.05  # and it is not the empty promise of never leaving the safest
    naive = []
    for _ in range(400):
        naive.append(LEVELS[np.flatnonzero(draw(rng, 300).mean(0) <= ALPHA)[-1]])
    assert np.mean(np.array(naive) <= ALPHA) < 0.8  # what a threshold tuned on the data would do


def test_the_exact_test_keeps_its_promise_and_reaches_further() -> None:
    rng = np.random.default_rng(0)
    tables = [draw(rng, 300) for _ in range(400)]
    exact, bound = (
        np.array([LEVELS[learn_then_test(table, ALPHA, DELTA, binary=binary).candidate] for table in tables])
        for binary in (True, False)
    )
    assert np.mean(exact <= ALPHA) >= 1 - DELTA - 3 * np.sqrt(DELTA * (1 - DELTA) / 400)
    assert (exact >= bound).all()
    assert exact.mean() > bound.mean() + 0.004
    with pytest.raises(InputError, match="binary losses must be 0 or 1"):
        learn_then_test(np.full((300, 2), 0.01), ALPHA, DELTA, binary=True)


def test_the_exact_test_is_the_upper_bound_of_clopper_and_pearson() -> None:
    """Risk above ``alpha`` is rejected at ``delta`` where the bound at 1 - delta lies below ``alpha``."""
    for lost in range(12):
        upper = beta.ppf(1 - DELTA, lost + 1, 100 - lost)
        assert (binomial_p(lost / 100, 100, ALPHA) <= DELTA) == (upper <= ALPHA)


def test_learn_then_test_needs_no_order_among_losses() -> None:
    rng = np.random.default_rng(1)
    levels = np.array([0.02, 0.3, 0.02])
    for _ in range(50):
        chosen = learn_then_test((rng.random((300, 3)) < levels).astype(float), ALPHA, DELTA)
        assert chosen.candidate == 0  # the sequence ends at the failure and never comes to the third


def test_conformal_risk_control_holds_in_expectation() -> None:
    rng = np.random.default_rng(2)
    reached = [LEVELS[conformal_risk_control(draw(rng, 60), ALPHA).candidate] for _ in range(2000)]
    assert np.mean(reached) <= ALPHA + 3 * np.std(reached) / np.sqrt(2000)
    assert np.mean(reached) > ALPHA - 1 / 61 - 0.01  # tight up to 1 / (n + 1) and the grid


def test_conformal_risk_control_makes_losses_grow() -> None:
    table = np.zeros((60, 3))
    table[:30, 1] = 1.0  # the middle candidate fails, the last does not
    assert conformal_risk_control(table, ALPHA).candidate == 0


def test_p_values_are_valid_at_the_boundary() -> None:
    rng = np.random.default_rng(3)
    for losses in (rng.binomial(1, ALPHA, (4000, 120)), rng.beta(0.4, 3.6, (4000, 120))):  # both of mean 0.1
        p = hoeffding_bentkus_p(losses.mean(1), 120, ALPHA)
        for level in (0.01, 0.05, 0.1, 0.3):
            assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 4000)
    assert hoeffding_bentkus_p(0.0, 40, ALPHA) == pytest.approx(0.9**40)
    assert hoeffding_bentkus_p(0.03, 100, ALPHA) <= np.e * binom.cdf(3, 100, ALPHA) + 1e-12
    assert hoeffding_bentkus_p(0.5, 100, ALPHA) == 1


@pytest.mark.parametrize(("alpha", "delta"), [(0.02, 0.1), (0.05, 0.1), (0.1, 0.01), (0.2, 0.2)])
def test_sizes_are_exactly_where_a_promise_becomes_possible(alpha: float, delta: float) -> None:
    n = ltt_size(alpha, delta)
    assert learn_then_test(np.zeros((n, 1)), alpha, delta).candidate == 0
    with pytest.raises(InputError, match=f"at least {n} calibration groups, there are {n - 1}"):
        learn_then_test(np.zeros((n - 1, 1)), alpha, delta)
    m = crc_size(alpha)
    assert conformal_risk_control(np.zeros((m, 1)), alpha).n == m
    with pytest.raises(InputError, match=f"at least {m} calibration groups, there are {m - 1}"):
        conformal_risk_control(np.zeros((m - 1, 1)), alpha)


def test_conformal_p_values_are_uniform_and_calibrated() -> None:
    rng = np.random.default_rng(4)
    p = np.concatenate([conformal_p(rng.random(39), rng.random(20)) for _ in range(500)])
    for level in (0.05, 0.1, 0.25):
        assert (p <= level).mean() == pytest.approx(level, abs=0.02)
    assert conformal_size(0.05) == 19
    assert conformal_p(np.zeros(19), [1.0])[0] == pytest.approx(0.05)
    assert conformal_p([1.0, 2.0], [2.0])[0] == pytest.approx(2 / 3)  # a tie counts against strangeness


def test_group_means() -> None:
    found = group_means(np.array([[1.0], [0.0], [1.0]]), ["b", "a", "b"])
    assert found.tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize("table", [np.zeros(3), np.zeros((0, 2)), np.full((200, 2), 1.5), np.full((200, 2), np.nan)])
def test_bad_losses_are_refused(table: np.ndarray) -> None:
    for call in (lambda: learn_then_test(table, ALPHA, DELTA), lambda: conformal_risk_control(table, ALPHA)):
        with pytest.raises(InputError):
            call()


def test_a_hopeless_first_candidate_is_refused() -> None:
    with pytest.raises(InputError, match="safest"):
        learn_then_test(np.ones((200, 2)), ALPHA, DELTA)
    with pytest.raises(InputError, match="safest"):
        conformal_risk_control(np.ones((200, 2)), ALPHA)
    with pytest.raises(InputError, match="not between 0 and 1"):
        learn_then_test(np.zeros((200, 2)), 1.0, DELTA)
