"""The scikit-learn estimators keep scikit-learn's contract, and select as the study does."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from moescope.errors import InputError
from moescope.select.estimators import CircuitClassifier, DivergenceSelector
from moescope.select.nested import nested_cv


@parametrize_with_checks(
    [DivergenceSelector(k=2), CircuitClassifier(k=3), CircuitClassifier(k=3, sigma="total", classifier="logistic")]
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_contract(estimator, check) -> None:  # type: ignore[no-untyped-def]
    check(estimator)


def planted(rows: int = 120, width: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width))
    y = np.arange(rows) % 2
    x[:, [7, 100, 299]] += np.outer(y, [3.0, 2.0, 1.5])
    return x, y


def test_the_selector_orders_as_the_f_test_does() -> None:
    x, y = planted()
    selector = DivergenceSelector(k=3).fit(x, y)
    assert selector.ranking_.tolist() == [7, 100, 299]
    assert selector.get_support(indices=True).tolist() == [7, 100, 299]
    np.testing.assert_array_equal(selector.transform(x), x[:, [7, 100, 299]])
    reference = SelectKBest(f_classif, k=40).fit(x, y)
    np.testing.assert_array_equal(DivergenceSelector(k=40).fit(x, y).get_support(), reference.get_support())
    np.testing.assert_array_equal(np.argsort(-selector.scores_), np.argsort(-reference.scores_))
    assert DivergenceSelector(k=3, sigma="total").fit(x, y).scores_.max() <= 2


@pytest.mark.parametrize("classifier", ["lda", "logistic"])
def test_the_classifier_is_the_pipeline_and_the_study_in_one(classifier) -> None:  # type: ignore[no-untyped-def]
    x, y = planted(seed=1)
    names = np.array(["no", "yes"])[y]
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model = LinearDiscriminantAnalysis() if classifier == "lda" else logistic
    folds = np.random.default_rng(0).permutation(len(y)) % 5
    split = PredefinedSplit(folds)
    ours = cross_val_predict(CircuitClassifier(k=6, classifier=classifier), x, names, cv=split)
    pipeline = make_pipeline(SelectKBest(f_classif, k=6), model)
    np.testing.assert_array_equal(ours, cross_val_predict(pipeline, x, names, cv=split))
    nested = nested_cv(x, y, folds, (6,), classifier=classifier)
    np.testing.assert_array_equal(ours == "yes", nested.scores.argmax(axis=2)[0] == 1)


def test_more_features_asked_for_than_there_are() -> None:
    x, y = planted(width=300)
    with pytest.warns(UserWarning, match="k=301 is more than the 300 features"):
        assert DivergenceSelector(k=301).fit(x, y).get_support().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"k": 0}, "k=0"), ({"k": 2.5}, "k=2.5"), ({"sigma": "std"}, "'std'"), ({"classifier": "svm"}, "'svm'")],
)
def test_bad_options_are_named(options, said) -> None:  # type: ignore[no-untyped-def]
    x, y = planted(rows=20)
    with pytest.raises(InputError, match=said):
        CircuitClassifier(**options).fit(x, y)
