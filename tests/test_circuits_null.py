"""The max-statistic null: the same as a loop over permutations, and uniform where labels mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from moescope.errors import InputError
from moescope.select.ranking import SIGMAS, divergence, fold_class_sums, permutation_max
from moescope.stats import permuted_label_matrix


def data(n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=90)
    x = rng.normal(size=(90, 150)) * np.exp(1.5 * rng.normal(size=150)) + 1000 * rng.normal(size=150)
    return x.astype(np.float32), y, np.arange(90) // 3


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("grouped", [False, True])
def test_it_is_a_loop_over_permutations(n_classes: int, sigma, grouped: bool) -> None:  # type: ignore[no-untyped-def]
    x, y, groups = data(n_classes)
    given = groups if grouped else None
    null = permutation_max(x, y, given, n_permutations=40, sigma=sigma, seed=3, block=64)
    draws = permuted_label_matrix(y, given, 40, np.random.default_rng(3))
    whole = np.zeros(90, dtype=int)
    expected = [divergence(*fold_class_sums(x, drawn, whole).total(), sigma=sigma).max() for drawn in draws]
    np.testing.assert_allclose(null.max, expected, rtol=2e-4)
    observed = divergence(*fold_class_sums(x, y, whole).total(), sigma=sigma)
    np.testing.assert_allclose(null.observed, observed, rtol=1e-6)
    np.testing.assert_allclose(null.p, [(1 + (np.asarray(expected) >= o).sum()) / 41 for o in observed])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_blocks_dtypes_and_masks(dtype: type) -> None:
    x, y, _ = data(2)
    x = ((x - x.mean(0)) / x.std(0)).astype(dtype)
    whole = permutation_max(x, y, n_permutations=30)
    np.testing.assert_allclose(permutation_max(x, y, n_permutations=30, block=7).max, whole.max, rtol=1e-4)
    allowed = np.arange(150) < 20
    part = permutation_max(x, y, n_permutations=30, allowed=allowed)
    np.testing.assert_allclose(part.max, permutation_max(x[:, :20], y, n_permutations=30).max, rtol=1e-4)
    assert (part.p[20:] == 1).all()
    assert part.max.max() <= whole.max.max() * 1.0001


def smallest_p(seed: int, grouped: bool) -> tuple[float, float]:
    """Smallest family-wise p of one null data set, and the p of its feature 0 taken alone (a family of one)."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(20), 2) if grouped else None
    x = rng.normal(size=(40, 60)).astype(np.float32)
    if grouped:
        x += 2 * np.repeat(rng.normal(size=(20, 60)), 2, axis=0).astype(np.float32)
    y = np.repeat(np.arange(20) % 2, 2) if grouped else np.arange(40) % 2
    first = np.arange(60) == 0
    return tuple(permutation_max(x, y, groups, n_permutations=99, seed=seed, allowed=mask).p.min() for mask in (None, first))  # type: ignore[return-value]


@pytest.mark.parametrize("grouped", [False, True])
def test_p_is_uniform_under_the_null(grouped: bool) -> None:
    p = np.array([smallest_p(seed, grouped) for seed in range(250)])
    assert kstest(p[:, 0], "uniform").pvalue > 0.01
    assert kstest(p[:, 1], "uniform").pvalue > 0.01
    assert (p[:, 0] <= 0.05).mean() == pytest.approx(0.05, abs=0.042)  # 3 standard deviations of 250 draws


def test_planted_neurons_are_significant_and_only_they() -> None:
    x, y, _ = data(2)
    planted = [5, 70, 149]
    x[:, planted] += np.outer(y, 2.5 * x[:, planted].std(0)).astype(np.float32)
    null = permutation_max(x, y, n_permutations=199)
    assert np.flatnonzero(null.p <= 0.05).tolist() == planted
    assert np.flatnonzero(null.observed > null.threshold()).tolist() == planted
    assert null.p.min() == 1 / 200


def test_constant_and_perfect_features() -> None:
    x = np.zeros((30, 3), dtype=np.float32)
    y = np.arange(30) % 2
    x[:, 1] = 0.1  # constant, not exactly so in float32 sums
    x[:, 2] = y
    null = permutation_max(x, y, n_permutations=99)
    assert null.p[0] == null.p[1] == 1
    assert null.p[2] == 1 / 100


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_permutations": 0}, "n_permutations: must be at least 1, got 0"),
        ({"y": np.zeros(90, dtype=int)}, "two classes"),
        ({"allowed": np.zeros(150, dtype=bool)}, "at least one"),
        ({"sigma": "std"}, "'std'"),
    ],
)
def test_bad_input_is_named(change, said) -> None:  # type: ignore[no-untyped-def]
    x, y, _ = data(2)
    options = {"y": y} | change
    with pytest.raises(InputError, match=said):
        permutation_max(x, options.pop("y"), **options)
