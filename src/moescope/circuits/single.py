"""Everything that is measured on one task: ranking, sufficiency, neurons, projection, depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moescope.circuits.depth import depth_rows, layer_probes
from moescope.circuits.features import Features
from moescope.circuits.geometry import functional_columns, principal_component
from moescope.circuits.nested import CVResult, nested_cv
from moescope.circuits.ranking import (
    SIGMAS,
    FoldSums,
    MaxNull,
    divergence,
    fold_class_sums,
    massive_dimensions,
    permutation_max,
)
from moescope.circuits.settings import CircuitSettings
from moescope.errors import InputError
from moescope.stats import auroc, group_bootstrap, selective
from moescope.tasks import split_half
from moescope.types import Circuit

CONFIDENT = 0.9  # a prediction counts as covered when its probability reaches this
SHOWN_NEURONS = 20
SHOWN_VALUES = 400


@dataclass(frozen=True)
class TaskFindings:
    """What one task gave: intermediate arrays that other parts need, and finished tables.

    Attributes:
        ranking: (D,) columns, best first, by divergence on all rows.
        halves: the same from two disjoint halves of the groups.
        null: family-wise permutation null of the ranking.
        cv: cross-validation with the chosen selection over all ks.
        hits: (S, N) bool, full-probe hits per site.
    """

    features: Features
    sums: FoldSums
    ranking: np.ndarray
    divergence: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]
    null: MaxNull
    cv: CVResult
    cv_other: CVResult
    massive: np.ndarray
    hits: np.ndarray
    circuit: Circuit
    tables: dict[str, pd.DataFrame]


def analyse(features: Features, settings: CircuitSettings, *, surface: float, n_layers: int) -> TaskFindings:
    """Study one task on its captured features. ``surface`` is the best surface baseline's accuracy (for the depth figure).

    Raises:
        InputError: when a circuit size exceeds the number of neurons.
    """
    columns, name = features.columns, features.task.name
    ks = settings.all_ks()
    if max(ks) > columns.n:
        raise InputError(
            f"--ks: K = {max(ks)} is larger than the {columns.n} neurons of site {settings.site!r}; choose a smaller K"
        )
    x, y, folds = features.x, features.y, features.folds
    sums = fold_class_sums(x, y, folds)
    scores = {sigma: _divergence_of(sums, sigma) for sigma in SIGMAS}
    divergences = scores[settings.sigma]
    ranking = np.argsort(-divergences, kind="stable")
    halves = _split_half_rankings(features, settings)
    null = permutation_max(
        x, y, features.groups, n_permutations=settings.n_permutations, sigma=settings.sigma, seed=settings.seed
    )
    options: dict[str, Any] = {"sigma": settings.sigma, "classifier": settings.classifier, "sums": sums}
    cv = nested_cv(x, y, folds, ks, selection=settings.selection, **options)
    # The other protocol beside the chosen one: how far selection on all rows flatters.
    protocol: Any = "global" if settings.selection == "nested" else "nested"
    cv_other = nested_cv(x, y, folds, ks, selection=protocol, **options)
    other: Any = "logistic" if settings.classifier == "lda" else "lda"
    cv_classifier = nested_cv(
        x, y, folds, (settings.k,), sigma=settings.sigma, classifier=other, selection=settings.selection, sums=sums
    )
    massive = massive_columns(features)
    hits = layer_probes(features)
    accuracy = [
        *_sufficiency(features, cv, settings.classifier, settings.selection, settings.seed),
        *_sufficiency(features, cv_classifier, other, settings.selection, settings.seed),
        *_sufficiency(features, cv_other, settings.classifier, protocol, settings.seed),
    ]
    circuit = Circuit(
        name,
        tuple(columns.neuron(int(c)) for c in ranking[: settings.k]),
        tuple(float(divergences[c]) for c in ranking[: settings.k]),
        settings.sigma,
    )
    depth = depth_rows(
        features,
        ranking,
        sums,
        hits,
        surface,
        k=settings.k,
        sigma=settings.sigma,
        n_layers=n_layers,
        seed=settings.seed,
    )
    tables = {
        "accuracy": pd.DataFrame(accuracy),
        "neurons": _neuron_table(features, ranking, scores, null, massive, cv, settings),
        **_class_tables(features, ranking, settings.seed),
        "layers": _layer_table(features, ranking, divergences),
        "depth": pd.DataFrame(depth),
        "columns": _column_table(features, ranking),
        "sigma_compare": _sigma_table(features, sums, scores, settings),
        **_projection_tables(features, settings),
    }
    return TaskFindings(features, sums, ranking, divergences, halves, null, cv, cv_other, massive, hits, circuit, tables)


def _divergence_of(sums: FoldSums, sigma: Any) -> np.ndarray:
    mean, var, n = sums.total()
    return divergence(mean, var, n, sigma=sigma)


def massive_columns(features: Features) -> np.ndarray:
    """(D,) bool: massive activations, judged within each site (a dimension is massive beside its own layer's)."""
    columns = features.columns
    flags = [massive_dimensions(features.x[:, columns.slice_of(i)]) for i in range(len(columns.sites))]
    return np.concatenate(flags)


def rank_columns(x: np.ndarray, y: np.ndarray, sigma: Any) -> np.ndarray:
    """(D,) columns by divergence on all rows of x (N, D), best first."""
    sums = fold_class_sums(x, y, np.zeros(len(y), dtype=np.int64))
    return np.argsort(-_divergence_of(sums, sigma), kind="stable")


def _split_half_rankings(features: Features, settings: CircuitSettings) -> tuple[np.ndarray, np.ndarray]:
    half = split_half(features.y, features.groups, settings.seed)
    first, second = (rank_columns(features.x[rows], features.y[rows], settings.sigma) for rows in (half, ~half))
    return first, second


def _sufficiency(features: Features, result: CVResult, classifier: str, selection: str, seed: int) -> list[dict[str, Any]]:
    rows = []
    for i, k in enumerate(result.ks):
        correct, probability = result.correct[i], result.scores[i]
        low, high = group_bootstrap(correct, features.groups, seed=seed)
        confidence = probability.max(1)
        coverage, covered_accuracy = _at_confidence(confidence, correct)
        rows.append(
            {
                "task": features.task.name,
                "k": int(k),
                "classifier": classifier,
                "selection": selection,
                "accuracy": float(correct.mean()),
                "low": low,
                "high": high,
                "auroc": auroc(probability[:, 1], features.y) if features.n_classes == 2 else float("nan"),
                "coverage": coverage,
                "selective_accuracy": covered_accuracy,
                "accuracy_at_half_coverage": _at_coverage(confidence, correct, 0.5),
                "n": len(correct),
            }
        )
    return rows


def _at_confidence(confidence: np.ndarray, correct: np.ndarray) -> tuple[float, float]:
    covered = confidence >= CONFIDENT
    return float(covered.mean()), float(correct[covered].mean()) if covered.any() else float("nan")


def _at_coverage(confidence: np.ndarray, correct: np.ndarray, coverage: float) -> float:
    curve = selective(confidence, correct)
    return float(curve.accuracy[np.searchsorted(curve.coverage, coverage)])


def _neuron_table(
    features: Features,
    ranking: np.ndarray,
    scores: dict[str, np.ndarray],
    null: MaxNull,
    massive: np.ndarray,
    cv: CVResult,
    settings: CircuitSettings,
) -> pd.DataFrame:
    rows = []
    for rank, column in enumerate(ranking[:SHOWN_NEURONS], start=1):
        neuron = features.columns.neuron(int(column))
        rows.append(
            {
                "task": features.task.name,
                "rank": rank,
                "site": str(neuron.site),
                "layer": neuron.site.layer,
                "neuron": neuron.index,
                "divergence": float(scores[settings.sigma][column]),
                **{f"sigma_{sigma}": float(values[column]) for sigma, values in scores.items()},
                "p_family": float(null.p[column]),
                "threshold_5pct": float(np.quantile(null.max, 0.95)),
                "massive": bool(massive[column]),
                "fold_frequency": float((cv.selected[:, : settings.k] == column).any(1).mean()),
            }
        )
    return pd.DataFrame(rows)


def _class_tables(features: Features, ranking: np.ndarray, seed: int) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    summary, values = [], []
    for rank, column in enumerate(ranking[:SHOWN_NEURONS], start=1):
        neuron = features.columns.neuron(int(column))
        head = {"task": features.task.name, "rank": rank, "layer": neuron.site.layer, "neuron": neuron.index}
        for c, label in enumerate(features.task.classes):
            x = features.x[features.y == c, column].astype(np.float64)
            summary.append({**head, "class": label, "mean": x.mean(), "sd": x.std(ddof=1), "n": len(x)})
            if rank <= 10:
                kept = x if len(x) <= SHOWN_VALUES else rng.choice(x, SHOWN_VALUES, replace=False)
                values += [{**head, "class": label, "value": float(v)} for v in kept]
    return {"neuron_classes": pd.DataFrame(summary), "neuron_values": pd.DataFrame(values)}


def _layer_table(features: Features, ranking: np.ndarray, divergences: np.ndarray) -> pd.DataFrame:
    layer_of = features.columns.layer_of
    rows = []
    for layer in features.columns.layers:
        here = divergences[layer_of == layer]
        rows.append(
            {
                "task": features.task.name,
                "layer": layer,
                "count_top10": int((layer_of[ranking[:10]] == layer).sum()),
                "count_top100": int((layer_of[ranking[:100]] == layer).sum()),
                "max_divergence": float(here.max()),
                "mean_divergence": float(here.mean()),
                "q99": float(np.quantile(here, 0.99)),
            }
        )
    return pd.DataFrame(rows)


def _column_table(features: Features, ranking: np.ndarray) -> pd.DataFrame:
    found = functional_columns(features.x, ranking[:10], features.columns)
    head = {"task": features.task.name, "clusters": found["clusters"]}
    rows = [
        {
            **head,
            "neuron": index,
            "n_layers": len(layers),
            "layers": ",".join(map(str, layers)),
            "distinct_coordinates": found["distinct_coordinates"],
        }
        for index, layers in found["columns"]
    ]
    if not rows:
        rows = [{**head, "neuron": -1, "n_layers": 1, "layers": "", "distinct_coordinates": found["distinct_coordinates"]}]
    return pd.DataFrame(rows)


def _sigma_table(features: Features, sums: FoldSums, scores: dict[str, np.ndarray], settings: CircuitSettings) -> pd.DataFrame:
    rows = []
    for sigma in SIGMAS:
        result = nested_cv(features.x, features.y, features.folds, (settings.k,), sigma=sigma, sums=sums)
        best = features.columns.neuron(int(np.argmax(scores[sigma])))
        rows.append(
            {
                "task": features.task.name,
                "sigma": sigma,
                "k": settings.k,
                "accuracy": float(result.correct[0].mean()),
                "top1": str(best),
                "max_divergence": float(scores[sigma].max()),
            }
        )
    return pd.DataFrame(rows)


def _projection_tables(features: Features, settings: CircuitSettings) -> dict[str, pd.DataFrame]:
    last = features.columns.slice_of(len(features.columns.sites) - 1)
    summary, projection = principal_component(
        features, last, n_permutations=min(settings.n_permutations, 1000), seed=settings.seed
    )
    task, classes = features.task.name, features.task.classes
    shared = {key: summary[key] for key in ("distance", "explained", "null_distance", "p")}
    means = [
        {"task": task, "class": label, "mean": summary["means"][c], "sd": summary["sds"][c], **shared}
        for c, label in enumerate(classes)
    ]
    rng = np.random.default_rng(settings.seed)
    kept = rng.permutation(len(projection))[: SHOWN_VALUES * 2]
    points = pd.DataFrame(
        {
            "task": task,
            "class": [classes[c] for c in features.y[kept]],
            "pc1": projection[kept, 0],
            "pc2": projection[kept, 1],
        }
    )
    return {"pc1": pd.DataFrame(means), "projection": points}
