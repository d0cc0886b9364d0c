"""Closed-form LDA predicts as scikit-learn's does, also where a feature is constant or repeats another."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from moescope.errors import InputError
from moescope.select.lda import fit_lda, softmax, within_moments


def data(n_classes: int, width: int, seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.choice(n_classes, size=150, p=np.arange(1, n_classes + 1) / np.arange(1, n_classes + 1).sum())
    mixing = rng.normal(size=(width, width))
    centres = rng.normal(size=(n_classes, width))
    x = scale * ((rng.normal(size=(150, width)) + centres[y]) @ mixing) + 100 * scale
    return x, y, scale * rng.normal(size=(60, width)) @ mixing + 100 * scale


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("width", [1, 2, 10])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_predictions_and_probabilities_are_scikit_learn_s(n_classes: int, width: int, scale: float) -> None:
    x, y, new = data(n_classes, width, scale=scale)
    ours, theirs = fit_lda(x, y), LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(new), theirs.predict_proba(new), atol=1e-6)
    np.testing.assert_array_equal(ours.predict(new), theirs.predict(new))


def test_constant_and_collinear_features_add_nothing() -> None:
    x, y, new = data(3, 6)
    for rows in (x, new):
        rows[:, 2] = 5.0
        rows[:, 4] = 2 * rows[:, 0] - rows[:, 1]
    kept = [0, 1, 3, 5]
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x[:, kept], y)
    np.testing.assert_allclose(fit_lda(x, y).predict_proba(new), theirs.predict_proba(new[:, kept]), atol=1e-6)


def test_the_first_k_features_need_no_new_pass() -> None:
    x, y, new = data(2, 8)
    moments = within_moments(x, y)
    for k in range(1, 9):
        np.testing.assert_allclose(moments.lda(k).decision(new[:, :k]), fit_lda(x[:, :k], y).decision(new[:, :k]), atol=1e-9)


def test_labels_keep_their_names() -> None:
    x, y, _ = data(2, 2)
    assert set(fit_lda(x, np.array(["no", "yes"])[y]).predict(x)) == {"no", "yes"}


def test_softmax_of_huge_scores() -> None:
    np.testing.assert_array_equal(softmax(np.array([[1e4, 0.0]])), [[1.0, 0.0]])


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.zeros((4, 2)), np.zeros(4), "two classes"),
        (np.zeros((2, 2)), np.arange(2), "more rows than classes"),
        (np.array([[0.0], [1], [np.inf], [3]]), np.arange(4) % 2, "row 2"),
        (np.zeros((4, 0)), np.arange(4) % 2, "shapes"),
    ],
)
def test_bad_input_is_named(x: np.ndarray, y: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit_lda(x, y)
