"""Cross-validation of small circuits with selection inside the fold, and the leaky protocol beside it.

On pure noise with 131,072 features and K = 10, choosing features on all rows and then cross-validating gives about 80 %
held-out accuracy at N = 200; choosing them inside each fold gives 50 %: hence the default, ``selection="nested"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from moescope.errors import InputError
from moescope.select.lda import LDA, fit_lda, within_moments
from moescope.select.ranking import top_k
from moescope.select.sums import FoldSums, Sigma, check_ints, divergence, fold_class_sums

Classifier = Literal["lda", "logistic"]
CLASSIFIERS: tuple[Classifier, ...] = ("lda", "logistic")
Selection = Literal["nested", "global"]
SELECTIONS: tuple[Selection, ...] = ("nested", "global")


@dataclass(frozen=True)
class CVResult:
    """Held-out results of a cross-validation for several circuit sizes; every row is held out once."""

    ks: tuple[int, ...]
    accuracy: NDArray[np.float64]
    """Share of rows predicted rightly when held out, shape (nK,)."""
    correct: NDArray[np.bool_]
    """Shape (nK, N)."""
    even: NDArray[np.bool_]
    """The same with the classes' shares in the training rows taken out of the probabilities, so that a rare class is named as
    readily as a common one, shape (nK, N). What decides; its mean over classes is :func:`moescope.stats.balanced`."""
    scores: NDArray[np.float64]
    """Class probabilities of each row when held out, shape (nK, N, C)."""
    selected: NDArray[np.int64]
    """Features chosen for each fold, best first, shape (F, max K); for ``"global"`` each row is the same."""
    selection: str = "nested"
    """``"nested"``, ``"global"`` (optimistic: the held-out rows helped to choose) or ``"fixed"``."""

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Highest class probability of each row when held out, shape (nK, N)."""
        return np.asarray(self.scores.max(axis=2))


def nested_cv(
    X: NDArray[Any],
    y: ArrayLike,
    folds: ArrayLike,
    ks: Sequence[int],
    *,
    sigma: Sigma = "pooled",
    classifier: Classifier = "lda",
    selection: Selection = "nested",
    allowed: NDArray[np.bool_] | None = None,
    sums: FoldSums | None = None,
) -> CVResult:
    """Choose the K most divergent features on the training folds, fit on them, and read the held-out fold.

    Args:
        X: activations, shape (N, D), float16, float32 or float64.
        y: class of each row, shape (N,), ints 0..C-1.
        folds: fold of each row, shape (N,), ints 0..F-1. Groups must not straddle folds: see ``tasks.group_folds``.
        ks: circuit sizes; the smaller are prefixes of the larger.
        sigma: what the divergence divides by.
        classifier: ``"lda"``, or ``"logistic"``: standardised on the training rows, scikit-learn's default penalty.
        selection: ``"nested"``, or ``"global"``: the published protocol, which chooses on all rows and is optimistic.
        allowed: bool mask, shape (D,): features that may be chosen.
        sums: those of X, y and folds when they are known, so that X is read at the chosen features only.

    Raises:
        InputError: for an unknown option, fewer than two folds, a training set that lacks a class, or k out of range.
    """
    if selection not in SELECTIONS:
        raise InputError(f"selection={selection!r} is not one of {', '.join(SELECTIONS)}")
    labels, parts = check_ints(y, len(X), "label"), check_ints(folds, len(X), "fold")
    sizes = checked_ks(ks)
    n_folds = check_training_sets(labels, parts)
    if sums is None:
        sums = fold_class_sums(X, labels, parts)
    elif sums.n_features != X.shape[1] or not np.array_equal(sums.n, _counts(labels, parts)):
        raise InputError("the sums given are of other activations, labels or folds: leave sums= out, or compute them anew")
    largest = max(sizes)
    if selection == "nested":
        chosen = [top_k(divergence(*sums.train(fold), sigma=sigma), largest, allowed) for fold in range(n_folds)]
    else:
        chosen = [top_k(divergence(*sums.total(), sigma=sigma), largest, allowed)] * n_folds
    return held_out_cv(X, labels, parts, chosen, sizes, classifier, selection)


def fixed_cv(
    X: NDArray[Any], y: ArrayLike, folds: ArrayLike, classifier: Classifier = "lda", *, ks: Sequence[int] | None = None
) -> CVResult:
    """Cross-validate a classifier on given features, with no selection.

    Honest only when the features were chosen without these rows (another task, at random, by layer).

    Args:
        X: shape (N, K): the columns of the given features.
        y: class of each row, shape (N,), ints 0..C-1.
        folds: fold of each row, shape (N,), ints 0..F-1.
        classifier: ``"lda"`` or ``"logistic"``.
        ks: sizes of the prefixes to fit; None for all K columns.

    Raises:
        InputError: as :func:`nested_cv`.
    """
    rows = np.asarray(X)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"fixed features must have shape (rows, features), got {rows.shape}")
    labels, parts = check_ints(y, len(rows), "label"), check_ints(folds, len(rows), "fold")
    sizes = checked_ks([rows.shape[1]] if ks is None else ks)
    if max(sizes) > rows.shape[1]:
        raise InputError(f"k={max(sizes)} is more than the {rows.shape[1]} features given")
    n_folds = check_training_sets(labels, parts)
    return held_out_cv(rows, labels, parts, [np.arange(rows.shape[1])] * n_folds, sizes, classifier, "fixed")


def fit_classifier(X: ArrayLike, y: ArrayLike, classifier: Classifier = "lda") -> LDA | Pipeline:
    """Fit one classifier with ``predict`` and ``predict_proba``: to read other data (transfer), not to validate."""
    if classifier == "lda":
        return fit_lda(X, y)
    if classifier == "logistic":
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        return model.fit(np.asarray(X, dtype=np.float64), np.asarray(y))
    raise InputError(f"classifier={classifier!r} is not one of {', '.join(CLASSIFIERS)}")


def held_out_cv(
    X: NDArray[Any],
    labels: NDArray[np.int64],
    parts: NDArray[np.int64],
    chosen: Sequence[NDArray[np.int64]],
    sizes: tuple[int, ...],
    classifier: Classifier,
    selection: str,
) -> CVResult:
    """Each row predicted by the classifier of the fold that held it out, on the features ``chosen`` for that fold.

    ``chosen``: of each fold its features, best first, at least max(``sizes``); ``selection`` says how they were.
    """
    union, place = np.unique(np.concatenate(chosen), return_inverse=True)
    # X is read once more, at these columns only: at most F x max K of them.
    columns = X[:, union].astype(np.float64)
    scores = np.zeros((len(sizes), len(labels), int(labels.max()) + 1))
    width = len(chosen[0])
    for fold, _ in enumerate(chosen):
        test = parts == fold
        rows = columns[:, place[fold * width : (fold + 1) * width]]
        scores[:, test] = list(fitted(rows[~test], labels[~test], rows[test], sizes, classifier))
    correct = scores.argmax(axis=2) == labels
    even = (scores / training_shares(labels, parts)).argmax(axis=2) == labels
    return CVResult(sizes, correct.mean(axis=1), correct, even, scores, np.stack(chosen), selection)


def fitted(
    train: NDArray[np.float64],
    labels: NDArray[np.int64],
    held: NDArray[np.float64],
    sizes: tuple[int, ...],
    classifier: Classifier,
) -> Iterator[NDArray[np.float64]]:
    """Class probabilities of held-out rows (n, C) by the first K features, for each K."""
    if classifier == "lda":
        moments = within_moments(train, labels)
        for k in sizes:
            yield moments.lda(k).predict_proba(held[:, :k])
    else:
        for k in sizes:
            yield fit_classifier(train[:, :k], labels, classifier).predict_proba(held[:, :k])


def training_shares(labels: NDArray[np.int64], parts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each class among the rows that a row's fold was not held out of, shape (N, C)."""
    n = _counts(labels, parts)
    train = n.sum(axis=0) - n
    return np.asarray((train / train.sum(axis=1, keepdims=True))[parts])


def checked_ks(ks: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(int(k) for k in ks)
    if not sizes or min(sizes) < 1:
        raise InputError(f"circuit sizes {list(ks)} must be at least one positive int")
    return sizes


def _counts(labels: NDArray[np.int64], parts: NDArray[np.int64]) -> NDArray[np.int64]:
    n_classes, n_folds = int(labels.max()) + 1, int(parts.max()) + 1
    return np.bincount(parts * n_classes + labels, minlength=n_folds * n_classes).reshape(n_folds, n_classes)


def check_training_sets(labels: NDArray[np.int64], parts: NDArray[np.int64]) -> int:
    n = _counts(labels, parts)
    if n.shape[1] < 2:
        raise InputError("all rows are of class 0: a classifier needs at least two classes")
    if n.shape[0] < 2 or (n.sum(axis=1) == 0).any():
        raise InputError(f"cross-validation needs at least two folds, none empty; fold sizes are {n.sum(axis=1).tolist()}")
    train = n.sum(axis=0) - n
    if (train < 2).any():
        fold, label = (int(i) for i in np.argwhere(train < 2)[0])
        raise InputError(
            f"the training rows of fold {fold} hold {train[fold, label]} of class {label}, fewer than 2: "
            "use fewer folds or more examples"
        )
    return len(n)
