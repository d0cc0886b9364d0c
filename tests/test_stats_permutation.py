"""Permuted labels respect groups, and p-values are uniform when nothing is there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control, kstest

from moescope.errors import InputError
from moescope.stats import benjamini_hochberg, permutation_p, permute_labels, permuted_label_matrix

PAIRS = np.repeat(np.arange(10), 2)


def test_labels_of_a_mixed_group_stay_in_it() -> None:
    y = np.tile([0, 1], 10)
    draws = permuted_label_matrix(y, PAIRS, 200, np.random.default_rng(0))
    assert (draws.reshape(200, 10, 2).sum(2) == 1).all()
    assert 0.4 < (draws[:, 0] == 0).mean() < 0.6


def test_pure_groups_exchange_their_label_whole() -> None:
    y = np.repeat(np.arange(10) % 2, 2)
    draws = permuted_label_matrix(y, PAIRS, 200, np.random.default_rng(0))
    assert (draws[:, ::2] == draws[:, 1::2]).all()
    assert (draws.sum(1) == 10).all()
    assert len({row.tobytes() for row in draws}) > 100


def test_a_mixture_of_both_kinds_and_no_groups() -> None:
    groups, y = np.array(["a", "a", "b", "b", "c", "d"]), np.array([0, 1, 1, 1, 0, 0])
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(100):
        drawn = permute_labels(y, groups, rng)
        assert drawn[0] + drawn[1] == 1
        assert drawn[2] == drawn[3]
        assert drawn[2] + drawn[4] + drawn[5] == 1
        seen.add(tuple(drawn))
    assert len(seen) == 6  # 2 ways in the mixed group, 3 for the pure ones
    free = {tuple(permute_labels(y, None, rng)) for _ in range(200)}
    assert len(free) == 20


def statistic(x: np.ndarray, y: np.ndarray) -> float:
    return abs(float(x[y == 1].mean() - x[y == 0].mean()))


def p_values(groups: np.ndarray, used: np.ndarray | None, paired: bool, seed: int) -> list[float]:
    """p of 250 data sets in which groups differ and classes do not."""
    rng = np.random.default_rng(seed)
    n_groups, size = groups.max() + 1, len(groups) // (groups.max() + 1)
    y = np.tile(np.arange(size) % 2, n_groups) if paired else np.repeat(np.arange(n_groups) % 2, size)
    found = []
    for _ in range(250):
        x = 2 * rng.normal(size=n_groups)[groups] + rng.normal(size=len(groups))
        null = [statistic(x, drawn) for drawn in permuted_label_matrix(y, used, 99, rng)]
        found.append(permutation_p(statistic(x, y), np.asarray(null)))
    return found


@pytest.mark.parametrize("paired", [True, False])
def test_p_is_uniform_under_the_null_when_groups_are_kept(paired: bool) -> None:
    groups = np.repeat(np.arange(20), 4)
    right, wrong = (p_values(groups, used, paired, 5) for used in (groups, None))
    assert kstest(right, "uniform").pvalue > 0.01
    assert kstest(wrong, "uniform").pvalue < 1e-6  # permuting rows freely is wrong, in one direction or the other


def test_permutation_p_counts_itself_and_ties() -> None:
    null = np.array([1.0, 2.0, 3.0])
    assert permutation_p(9.0, null) == 1 / 4
    assert permutation_p(2.0, null) == 3 / 4
    np.testing.assert_array_equal(permutation_p(np.array([[0.0, 3.5]]), null), [[1.0, 0.25]])


def test_benjamini_hochberg_is_scipy_s() -> None:
    p = np.random.default_rng(0).random(50) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: permutation_p(1.0, np.array([])), "empty"),
        (lambda: permutation_p(np.nan, np.array([1.0])), "NaN"),
        (lambda: benjamini_hochberg([0.1, 1.2]), "outside"),
        (lambda: permute_labels([0, 1], ["a"], np.random.default_rng(0)), "one group per row"),
    ],
)
def test_bad_input_is_named(call, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=said):
        call()
