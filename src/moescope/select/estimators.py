"""Circuit selection for scikit-learn users: a selector and a classifier for pipelines, grids and cross-validation.

Selection happens inside ``fit``, so scikit-learn's own cross-validation is nested by construction.

>>> import numpy as np
>>> from sklearn.model_selection import cross_val_score
>>> X, y = np.random.default_rng(0).standard_normal((200, 1000)), np.arange(200) % 2
>>> float(cross_val_score(CircuitClassifier(k=5), X, y).mean()) < 0.65  # noise stays noise
True
>>> X[:, 3] += 3 * y
>>> float(cross_val_score(CircuitClassifier(k=5), X, y).mean()) > 0.85
True
"""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_selection import SelectorMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from moescope.errors import InputError
from moescope.select.lda import LDA
from moescope.select.nested import CLASSIFIERS, Classifier, fit_classifier
from moescope.select.ranking import top_k
from moescope.select.sums import Sigma, divergence, fold_class_sums


class DivergenceSelector(SelectorMixin, BaseEstimator):
    """Keep the k features of the largest divergence between class means, in units of a standard deviation.

    The score is the largest |mu_c - mu_c'| / (sigma + 1e-8) over pairs of classes (Choi 2025, "Hidden
    Mixture-of-Experts"); with two classes and ``sigma`` pooled or total it orders features as the F test does. Of equal
    scores the lowest index wins. Fitted with more features asked for than there are, it warns and keeps all.

    Args:
        k: how many features to keep.
        sigma: ``"pooled"``, ``"total"`` or ``"negative"``: see :func:`moescope.select.ranking.divergence`.

    Attributes:
        classes_: sorted labels, shape (C,).
        scores_: divergence of each feature, float64 (n_features_in_,).
        ranking_: chosen features, best first, int64 (min(k, n_features_in_),).

    Raises:
        InputError: from ``fit``, for a k below 1, an unknown sigma or fewer than two classes. It is a ValueError.
    """

    def __init__(self, k: int = 10, sigma: Sigma = "pooled") -> None:
        self.k = k
        self.sigma = sigma

    def fit(self, X: ArrayLike, y: ArrayLike) -> DivergenceSelector:
        """Score and rank the features of X (N, D), any float dtype, for the classes y (N,)."""
        rows, labels = validate_data(self, X, y, dtype=(np.float64, np.float32, np.float16), ensure_min_samples=2)
        check_classification_targets(labels)
        self.classes_, code = np.unique(labels, return_inverse=True)
        self.scores_ = _scores(rows, code, self.sigma)
        self.ranking_ = top_k(self.scores_, _size(self.k, rows.shape[1]))
        return self

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        mask = np.zeros(self.n_features_in_, dtype=bool)
        mask[self.ranking_] = True
        return mask

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


class CircuitClassifier(ClassifierMixin, BaseEstimator):
    """The k most divergent features and a linear classifier on them, both learnt in ``fit``.

    Args:
        k: how many features to use; with fewer in the data, it warns and uses all.
        sigma: as for :class:`DivergenceSelector`.
        classifier: ``"lda"`` (predictions equal scikit-learn's ``LinearDiscriminantAnalysis``), or ``"logistic"``
            (standardised, scikit-learn's default penalty).

    Attributes:
        classes_: sorted labels, shape (C,).
        scores_: divergence of each feature, float64 (n_features_in_,).
        circuit_: features used, best first, int64 (min(k, n_features_in_),).
        model_: the fitted classifier on those features.

    Raises:
        InputError: from ``fit``, as :class:`DivergenceSelector`, and for an unknown classifier. It is a ValueError.
    """

    def __init__(self, k: int = 10, sigma: Sigma = "pooled", classifier: Classifier = "lda") -> None:
        self.k = k
        self.sigma = sigma
        self.classifier = classifier

    def fit(self, X: ArrayLike, y: ArrayLike) -> CircuitClassifier:
        """Choose features of X (N, D), any float dtype, for the classes y (N,), and fit the classifier on them."""
        if self.classifier not in CLASSIFIERS:
            raise InputError(f"classifier={self.classifier!r} is not one of {', '.join(CLASSIFIERS)}")
        rows, labels = validate_data(self, X, y, dtype=(np.float64, np.float32, np.float16), ensure_min_samples=2)
        check_classification_targets(labels)
        self.classes_, code = np.unique(labels, return_inverse=True)
        self.scores_ = _scores(rows, code, self.sigma)
        self.circuit_ = top_k(self.scores_, _size(self.k, rows.shape[1]))
        self.model_ = fit_classifier(rows[:, self.circuit_].astype(np.float64), code, self.classifier)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities of rows X (N, D), shape (N, C)."""
        chosen = self._chosen(X)
        return np.asarray(self.model_.predict_proba(chosen))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Log-odds of the second class (N,) for two classes, else log-posteriors up to a constant per row (N, C)."""
        chosen = self._chosen(X)
        if isinstance(self.model_, LDA):
            scores = self.model_.decision(chosen)
            return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores
        return np.asarray(self.model_.decision_function(chosen))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest class of rows X (N, D), shape (N,)."""
        chosen = self._chosen(X)
        return np.asarray(self.classes_[self.model_.predict(chosen)])

    def _chosen(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=(np.float64, np.float32, np.float16), reset=False)
        return np.asarray(rows[:, self.circuit_], dtype=np.float64)


def _scores(rows: NDArray[Any], code: NDArray[np.intp], sigma: Sigma) -> NDArray[np.float64]:
    return divergence(*fold_class_sums(rows, code, np.zeros(len(rows), dtype=np.int64)).total(), sigma=sigma)


def _size(k: int, n_features: int) -> int:
    if not isinstance(k, Integral) or k < 1:
        raise InputError(f"k={k!r} must be a whole number of at least 1")
    if k > n_features:
        warnings.warn(f"k={k} is more than the {n_features} features, so all of them are kept", stacklevel=3)
    return min(int(k), n_features)
