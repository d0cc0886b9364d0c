"""One pass of sums gives what the definitions give, fold by fold, for every dtype, and divergence follows."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.select.ranking import SIGMAS, divergence, fold_class_sums


def data(dtype: type = np.float32, offset: float = 0.0, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y, folds = rng.integers(n_classes, size=203), rng.integers(5, size=203)
    x = rng.normal(size=(203, 5000)) * rng.exponential(size=5000) + y[:, None] * 0.1 + offset
    return x.astype(dtype), y, folds


@pytest.mark.parametrize(("dtype", "offset"), [(np.float16, 0.0), (np.float32, 0.0), (np.float64, 0.0), (np.float64, 1e8)])
def test_moments_are_those_of_the_rows(dtype: type, offset: float) -> None:
    x, y, folds = data(dtype, offset)
    sums = fold_class_sums(x, y, folds)
    wide = x.astype(np.float64)
    for moments, rows in (
        (sums.total(), np.ones(203, dtype=bool)),
        (sums.train(2), folds != 2),
        (sums.fold(4), folds == 4),
    ):
        for c in range(3):
            part = wide[rows & (y == c)]
            assert moments.n[c] == len(part)
            np.testing.assert_allclose(moments.mean[c], part.mean(0), rtol=1e-9, atol=1e-9)
            # At an offset of 1e8, E[x²] - E[x]² has no correct digit left.
            np.testing.assert_allclose(moments.var[c], part.var(0), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_divergence_is_its_definition(n_classes: int) -> None:
    x, y, folds = data(np.float64, n_classes=n_classes)
    moments = fold_class_sums(x, y, folds).total()
    means = np.stack([x[y == c].mean(0) for c in range(n_classes)])
    gap = means.max(0) - means.min(0)
    residual = x - means[y]
    spread = {"pooled": residual.std(0), "total": x.std(0), "negative": x[y == 0].std(0)}
    for sigma in SIGMAS:
        np.testing.assert_allclose(divergence(*moments, sigma=sigma), gap / (spread[sigma] + 1e-8), rtol=1e-9)


def test_total_sigma_bounds_the_divergence_by_two_and_orders_as_pooled_does() -> None:
    """Identities of two balanced classes: total = pooled / sqrt(1 + pooled² / 4) <= 2, whatever the data."""
    rng = np.random.default_rng(1)
    y = np.arange(100) % 2
    x = rng.normal(size=(100, 400)) + y[:, None] * rng.exponential(5, size=400)
    x[:, 0] = y  # perfect separation
    moments = fold_class_sums(x, y, np.zeros(100, dtype=int)).total()
    pooled, total = (divergence(*moments, sigma=sigma) for sigma in ("pooled", "total"))
    assert total.max() == pytest.approx(2, abs=1e-6)
    assert pooled.max() > 1e6
    np.testing.assert_allclose(total[1:], (pooled / np.sqrt(1 + pooled**2 / 4))[1:], rtol=1e-6)
    np.testing.assert_array_equal(np.argsort(-pooled, kind="stable"), np.argsort(-total, kind="stable"))


def test_a_constant_feature_has_divergence_zero() -> None:
    x, y = np.full((20, 3), 7.0), np.arange(20) % 2
    assert (divergence(*fold_class_sums(x, y, y).total()) == 0).all()


def test_bad_input_is_named() -> None:
    x, y, folds = data()
    x[17, 4321] = np.nan
    with pytest.raises(InputError, match="row 17, feature 4321"):
        fold_class_sums(x, y, folds)
    with pytest.raises(InputError, match="3 rows"):
        fold_class_sums(x[:3], y, folds)
    with pytest.raises(InputError, match="ints from 0"):
        fold_class_sums(x[:2], np.array([0.5, 1.0]), folds[:2])
    with pytest.raises(InputError, match="dtype"):
        fold_class_sums(np.zeros((4, 2), dtype=int), y[:4], folds[:4])
    only = fold_class_sums(np.zeros((4, 2)), np.ones(4, dtype=int), np.zeros(4, dtype=int)).total()
    with pytest.raises(InputError, match="fewer than two classes"):
        divergence(*only)
    with pytest.raises(InputError, match="'std'"):
        divergence(*only, sigma="std")  # type: ignore[arg-type]
