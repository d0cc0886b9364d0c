"""Accuracy by depth: what an early exit could keep, honestly and as the source has it."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moescope.select.nested import CVResult, fit_classifier
from moescope.select.ranking import FoldSums
from moescope.stats import group_bootstrap, paired_bootstrap_difference
from moescope.studies.circuits.features import Features, own_cv
from moescope.studies.circuits.settings import CircuitSettings


def probe_correct(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(N,) bool: out-of-fold hits of an L2 logistic regression on all columns of x (N, d), standardised in the fold.

    The strong baseline of every K-neuron probe. C = 0.1 suits N of hundreds to thousands; it is fixed, not tuned.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300, tol=1e-3))
    return np.asarray(cross_val_predict(model, x, y, cv=PredefinedSplit(folds)) == y)


def layer_probes(features: Features) -> np.ndarray:
    """(S, N) bool: out-of-fold hits of the full probe at each site."""
    parts = [features.columns.slice_of(i) for i in range(len(features.columns.sites))]
    return np.stack([probe_correct(features.x[:, part], features.y, features.folds) for part in parts])


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
    sums: FoldSums,
    cv: CVResult,
    hits: np.ndarray,
    surface: float,
    settings: CircuitSettings,
    *,
    n_layers: int,
) -> list[dict[str, Any]]:
    """Accuracy at each depth by four curves, each beside what it loses to the deepest layer (paired, by group bootstrap).

    ``circuit_reselected``: the top K of layers 0..l, selected in the fold: the test. ``fixed_circuit``: the members of the
    circuit of all layers that lie in layers 0..l, each fold with its own; flat by construction once the circuit is
    covered, which is the identity behind "exit at no loss". ``full_probe``: logistic regression on the whole layer l.
    ``surface``: the best surface baseline, which needs no layer.
    """
    columns, rows = features.columns, []
    curves: dict[str, list[np.ndarray]] = {"circuit_reselected": [], "fixed_circuit": [], "full_probe": []}
    for layer in columns.layers:
        allowed = columns.of_layers(layer)
        result = own_cv(features, settings, ks=(min(settings.k, int(allowed.sum())),), allowed=allowed, sums=sums)
        curves["circuit_reselected"].append(result.correct[0])
        curves["fixed_circuit"].append(_fixed(features, cv.selected[:, : settings.k], allowed, settings))
        at_layer = [i for i, site in enumerate(columns.sites) if site.layer == layer]
        curves["full_probe"].append(hits[max(at_layer, key=lambda i: hits[i].mean())])
    for place, layer in enumerate(columns.layers):
        head = {"task": features.task.name, "layer": layer, "fraction": (layer + 1) / n_layers}
        for curve, correct in curves.items():
            low, high = group_bootstrap(correct[place], features.groups, seed=features.seed)
            lost = paired_bootstrap_difference(correct[-1], correct[place], features.groups, seed=features.seed)
            rows.append(
                {
                    **head,
                    "curve": curve,
                    "accuracy": float(correct[place].mean()),
                    "low": low,
                    "high": high,
                    "loss": lost.value,
                    "loss_low": lost.low,
                    "loss_high": lost.high,
                }
            )
        bounds = {"accuracy": surface, "low": surface, "high": surface}
        rows.append({**head, "curve": "surface", **bounds, "loss": 0.0, "loss_low": 0.0, "loss_high": 0.0})
    return rows


def _fixed(features: Features, selected: np.ndarray, allowed: np.ndarray, settings: CircuitSettings) -> np.ndarray:
    """(N,) bool: held-out hits of the allowed members of each fold's circuit; without members, of the majority class."""
    x, y = features.x, features.y
    correct = np.zeros(len(y), dtype=bool)
    for fold, chosen in enumerate(selected):
        held = features.folds == fold
        members = chosen[allowed[chosen]]
        if len(members):
            model = fit_classifier(x[np.ix_(~held, members)], y[~held], settings.classifier)
            correct[held] = model.predict(x[np.ix_(held, members)]) == y[held]
        else:
            correct[held] = y[held] == np.bincount(y[~held]).argmax()
    return correct
