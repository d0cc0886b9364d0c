"""The ridge from inner products is scikit-learn's, and its penalty the one that leaving each row out prefers."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeCV

from moescope.select.ridge import PENALTIES, ridge_scores


def test_scores_are_those_of_a_ridge_chosen_by_leaving_rows_out() -> None:
    rng = np.random.default_rng(0)
    for n, d in ((24, 6), (16, 200)):
        y = np.arange(n) % 3
        x, held = rng.normal(size=(n, d)) + y[:, None] * 0.5, rng.normal(size=(9, d))
        centred = x - x.mean(0)
        scale = np.square(centred).sum() / (n - 1)
        model = RidgeCV(alphas=np.array(PENALTIES) * scale).fit(x, np.eye(3)[y])
        found = ridge_scores(x @ x.T, y, held @ x.T, 3)
        np.testing.assert_allclose(found, model.predict(held), atol=1e-6)


def test_noise_is_shrunk_and_a_clear_class_is_not() -> None:
    rng = np.random.default_rng(1)
    y = np.arange(20) % 2
    x = rng.normal(size=(20, 400))
    clear = x + 3.0 * (2 * y[:, None] - 1) * (np.arange(400) < 2)
    noise, sure = (np.abs(np.diff(ridge_scores(m @ m.T, y, m @ m.T, 2))).mean() for m in (x, clear))
    assert noise < sure
