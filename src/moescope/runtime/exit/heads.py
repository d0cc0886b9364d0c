"""Small linear heads, one for each depth, and how they are fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from moescope.errors import InputError
from moescope.runtime.choices import Kind
from moescope.runtime.exit.features import ExitFeatures
from moescope.select.ranking import top_k
from moescope.select.sums import divergence, fold_class_sums

_C = 0.1  # L2 penalty of the logistic regression, fixed and not tuned, as for the probes of the circuits study


@dataclass(frozen=True)
class Heads:
    """A linear classifier after each of L layers.

    ``weight[l]`` (C, F) and ``bias[l]`` (C,), float32, act on raw features; standardisation and temperature are inside.
    ``columns[l]`` (F,) int64 says which coordinates a circuit head reads, as layer · D + coordinate; None for other kinds,
    which read all D of their own layer.
    """

    kind: Kind
    weight: tuple[np.ndarray, ...]
    bias: tuple[np.ndarray, ...]
    columns: tuple[np.ndarray, ...] | None = None

    @property
    def n_layers(self) -> int:
        return len(self.weight)

    def probabilities(self, features: ExitFeatures) -> np.ndarray:
        """(N, L, C) float64: what every head says of every row."""
        out = [softmax(x @ w.T + b, axis=1) for x, w, b in zip(self._inputs(features), self.weight, self.bias, strict=True)]
        return np.stack(out, axis=1)

    def _inputs(self, features: ExitFeatures) -> list[np.ndarray]:
        if self.columns is not None:
            flat = features.final.reshape(len(features.final), -1)
            return [flat[:, c].astype(np.float64) for c in self.columns]
        values = features.mean if self.kind == "pooled" else features.final
        return [values[:, layer].astype(np.float64) for layer in range(self.n_layers)]


@dataclass(frozen=True)
class Fitted:
    """Heads of one kind, and the accuracy of each on training rows that it was not fitted on, (L,)."""

    heads: Heads
    accuracy: np.ndarray


def fit_heads(kind: Kind, features: ExitFeatures, y: np.ndarray, folds: np.ndarray, *, k: int = 10) -> Fitted:
    """Logistic regressions (standardised, L2) at every depth, with a temperature each from rows left out in turn.

    A circuit head chooses its K coordinates among those of all layers up to its own, by the divergence of the class means
    (pooled sigma), anew for each depth and within each fold.

    Args:
        features: of the training rows only.
        y: (N,) int classes 0..C-1, all present.
        folds: (N,) int64, the fold in which each row is left out; see :func:`moescope.tasks.group_folds`.

    Raises:
        InputError: K is larger than the model's width.
    """
    n, n_layers, width = features.final.shape
    check_k(k, width)
    n_classes = int(y.max()) + 1
    columns = _columns(features, y, np.ones(n, dtype=bool), k)
    by_fold = {fold: _columns(features, y, folds != fold, k) for fold in np.unique(folds)}
    weights, biases, accuracy = [], [], np.zeros(n_layers)
    for layer in range(n_layers):
        held_out = np.empty((n, n_classes))
        for fold, chosen in by_fold.items():
            held = folds == fold
            x = _layer_input(kind, features, layer, chosen)
            w, b = _logistic(x[~held], y[~held], n_classes)
            held_out[held] = x[held] @ w.T + b
        accuracy[layer] = (held_out.argmax(1) == y).mean()
        w, b = _logistic(_layer_input(kind, features, layer, columns), y, n_classes)
        warm = _temperature(held_out, y)
        weights.append((w / warm).astype(np.float32))
        biases.append((b / warm).astype(np.float32))
    return Fitted(Heads(kind, tuple(weights), tuple(biases), tuple(columns) if kind == "circuit" else None), accuracy)


def check_k(k: int, width: int) -> None:
    """Raises InputError where a layer has fewer than K coordinates."""
    if k > width:
        raise InputError(f"K = {k} is larger than the {width} residual coordinates of a layer; choose a smaller K", "k")


def _columns(features: ExitFeatures, y: np.ndarray, rows: np.ndarray, k: int) -> list[np.ndarray]:
    """The K most divergent coordinates of layers 0..l for each l."""
    _, n_layers, width = features.final.shape
    flat = features.final.reshape(len(y), -1)[rows]
    score = divergence(*fold_class_sums(flat, y[rows], np.zeros(int(rows.sum()), dtype=np.int64)).total(), sigma="pooled")
    layer_of = np.repeat(np.arange(n_layers), width)
    return [np.sort(top_k(score, k, layer_of <= layer)) for layer in range(n_layers)]


def _layer_input(kind: Kind, features: ExitFeatures, layer: int, columns: list[np.ndarray]) -> np.ndarray:
    if kind == "circuit":
        return features.final.reshape(len(features.final), -1)[:, columns[layer]].astype(np.float64)
    return (features.mean if kind == "pooled" else features.final)[:, layer].astype(np.float64)


def _logistic(x: np.ndarray, y: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, F) and biases (C,) on raw features."""
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1.0
    model = LogisticRegression(C=_C, max_iter=300, tol=1e-3).fit((x - mean) / scale, y)
    coef, intercept = model.coef_, model.intercept_
    if n_classes == 2:  # one row of log-odds: class 0 gets none
        coef, intercept = np.vstack([np.zeros_like(coef), coef]), np.concatenate([[0.0], intercept])
    coef = coef / scale
    return coef, intercept - coef @ mean


def _temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """The divisor that makes held-out logits likeliest (Guo et al. 2017), so that depths are confident on one scale."""
    rows = np.arange(len(y))
    found = minimize_scalar(
        lambda t: -log_softmax(logits / np.exp(t), axis=1)[rows, y].mean(), bounds=(-3, 3), method="bounded"
    )
    return float(np.exp(found.x))
