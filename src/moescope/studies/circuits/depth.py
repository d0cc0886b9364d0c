"""Accuracy by depth: what an early exit could keep, honestly and as the source has it."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moescope.select.nested import CVResult, fit_classifier, fitted
from moescope.select.ranking import FoldSums
from moescope.stats import Difference
from moescope.studies.circuits.features import Features, own_cv
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import CircuitSettings, SearchSettings

RAW, EVEN = 0, 1
"""Where hits have a first axis of two: by the classifier as it is, and with the classes counted alike."""


def probe_scores(x: np.ndarray, y: np.ndarray, train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """(2, held, C): probabilities of an L2 logistic regression on all columns of x (N, d), standardised in training; as they
    are, and without the classes' shares in training.

    The strong baseline of every K-neuron probe. C = 0.1 suits N of hundreds to thousands; it is fixed, not tuned.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300, tol=1e-3))
    model.fit(x[train], y[train])
    scores = np.zeros((len(held), int(y.max()) + 1))
    scores[:, model.classes_] = model.predict_proba(x[held])
    return np.stack([scores, scores / np.maximum(np.bincount(y[train], minlength=scores.shape[1]), 1)])


def probe_hits(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(2, N) bool: out-of-fold hits of :func:`probe_scores`."""
    hits = np.zeros((2, len(y)), dtype=bool)
    for fold in np.unique(folds):
        train, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        hits[:, held] = probe_scores(x, y, train, held).argmax(axis=2) == y[held]
    return hits


def layer_probes(features: Features) -> np.ndarray:
    """(2, S, N) bool: out-of-fold hits of the full probe at each site."""
    parts = [features.columns.slice_of(i) for i in range(len(features.columns.sites))]
    return np.stack([probe_hits(features.x[:, part], features.y, features.folds) for part in parts], axis=1)


def direction_hits(features: Features, sums: FoldSums) -> np.ndarray:
    """(2, S, N) bool: out-of-fold hits of one direction at each site, the difference of the standardised class means."""
    x, y, columns = features.x, features.y, features.columns
    hits = np.zeros((2, len(columns.sites), len(y)), dtype=bool)
    for fold in range(sums.n_folds):
        held = features.folds == fold
        mean, var, n = sums.train(fold)
        share = n / n.sum()
        within = share @ var
        offset = np.where(within > 0, (mean - share @ mean) / np.where(within > 0, within, 1.0), 0.0)
        for s in range(len(columns.sites)):
            part = columns.slice_of(s)
            projected = x[:, part].astype(np.float64) @ (offset[1:, part] - offset[0, part]).T
            (scores,) = fitted(projected[~held], y[~held], projected[held], (projected.shape[1],), "lda")
            for way, values in ((RAW, scores), (EVEN, scores / share)):
                hits[way, s, held] = values.argmax(axis=1) == y[held]
    return hits


def best_site_hits(hits: np.ndarray, y: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Hits (2, S, N) of the site that is chosen, for each fold, by the balanced accuracy on the other folds.

    Returns:
        (2, N) bool and the chosen site position per fold, so that the best layer's accuracy is not a maximum over layers.
    """
    found = np.zeros((2, hits.shape[2]), dtype=bool)
    chosen = []
    for fold in np.unique(folds):
        held = folds == fold
        scorer = Scorer(y[~held], y[~held])
        best = max(range(hits.shape[1]), key=lambda s: scorer.balanced(hits[EVEN, s][~held]))
        chosen.append(best)
        found[:, held] = hits[:, best, held]
    return found, chosen


def early_layer(features: Features, fraction: float, n_layers: int) -> int:
    """The layer whose depth is nearest to a fraction of all ``n_layers``."""
    return min(features.columns.layers, key=lambda layer: abs((layer + 1) / n_layers - fraction))


def reselected(features: Features, sums: FoldSums, settings: SearchSettings, layer: int) -> CVResult:
    """The circuit chosen anew within layers 0 to ``layer``."""
    allowed = features.columns.of_layers(layer)
    return own_cv(features, settings, ks=(min(settings.k, int(allowed.sum())),), allowed=allowed, sums=sums)


def depth_rows(
    features: Features,
    results: dict[int, CVResult],
    cv: CVResult,
    hits: np.ndarray,
    cue: np.ndarray,
    scorer: Scorer,
    settings: CircuitSettings,
    *,
    n_layers: int,
) -> list[dict[str, Any]]:
    """Accuracy at each depth by four curves, each beside what it loses to the deepest layer (paired, by group bootstrap).

    ``circuit_reselected``: the top K of layers 0..l, selected in the fold: the test. ``fixed_circuit``: the members of the
    circuit of all layers that lie in layers 0..l, each fold with its own; flat by construction once the circuit is
    covered, which is the identity behind "exit at no loss". ``full_probe``: logistic regression on the whole layer l.
    ``surface``: the best trivial cue, which needs no layer.

    Args:
        results: of :func:`reselected` by layer. hits: (2, S, N) of the probes. cue: (N,) hits of the cue.
    """
    columns, rows = features.columns, []
    curves: dict[str, list[np.ndarray]] = {"circuit_reselected": [], "fixed_circuit": [], "full_probe": []}
    for layer in columns.layers:
        curves["circuit_reselected"].append(results[layer].correct[0])
        allowed = columns.of_layers(layer)
        curves["fixed_circuit"].append(_fixed(features, cv.selected[:, : settings.k], allowed, settings))
        at_layer = [i for i, site in enumerate(columns.sites) if site.layer == layer]
        curves["full_probe"].append(best_site_hits(hits[:, at_layer], features.y, features.folds)[0][RAW])
    low, high = scorer.interval(cue)
    bounds = {"accuracy": float(cue.mean()), "low": low, "high": high}
    for place, layer in enumerate(columns.layers):
        head = {"task": features.task.name, "layer": layer, "fraction": (layer + 1) / n_layers}
        for curve, correct in curves.items():
            low, high = scorer.interval(correct[place])
            lost = scorer.difference(correct[-1].astype(float), correct[place].astype(float))
            if place == len(columns.layers) - 1:  # beside itself
                lost = Difference(0.0, 0.0, 0.0, 1.0)
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
