"""What a signature adds to the best trivial cue (conditional probing, Hewitt et al. 2021, arXiv 2109.09234).

The circuits study asks the same of a handful of neurons, which enter the classifier as they are beside a cue that was learnt
without each two folds and serves every circuit; a signature has more columns than a fold has rows, so that here both parts
enter as predictions. One routine would hold both protocols and share little but the name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from moescope.routing.classify import classifier, folds_by
from moescope.stats import class_weights
from moescope.tasks import group_folds

Cues = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""(rows that train, rows that are held out) -> what each cue says of the latter"""
_INNER = 2  # folds within the training rows, by which a cue is chosen and both parts are weighed
_FLOOR = 1e-3  # of a probability whose logarithm is taken


@dataclass(frozen=True)
class Conditional:
    """Held-out predictions (N,) of each cue, of the chosen cue, and of that with the signature; which cue each fold chose."""

    said: dict[str, np.ndarray]
    cue: np.ndarray
    both: np.ndarray
    chosen: tuple[str, ...]


def conditional(x: np.ndarray, cues: Cues, y: np.ndarray, folds: np.ndarray, groups: np.ndarray, seed: int) -> Conditional:
    """Predict the category by the best trivial cue, and by that and the signature together.

    Both parts enter as predictions on rows that they were not fitted on, so the signature's many columns do not drown the cue;
    the cue is chosen by balanced accuracy among the training rows of the fold.

    Args:
        x: (N, D) signatures.
        groups: (N,) kept whole by ``folds``, and by the folds within where there are enough.

    Raises:
        InputError: the training rows of a fold have a category of one row.
    """
    n_classes = int(y.max()) + 1
    alone, both, chosen = np.empty_like(y), np.empty_like(y), []
    every: dict[str, np.ndarray] = {}
    for fold in np.unique(folds):
        train, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        inner = folds_by(y[train], groups[train], _INNER, seed)
        if inner is None:
            inner = group_folds(y[train], train, 2, seed)
        said: dict[str, np.ndarray] = {}
        inside = np.empty((len(train), n_classes))
        for part in np.unique(inner):
            a, b = train[inner != part], train[inner == part]
            for name, predicted in cues(a, b).items():
                said.setdefault(name, np.empty_like(train))[inner == part] = predicted
            inside[inner == part] = _scores(x, y, a, b)
        weights = class_weights(y[train])
        best = max(said, key=lambda name: float((weights * (said[name] == y[train])).mean()))
        chosen.append(best)
        onehot = np.eye(n_classes)
        for name, predicted in cues(train, held).items():
            every.setdefault(name, np.empty_like(y))[held] = predicted
        cue = onehot[said[best]], onehot[every[best][held]]
        alone[held] = LogisticRegression().fit(cue[0], y[train]).predict(cue[1])
        joint = np.column_stack([cue[0], inside]), np.column_stack([cue[1], _scores(x, y, train, held)])
        both[held] = LogisticRegression().fit(joint[0], y[train]).predict(joint[1])
    return Conditional(every, alone, both, tuple(chosen))


def _scores(x: np.ndarray, y: np.ndarray, train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Logarithms of the categories' probabilities (held, C), centred."""
    found = np.log(np.maximum(classifier(x[train], y[train]).predict_proba(x[held]), _FLOOR))
    return np.asarray(found - found.mean(1, keepdims=True))
