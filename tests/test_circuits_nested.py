"""Selection inside the fold stays at chance on noise, selection outside leaks, and both are what a plain pipeline does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moescope.errors import InputError
from moescope.select.nested import fit_classifier, fixed_cv, nested_cv
from moescope.select.ranking import SIGMAS, fold_class_sums
from moescope.tasks import group_folds


def expected_leak(n_rows: int, n_features: int, k: int, n_folds: int) -> float:
    """Held-out accuracy of LDA on the k best of n_features noise features, chosen on all n_rows (two balanced classes).

    The best have |z| at the quantiles of a half-normal, so class means d = 2 |z| / sqrt(N) apart in standard deviations.
    Given that, the training part differs by e of variance t = 4 / N (1 / (1 - 1 / F) - 1), the held-out part by
    -(F - 1) e. LDA weighs features by the training difference, and is right with probability
    Phi((|d|² - (F - 1) k t) / (2 sqrt(|d|² + k t))).
    """
    z = norm.isf((np.arange(1, k + 1) - 0.5) / n_features / 2)
    d2 = 4 * float((z**2).sum()) / n_rows
    t = 4 / n_rows * (1 / (1 - 1 / n_folds) - 1)
    return float(norm.cdf((d2 - (n_folds - 1) * k * t) / (2 * np.sqrt(d2 + k * t))))


def noise(n_rows: int, n_features: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((n_rows, n_features), dtype=np.float32)
    return x, np.arange(n_rows) % 2, np.arange(n_rows) // 2 % 5


def test_noise_is_at_chance_when_nested_and_leaks_as_computed_when_not() -> None:
    n_rows, n_features, seeds = 400, 4096, 30
    accuracy = {"nested": [], "global": []}  # type: dict[str, list[float]]
    for seed in range(seeds):
        x, y, folds = noise(n_rows, n_features, seed)
        for selection, found in accuracy.items():
            found.append(float(nested_cv(x, y, folds, (10,), selection=selection).accuracy[0]))  # type: ignore[arg-type]
    leak = expected_leak(n_rows, n_features, 10, 5)
    assert leak == pytest.approx(0.681, abs=0.001)
    assert np.mean(accuracy["nested"]) == pytest.approx(0.5, abs=0.02)
    assert np.mean(accuracy["global"]) == pytest.approx(leak, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("n_rows", "seeds", "leak"), [(200, 20, 0.809), (1000, 6, 0.652)])
def test_noise_at_the_published_width(n_rows: int, seeds: int, leak: float) -> None:
    assert expected_leak(n_rows, 131072, 10, 5) == pytest.approx(leak, abs=0.001)
    found = np.array(
        [
            [nested_cv(x, y, folds, (10,), selection=selection).accuracy[0] for selection in ("nested", "global")]
            for x, y, folds in (noise(n_rows, 131072, seed) for seed in range(seeds))
        ]
    )
    assert found[:, 0].mean() == pytest.approx(0.5, abs=0.02)
    assert found[:, 1].mean() == pytest.approx(leak, abs=0.02)


def signal(n_classes: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=160)
    x = rng.normal(size=(160, 300)) * rng.exponential(size=300)
    x[:, :12] += 0.8 * rng.normal(size=(n_classes, 12))[y]
    return x, y, rng.integers(5, size=160)


def plain_divergence(x: np.ndarray, y: np.ndarray, sigma: str) -> np.ndarray:
    means = np.stack([x[y == c].mean(0) for c in range(y.max() + 1)])
    spread = {"pooled": (x - means[y]).std(0), "total": x.std(0), "negative": x[y == 0].std(0)}[sigma]
    return (means.max(0) - means.min(0)) / (spread + 1e-8)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("classifier", ["lda", "logistic"])
@pytest.mark.parametrize("selection", ["nested", "global"])
def test_it_is_a_plain_scikit_learn_pipeline(n_classes, sigma, classifier, selection) -> None:  # type: ignore[no-untyped-def]
    x, y, folds = signal(n_classes)
    ks = (1, 2, 5, 10)
    result = nested_cv(x, y, folds, ks, sigma=sigma, classifier=classifier, selection=selection)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    for fold in range(5):
        held = folds == fold
        choosing = np.ones(len(y), dtype=bool) if selection == "global" else ~held
        best = np.argsort(-plain_divergence(x[choosing], y[choosing], sigma), kind="stable")[:10]
        assert result.selected[fold].tolist() == best.tolist()
        for i, k in enumerate(ks):
            model = LinearDiscriminantAnalysis(solver="lsqr") if classifier == "lda" else logistic
            model.fit(x[~held][:, best[:k]], y[~held])
            np.testing.assert_array_equal(result.scores[i, held].argmax(1), model.predict(x[held][:, best[:k]]))
            np.testing.assert_allclose(result.scores[i, held], model.predict_proba(x[held][:, best[:k]]), atol=1e-5)
    np.testing.assert_array_equal(result.accuracy, (result.scores.argmax(2) == y).mean(1))


def test_sums_that_are_known_and_features_that_may_be_chosen() -> None:
    x, y, folds = signal()
    sums = fold_class_sums(x, y, folds)
    allowed = np.arange(300) >= 5
    with_sums = nested_cv(x, y, folds, (3, 6), sums=sums, allowed=allowed)
    np.testing.assert_array_equal(with_sums.scores, nested_cv(x, y, folds, (3, 6), allowed=allowed).scores)
    assert with_sums.selected.min() >= 5
    other = nested_cv(x[:, 5:], y, folds, (3, 6))
    np.testing.assert_array_equal(other.selected + 5, with_sums.selected)
    with pytest.raises(InputError, match="other activations, labels or folds"):
        nested_cv(x, 1 - y, folds, (3,), sums=sums)


def test_rows_of_one_group_must_not_straddle_folds() -> None:
    """Each text occurs four times, its label is random: group-aware folds are at chance, row-wise folds remember it."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 4)
    accuracy = {"groups": [], "rows": []}  # type: dict[str, list[float]]
    for seed in range(15):
        y = np.repeat(rng.permutation(60) % 2, 4)
        x = np.repeat(rng.normal(size=(60, 400)), 4, axis=0) + 0.1 * rng.normal(size=(240, 400))
        for name, given in (("groups", groups), ("rows", np.arange(240))):
            accuracy[name].append(float(nested_cv(x, y, group_folds(y, given, seed=seed), (10,)).accuracy[0]))
    assert np.mean(accuracy["groups"]) == pytest.approx(0.5, abs=0.05)
    assert np.mean(accuracy["rows"]) > 0.75


def test_fixed_features_are_cross_validated_as_they_are() -> None:
    x, y, folds = signal(3)
    chosen = np.array([4, 0, 7])
    result = fixed_cv(x[:, chosen], y, folds, ks=(1, 3))
    for fold in range(5):
        held = folds == fold
        model = LinearDiscriminantAnalysis(solver="lsqr").fit(x[~held][:, chosen], y[~held])
        np.testing.assert_array_equal(result.scores[1, held].argmax(1), model.predict(x[held][:, chosen]))
    assert result.selection == "fixed"
    np.testing.assert_array_equal(fit_classifier(x[:, chosen], y).predict(x[:, chosen]).shape, (160,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ks": (0,)}, "positive"),
        ({"ks": (301,)}, "k=301"),
        ({"selection": "outer"}, "'outer'"),
        ({"classifier": "svm"}, "'svm'"),
        ({"folds": np.zeros(160, dtype=int)}, "two folds"),
        ({"y": np.zeros(160, dtype=int)}, "two classes"),
        ({"y": (np.arange(160) == 3).astype(int)}, "class 1, fewer than 2"),
    ],
)
def test_bad_input_is_named(change, said) -> None:  # type: ignore[no-untyped-def]
    x, y, folds = signal()
    given = {"y": y, "folds": folds, "ks": (3,)} | change
    with pytest.raises(InputError, match=said):
        nested_cv(x, given.pop("y"), given.pop("folds"), given.pop("ks"), **given)
