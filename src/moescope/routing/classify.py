"""Can the category be told from the signature? Cross-validated logistic regression, its intervals and its nulls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from moescope.errors import InputError
from moescope.routing.separation import two_sided
from moescope.routing.trace import RoutingTrace
from moescope.stats import class_weights, group_bootstrap, permuted_label_matrix
from moescope.study.rows import FoldRows
from moescope.tasks import group_folds


@dataclass(frozen=True)
class Score:
    """Held-out accuracy, the mean over categories of it (balanced) and macro F1, with intervals that resample groups."""

    accuracy: float
    low: float
    high: float
    balanced: float
    macro_f1: float
    f1_low: float
    f1_high: float
    n: int


def cross_validate(x: np.ndarray | sparse.csr_matrix, y: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Held-out predictions (N,) of logistic regression (C = 1 on standardised features; sparse ones are only scaled).

    Everything that is learned, the scale too, is learned on the training rows of the fold.
    """
    return np.asarray(cross_val_predict(_model(x), x, y, cv=PredefinedSplit(folds)))


def classifier(x: np.ndarray | sparse.csr_matrix, y: np.ndarray) -> Pipeline:
    """Logistic regression of categories (N,) on features (N, D), and their scale."""
    return _model(x).fit(x, y)


def _model(x: np.ndarray | sparse.csr_matrix) -> Pipeline:
    scale = MaxAbsScaler() if sparse.issparse(x) else StandardScaler()
    return make_pipeline(scale, LogisticRegression(max_iter=500, tol=1e-3))


def score(y: np.ndarray, predicted: np.ndarray, groups: np.ndarray | None = None, *, seed: int = 0) -> Score:
    """Scores of held-out predictions.

    Args:
        groups: (N,) what is resampled whole; None for single prompts.
    """
    correct = predicted == y
    low, high = group_bootstrap(correct.astype(float), groups, seed=seed)
    classes = np.unique(y)

    def f1(pairs: np.ndarray) -> float:
        return _macro_f1(pairs[:, 0], pairs[:, 1], classes)

    pairs = np.stack([y, predicted], axis=1)
    f1_low, f1_high = group_bootstrap(pairs, groups, stat=f1, n_boot=1000, seed=seed)
    macro = float(f1_score(y, predicted, labels=classes, average="macro", zero_division=0))
    balanced = float((class_weights(y) * correct).mean())
    return Score(float(correct.mean()), low, high, balanced, macro, f1_low, f1_high, len(y))


def _macro_f1(y: np.ndarray, predicted: np.ndarray, classes: np.ndarray) -> float:
    hits = np.array([((y == c) & (predicted == c)).sum() for c in classes])
    sizes = np.array([(y == c).sum() + (predicted == c).sum() for c in classes])
    return float(np.mean(2 * hits / np.maximum(sizes, 1)))


def confusion(y: np.ndarray, predicted: np.ndarray, categories: list[str]) -> list[dict[str, Any]]:
    """Rows ``true``, ``predicted``, ``n``, ``share`` (of the true category)."""
    table = confusion_matrix(y, predicted, labels=np.arange(len(categories)))
    return [
        {"true": a, "predicted": b, "n": int(table[i, j]), "share": float(table[i, j] / max(table[i].sum(), 1))}
        for i, a in enumerate(categories)
        for j, b in enumerate(categories)
    ]


def permuted_accuracy(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray | None, *, n_permutations: int, n_folds: int, seed: int
) -> tuple[np.ndarray, float]:
    """The permutation baseline: the whole cross-validation under shuffled labels.

    Args:
        groups: (N,) topics; labels are shuffled within a topic that holds several categories.

    Returns:
        balanced accuracies (P,), and the two-sided p of the balanced accuracy under the true labels in the same folds.
    """
    rng = np.random.default_rng(seed)
    labels = permuted_label_matrix(y, groups, n_permutations, rng)

    def balanced(shuffled: np.ndarray) -> float:
        folds = group_folds(shuffled, np.arange(len(y)), n_folds, seed)
        return float((class_weights(shuffled) * (cross_validate(x, shuffled, folds) == shuffled)).mean())

    null = np.array([balanced(shuffled) for shuffled in labels])
    return null, two_sided(balanced(y), null)


def folds_by(y: np.ndarray, groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray | None:
    """Folds that keep groups whole (as many as there are groups, at most ``n_folds``), or None where none can be made."""
    try:
        return group_folds(y, groups, min(n_folds, len(set(groups.tolist()))), seed)
    except InputError:
        return None


def prompt_folds(y: np.ndarray, topics: np.ndarray | None, n_folds: int, seed: int) -> FoldRows:
    """Folds that keep topics whole where prompts have them: prompts on one topic are no test of each other."""
    if topics is not None and (folds := folds_by(y, topics, n_folds, seed)) is not None:
        return FoldRows("prompts, topics whole", topics, folds)
    alone = np.arange(len(y))
    return FoldRows("prompts", alone, group_folds(y, alone, n_folds, seed))


def token_counts(trace: RoutingTrace) -> sparse.csr_matrix:
    """(N, V) how often each token id stands in each sequence: what a router that only knows token ids could know.

    Raises:
        InputError: the trace has no token ids.
    """
    if trace.tokens is None:
        raise InputError("the trace has no token ids; trace again with them for the token-identity baseline")
    _, code = np.unique(trace.tokens, return_inverse=True)
    ones = np.ones(len(code))
    return sparse.csr_matrix((ones, (trace.sequence, code)), shape=(len(trace.sequences), int(code.max(initial=0)) + 1))


LENGTH_BIN = 3  # tokens: within a bin the cosine of random routing moves by about 0.01 at 24 tokens, less beyond


def length_matched(tokens: np.ndarray, y: np.ndarray, seed: int = 0) -> np.ndarray:
    """Indices (sorted) of a subset in which every category has as many prompts of each length (bins of three tokens)."""
    rng = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for length in np.unique(tokens // LENGTH_BIN):
        members = [np.flatnonzero((tokens // LENGTH_BIN == length) & (y == c)) for c in np.unique(y)]
        take = min(len(m) for m in members)
        chosen += [rng.choice(m, take, replace=False) for m in members if take]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)
