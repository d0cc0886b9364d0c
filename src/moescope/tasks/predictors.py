"""Classifiers of one number or one value, as trivial cues are read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.tree import DecisionTreeClassifier

Predictor = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Takes training and held-out row indices and the labels, and returns the held-out predictions."""


def threshold_rule(x: np.ndarray, y: np.ndarray) -> tuple[float, int, float]:
    """The threshold and direction that score best on (x, y), binary.

    Returns (threshold, side, accuracy): class ``side`` is predicted where ``x > threshold``, the other where not. Of
    equal thresholds the lowest, which lies half way between two neighbouring values of ``x``, is taken.
    """
    order = np.argsort(x, kind="stable")
    xs, ys = x[order].astype(float), y[order]
    ones_below = np.concatenate([[0], np.cumsum(ys)])  # (N+1,) positives among the first i
    zeros_below = np.arange(len(ys) + 1) - ones_below
    right_one = zeros_below + (ys.sum() - ones_below)  # correct when class 1 lies above the cut
    cut = np.concatenate([[True], xs[1:] != xs[:-1], [True]])
    up = np.where(cut, right_one, -1)
    down = np.where(cut, len(ys) - right_one, -1)
    side = int(up.max() >= down.max())
    at = int(np.argmax(up if side else down))
    edges = np.concatenate([[xs[0] - 1], (xs[1:] + xs[:-1]) / 2, [xs[-1] + 1]])
    return float(edges[at]), side, float(max(up.max(), down.max()) / len(ys))


def by_threshold(x: np.ndarray, n_classes: int) -> Predictor:
    """One threshold for two classes; for more, the tree with as many leaves as classes."""

    def predict(train: np.ndarray, held: np.ndarray, y: np.ndarray) -> np.ndarray:
        if n_classes == 2:
            threshold, side, _ = threshold_rule(x[train], y[train])
            return np.where(x[held] > threshold, side, 1 - side)
        tree = DecisionTreeClassifier(max_leaf_nodes=n_classes, random_state=0).fit(x[train, None], y[train])
        return np.asarray(tree.predict(x[held, None]))

    return predict


def by_value(values: np.ndarray) -> Predictor:
    """The training majority class of each value; of an unseen value, the majority of all."""
    codes = np.unique(values, return_inverse=True)[1]

    def predict(train: np.ndarray, held: np.ndarray, y: np.ndarray) -> np.ndarray:
        table = np.zeros((codes.max() + 1, y.max() + 1))
        np.add.at(table, (codes[train], y[train]), 1)
        # A share of the overall counts, too small to outvote a single row, settles unseen values and ties.
        table += table.sum(axis=0) / (2 * table.sum())
        return np.asarray(table[codes[held]].argmax(axis=1))

    return predict
