"""The tables that describe one task's circuit: neurons, layers, columns, projection, sufficiency, stability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from moescope.select.nested import CVResult
from moescope.select.ranking import SIGMAS, FoldSums, MaxNull
from moescope.stats import expected_overlap, kuncheva, macro_auroc, nogueira, selective
from moescope.studies.circuits.features import Features, own_cv
from moescope.studies.circuits.geometry import (
    coordinates,
    functional_columns,
    layer_null,
    principal_component,
    two_sided,
)
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import CircuitSettings

CONFIDENT = 0.9  # a prediction counts as covered when its probability reaches this
SHOWN_NEURONS = 20
SHOWN_VALUES = 400
MASSIVE_ROW = 20.0  # a vector is massive beside this many times the median norm of its site

Halves = Sequence[tuple[np.ndarray, np.ndarray]]


def sufficiency_rows(
    features: Features, result: CVResult, classifier: str, selection: str, scorer: Scorer
) -> list[dict[str, Any]]:
    """One row per K: accuracy with its interval over groups, AUROC, and accuracy under abstention.

    ``coverage`` is the share of rows predicted with probability >= 0.9, ``selective_accuracy`` the accuracy on those:
    never to be read without ``accuracy``, the accuracy on all rows.
    """
    rows = []
    for i, k in enumerate(result.ks):
        correct, probability = result.correct[i], result.scores[i]
        low, high = scorer.interval(correct)
        curve = selective(probability.max(1), correct)
        coverage, covered_accuracy = curve.at(CONFIDENT)
        rows.append(
            {
                "task": features.task.name,
                "k": int(k),
                "classifier": classifier,
                "selection": selection,
                "accuracy": float(correct.mean()),
                "low": low,
                "high": high,
                "balanced": scorer.balanced(result.even[i]),
                "auroc": macro_auroc(probability, features.y),
                "coverage": coverage,
                "selective_accuracy": covered_accuracy,
                "accuracy_at_half_coverage": float(curve.accuracy[np.searchsorted(curve.coverage, 0.5)]),
                "n": len(correct),
            }
        )
    return rows


def neuron_table(
    features: Features,
    ranking: np.ndarray,
    scores: dict[Any, np.ndarray],
    null: MaxNull,
    massive: np.ndarray,
    cv: CVResult,
    settings: CircuitSettings,
) -> pd.DataFrame:
    """The best neurons with their divergence by each sigma, family-wise p, and how many folds choose them too."""
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
                "threshold_5pct": null.threshold(),
                "massive": bool(massive[column]),
                "fold_frequency": float((cv.selected[:, : settings.k] == column).any(1).mean()),
            }
        )
    return pd.DataFrame(rows)


def class_tables(features: Features, ranking: np.ndarray, seed: int) -> dict[str, pd.DataFrame]:
    """Activations of the best neurons by class: mean and sd, and (top ten) a sample of values to plot."""
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


def layer_table(features: Features, ranking: np.ndarray, divergences: np.ndarray, massive: np.ndarray) -> pd.DataFrame:
    """Per layer: how many of the best neurons, the spread of divergence, and massive activations.

    ``massive`` counts flagged coordinates; ``massive_rows`` texts whose vector is over 20 times the median norm, as the
    first token's and the first full stop's can be (Sun et al. 2024).
    """
    columns = features.columns
    layer_of = columns.layer_of
    rows = []
    for layer in columns.layers:
        inside = layer_of == layer
        here = divergences[inside]
        extreme = np.zeros(len(features.y), dtype=bool)
        for position, site in enumerate(columns.sites):
            if site.layer == layer:
                norm = np.linalg.norm(features.x[:, columns.slice_of(position)], axis=1)
                extreme |= norm > MASSIVE_ROW * np.median(norm)
        rows.append(
            {
                "task": features.task.name,
                "layer": layer,
                "count_top10": int((layer_of[ranking[:10]] == layer).sum()),
                "count_top100": int((layer_of[ranking[:100]] == layer).sum()),
                "max_divergence": float(here.max()),
                "mean_divergence": float(here.mean()),
                "q99": float(np.quantile(here, 0.99)),
                "massive": int(massive[inside].sum()),
                "massive_rows": int(extreme.sum()),
            }
        )
    return pd.DataFrame(rows)


def range_table(features: Features, ranking: np.ndarray, settings: CircuitSettings) -> pd.DataFrame:
    """First, last and mean layer of the circuit, beside its coordinates at random places (see :func:`layer_null`)."""
    columns, top = features.columns, ranking[: settings.k]
    inside = columns.layer_of[top]
    null = layer_null(top, columns, 1000, np.random.default_rng(features.seed))
    low, high = np.quantile(null, [0.025, 0.975])
    row = {
        "task": features.task.name,
        "k": settings.k,
        "coordinates": len(coordinates(top, columns)),
        "first_layer": int(inside.min()),
        "last_layer": int(inside.max()),
        "mean_layer": float(inside.mean()),
        "random_mean": float(null.mean()),
        "random_low": float(low),
        "random_high": float(high),
        "p": two_sided(float(inside.mean()), null),
    }
    return pd.DataFrame([row])


def column_table(features: Features, ranking: np.ndarray) -> pd.DataFrame:
    """Coordinates that recur over layers among the top ten (one row with neuron -1 where none does)."""
    found = functional_columns(features.x, ranking[:10], features.columns)
    shared = {"clusters": found["clusters"], "distinct_coordinates": found["distinct_coordinates"]}
    columns = found["columns"] or [(-1, ())]
    rows = [
        {
            "task": features.task.name,
            "clusters": shared["clusters"],
            "neuron": index,
            "n_layers": max(1, len(layers)),
            "layers": ",".join(map(str, layers)),
            "distinct_coordinates": shared["distinct_coordinates"],
        }
        for index, layers in columns
    ]
    return pd.DataFrame(rows)


def sigma_table(features: Features, sums: FoldSums, scores: dict[Any, np.ndarray], settings: CircuitSettings) -> pd.DataFrame:
    """What the choice of sigma changes: the circuit's accuracy, the best neuron and its divergence."""
    rows = []
    for sigma in SIGMAS:
        result = own_cv(features, settings, sigma=sigma, selection="nested", sums=sums)
        rows.append(
            {
                "task": features.task.name,
                "sigma": sigma,
                "k": settings.k,
                "accuracy": float(result.correct[0].mean()),
                "top1": str(features.columns.neuron(int(np.argmax(scores[sigma])))),
                "max_divergence": float(scores[sigma].max()),
            }
        )
    return pd.DataFrame(rows)


def stability_table(features: Features, cv: CVResult, halves: Halves, ks: Sequence[int]) -> pd.DataFrame:
    """Would the same neurons be chosen again? Per K: over training folds (Nogueira), and between halves of the data.

    The training folds share most rows, so the first is the generous and the second the honest answer.
    """
    n = features.columns.n
    rows = []
    for k in ks:
        overlap = float(np.mean([len(np.intersect1d(a[:k], b[:k])) for a, b in halves]))
        chosen = np.zeros((len(cv.selected), n), dtype=bool)
        if cv.selection == "nested" and k <= cv.selected.shape[1]:
            np.put_along_axis(chosen, cv.selected[:, :k], True, axis=1)
        rows.append(
            {
                "task": features.task.name,
                "k": k,
                "nogueira_folds": nogueira(chosen) if chosen.any() else float("nan"),
                "split_half_overlap": overlap,
                "split_half_kuncheva": float(np.mean([kuncheva(a[:k], b[:k], n) for a, b in halves])),
                "expected": expected_overlap(k, n),
            }
        )
    return pd.DataFrame(rows)


def projection_tables(features: Features, settings: CircuitSettings) -> dict[str, pd.DataFrame]:
    """Class means on the first principal component of the last site, with their nulls, and a sample of points to plot."""
    position = len(features.columns.sites) - 1
    summary, projection = principal_component(
        features,
        features.columns.slice_of(position),
        n_permutations=min(settings.n_permutations, 1000),
        seed=features.seed,
    )
    task, classes = features.task.name, features.task.classes
    means, sds = summary.pop("means"), summary.pop("sds")
    shared = {"layer": features.columns.sites[position].layer, **summary}
    rows = [{"task": task, "class": label, "mean": means[c], "sd": sds[c], **shared} for c, label in enumerate(classes)]
    kept = np.random.default_rng(features.seed).permutation(len(projection))[: SHOWN_VALUES * 2]
    kept = kept[np.argsort(features.y[kept], kind="stable")]  # classes in their order, as in every other table
    points = pd.DataFrame(
        {
            "task": task,
            "class": [classes[c] for c in features.y[kept]],
            "pc1": projection[kept, 0],
            "pc2": projection[kept, 1],
        }
    )
    return {"pc1": pd.DataFrame(rows), "projection": points}
