"""Accuracy by depth: what an early exit could keep, honestly and as the source has it."""

from __future__ import annotations

from typing import Any

import numpy as np
from joblib import Parallel, delayed
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moescope.circuits.features import Features
from moescope.circuits.nested import nested_cv
from moescope.circuits.pairs import set_accuracy
from moescope.circuits.ranking import FoldSums
from moescope.stats import group_bootstrap


def probe_correct(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(N,) bool: out-of-fold hits of an L2 logistic regression on all columns of x (N, d), standardised in the fold.

    The strong baseline of every K-neuron probe. C = 0.1 suits N of hundreds to thousands; it is fixed, not tuned.
    """
    correct = np.zeros(len(y), dtype=bool)
    for fold in np.unique(folds):
        held = folds == fold
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300, tol=1e-3))
        model.fit(x[~held], y[~held])
        correct[held] = model.predict(x[held]) == y[held]
    return correct


def layer_probes(features: Features, *, n_jobs: int = 1) -> np.ndarray:
    """(S, N) bool: out-of-fold hits of the full probe at each site."""
    parts = [features.columns.slice_of(i) for i in range(len(features.columns.sites))]
    found = Parallel(n_jobs=n_jobs, prefer="threads")(
        delayed(probe_correct)(features.x[:, part], features.y, features.folds) for part in parts
    )
    return np.stack(list(found))


def best_layer_correct(hits: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Hits of the probe whose site is chosen, for each fold, by the accuracy on the other folds.

    Returns:
        (N,) bool and the chosen site position per fold, so that the best layer's accuracy is not a maximum over layers.
    """
    correct = np.zeros(hits.shape[1], dtype=bool)
    chosen = []
    for fold in np.unique(folds):
        held = folds == fold
        best = int(np.argmax(hits[:, ~held].mean(1)))
        chosen.append(best)
        correct[held] = hits[best, held]
    return correct, chosen


def depth_rows(
    features: Features,
    ranking: np.ndarray,
    sums: FoldSums,
    hits: np.ndarray,
    surface: float,
    *,
    k: int,
    sigma: Any,
    n_layers: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Accuracy at each depth by four curves.

    ``circuit_reselected``: the top K of layers 0..l, selected in the fold — the test. ``fixed_circuit``: the members of the
    final circuit that lie in layers 0..l; flat by construction once the circuit is covered — the identity behind "exit at
    no loss". ``full_probe``: logistic regression on the whole layer l. ``surface``: the best surface baseline.
    """
    rows: list[dict[str, Any]] = []
    columns = features.columns
    majority = float(np.bincount(features.y).max() / len(features.y))
    for layer in columns.layers:

        def add(curve: str, accuracy: float, interval: tuple[float, float], layer: int = layer) -> None:
            rows.append(
                {
                    "task": features.task.name,
                    "layer": layer,
                    "fraction": (layer + 1) / n_layers,
                    "curve": curve,
                    "accuracy": accuracy,
                    "low": interval[0],
                    "high": interval[1],
                }
            )

        allowed = columns.of_layers(layer)
        result = nested_cv(
            features.x, features.y, features.folds, (min(k, int(allowed.sum())),), sigma=sigma, allowed=allowed, sums=sums
        )
        correct = result.correct[0]
        add("circuit_reselected", float(correct.mean()), group_bootstrap(correct, features.groups, seed=seed))
        at_layer = [i for i, site in enumerate(columns.sites) if site.layer == layer]
        best = max(at_layer, key=lambda i: hits[i].mean())
        add("full_probe", float(hits[best].mean()), group_bootstrap(hits[best], features.groups, seed=seed))
        members = [c for c in ranking[:k] if allowed[c]]
        fixed = set_accuracy(features, np.asarray(members)) if members else majority
        add("fixed_circuit", fixed, (fixed, fixed))
        add("surface", surface, (surface, surface))
    return rows
