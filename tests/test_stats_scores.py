"""AUROC and accuracy under abstention."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from moescope.errors import InputError
from moescope.stats import auroc, selective, sign_free_auroc


def test_auroc_is_scikit_learn_s_with_ties() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=80)
    scores = rng.integers(5, size=(80, 3)).astype(float)
    expected = [roc_auc_score(y, column) for column in scores.T]
    np.testing.assert_allclose(auroc(scores, y), expected)
    assert auroc(scores[:, 0], y) == pytest.approx(expected[0])
    assert auroc(-scores[:, 0], y) == pytest.approx(1 - expected[0])


def test_sign_free_auroc_has_its_chance_above_a_half() -> None:
    rng = np.random.default_rng(1)
    y = np.arange(60) % 2
    values = sign_free_auroc(rng.normal(size=(60, 2000)), y)
    assert values.min() >= 0.5
    assert values.mean() == pytest.approx(0.5 + np.sqrt(61 / (6 * np.pi * 900)), abs=0.003)
    assert sign_free_auroc(-y.astype(float), y) == 1


def test_selective_accuracy_counts_only_what_is_answered() -> None:
    confidence = np.array([0.99, 0.95, 0.95, 0.6, 0.5])
    correct = np.array([1, 1, 0, 1, 0])
    curve = selective(confidence, correct)
    assert curve.at(0.9) == pytest.approx((0.6, 2 / 3))
    assert curve.at(0.97) == pytest.approx((0.2, 1.0))
    assert curve.at(0.0) == pytest.approx((1.0, 0.6))
    none, accuracy = curve.at(0.999)
    assert none == 0
    assert np.isnan(accuracy)
    assert curve.coverage.tolist() == [0.2, 0.6, 0.8, 1.0]  # equal confidences are answered together


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: auroc([1.0, 2.0], [1, 1]), "both classes"),
        (lambda: auroc([1.0, np.nan], [0, 1]), "NaN"),
        (lambda: auroc([1.0, 2.0, 3.0], [0, 1, 2]), "0 and 1"),
        (lambda: selective([0.4], [1, 0]), "one confidence per row"),
        (lambda: selective([np.nan], [1]), "NaN"),
    ],
)
def test_bad_input_is_named(call, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=said):
        call()
