"""Two tasks side by side: overlap against chance, transfer, refit, and a map over many tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moescope.select.nested import fit_classifier, fixed_cv
from moescope.select.ranking import layer_matched_sets, random_sets, top_variance
from moescope.stats import (
    benjamini_hochberg,
    disjoint_probability,
    expected_overlap,
    group_bootstrap,
    kuncheva,
    overlap_p,
    permutation_p,
    permute_labels,
    sign_free_auroc,
)
from moescope.studies.circuits.features import Features
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings

MAP_K = 100


def overlap_rows(a: TaskFindings, b: TaskFindings, ks: Sequence[int]) -> list[dict[str, Any]]:
    """Overlap of two tasks' top-K sets beside chance and beside each task's overlap with itself.

    ``overlap`` compares the rankings on all rows, with ``p`` the hypergeometric chance of at least as much and
    ``p_disjoint`` that of nothing shared. ``split_half_a`` and ``split_half_b`` are a task's overlap with itself, and
    ``split_half_cross`` that of the two tasks, between halves of the data: means over several halvings, of the same
    number of rows and so comparable with each other.
    """
    n = len(a.ranking)
    rows = []
    for k in ks:
        shared = len(np.intersect1d(a.ranking[:k], b.ranking[:k]))
        own = [float(np.mean([_shared(first, second, k) for first, second in found.halves])) for found in (a, b)]
        cross = [
            (_shared(first, other, k) + _shared(second, one, k)) / 2
            for (first, second), (one, other) in zip(a.halves, b.halves, strict=True)
        ]
        rows.append(
            {
                "task_a": a.features.task.name,
                "task_b": b.features.task.name,
                "k": k,
                "overlap": shared,
                "expected": expected_overlap(k, n),
                "p": overlap_p(shared, k, n),
                "p_disjoint": disjoint_probability(k, n),
                "kuncheva": kuncheva(a.ranking[:k], b.ranking[:k], n),
                "split_half_a": own[0],
                "split_half_b": own[1],
                "split_half_cross": float(np.mean(cross)),
            }
        )
    return rows


def _shared(a: np.ndarray, b: np.ndarray, k: int) -> int:
    return len(np.intersect1d(a[:k], b[:k]))


def cross_task_rows(source: TaskFindings, target: TaskFindings, settings: CircuitSettings) -> list[dict[str, Any]]:
    """How far the source's K neurons carry the target: zero-shot and refit, beside neurons of the same number by chance.

    ``transfer_accuracy`` is the published quantity: the classifier fitted on the source, applied to the target. Its
    polarity is arbitrary, so ``transfer_auroc`` takes the better sign (its chance level lies above 0.5). ``refit`` trains
    anew on the target with the source's neurons, which were chosen without the target's rows. Intervals are over groups
    of the target; those of random sets are the range of 95 % of the sets.
    """
    own, other = source.features, target.features
    k, seed = settings.k, other.seed
    chosen = source.ranking[:k]
    rows: list[dict[str, Any]] = []

    def add(method: str, value: float, interval: tuple[float, float]) -> None:
        head = {"source": own.task.name, "target": other.task.name, "method": method}
        rows.append({**head, "value": value, "low": interval[0], "high": interval[1]})

    if own.n_classes == other.n_classes:
        model = fit_classifier(own.x[:, chosen], own.y, settings.classifier)
        read = other.x[:, chosen].astype(np.float64)
        correct = model.predict(read) == other.y
        add("transfer_accuracy", float(correct.mean()), group_bootstrap(correct, other.groups, seed=seed))
        if other.n_classes == 2:
            scores = model.predict_proba(read)[:, 1]
            add("transfer_auroc", sign_free_auroc(scores, other.y), _auroc_interval(scores, other.y, other.groups, seed))
    for method, columns in (("refit", chosen), ("refit_top_variance", top_variance(target.sums.total(), k))):
        hits = set_hits(other, columns, settings)
        add(method, float(hits.mean()), group_bootstrap(hits, other.groups, seed=seed))
    rng = np.random.default_rng(seed)
    for method, sets in (
        ("refit_random", random_sets(rng, own.columns.n, k, settings.n_random)),
        ("refit_layer_matched", layer_matched_sets(rng, chosen, own.columns.layer_of, k, settings.n_random)),
    ):
        values = np.asarray([set_hits(other, members, settings).mean() for members in sets])
        low, high = np.quantile(values, [0.025, 0.975])
        add(method, float(values.mean()), (float(low), float(high)))
    return rows


def native_row(found: TaskFindings, settings: CircuitSettings) -> dict[str, Any]:
    """The diagonal of the cross-task matrix: the circuit's own held-out accuracy."""
    hits, name = found.circuit_hits(settings.k), found.features.task.name
    low, high = group_bootstrap(hits, found.features.groups, seed=found.features.seed)
    value = float(hits.mean())
    return {"source": name, "target": name, "method": "transfer_accuracy", "value": value, "low": low, "high": high}


def set_hits(features: Features, chosen: np.ndarray, settings: CircuitSettings) -> np.ndarray:
    """(N,) bool: held-out hits of the classifier on a given set of columns (no selection)."""
    return np.asarray(fixed_cv(features.x[:, chosen], features.y, features.folds, settings.classifier).correct[0])


def _auroc_interval(scores: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % group-bootstrap interval of the sign-free AUROC; the sign is chosen anew in each of 500 resamples."""
    rng = np.random.default_rng(seed)
    names, inverse = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    values = []
    for _ in range(500):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(names), len(names))])
        if len(np.unique(y[rows])) == 2:
            values.append(sign_free_auroc(scores[rows], y[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def task_map_rows(found: Sequence[TaskFindings], settings: CircuitSettings) -> list[dict[str, Any]]:
    """Similarity of every two tasks, by circuit and by probe direction, against chance.

    ``circuit`` is Kuncheva's chance-corrected overlap at K = 100, or a tenth of the neurons where that is less (chance 0,
    hypergeometric p, which takes neurons for independent). ``probe`` is |cosine| between the two tasks' standardised
    class-mean-difference directions at the last site; its chance level and p come from permuting the second task's
    labels. Multi-class tasks enter by the direction between their two most distant classes. ``p_adjusted`` is Benjamini
    and Hochberg's over all pairs of one measure.
    """
    rows: list[dict[str, Any]] = []
    for i, a in enumerate(found):
        for b in found[i + 1 :]:
            n = len(a.ranking)
            k = min(MAP_K, max(1, n // 10))
            head = {"a": a.features.task.name, "b": b.features.task.name}
            p = overlap_p(_shared(a.ranking, b.ranking, k), k, n)
            similar = kuncheva(a.ranking[:k], b.ranking[:k], n)
            rows.append({**head, "measure": "circuit", "value": similar, "chance": 0.0, "p": p})
            rows.append({**head, **_probe_similarity(a.features, b.features, settings)})
    for measure in ("circuit", "probe"):
        same = [row for row in rows if row["measure"] == measure]
        for row, adjusted in zip(same, benjamini_hochberg([row["p"] for row in same]), strict=True):
            row["p_adjusted"] = float(adjusted)
    return rows


def _direction(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unit vector between the two most distant class means of standardised columns x (N, d)."""
    means = np.stack([x[y == c].mean(0) for c in np.unique(y)])
    gaps = means[:, None] - means[None]
    first, second = np.unravel_index(np.argmax((gaps**2).sum(-1)), gaps.shape[:2])
    difference = means[max(first, second)] - means[min(first, second)]
    return np.asarray(difference / (np.linalg.norm(difference) + 1e-12))


def _probe_similarity(a: Features, b: Features, settings: CircuitSettings) -> dict[str, Any]:
    last = a.columns.slice_of(len(a.columns.sites) - 1)
    # One scale for both, or the direction would measure the texts' difference in scale.
    joint = np.concatenate([a.x[:, last], b.x[:, last]]).astype(np.float64)
    scale = joint.std(0) + 1e-8
    xa, xb = a.x[:, last] / scale, b.x[:, last] / scale
    direction = _direction(xa, a.y)
    rng = np.random.default_rng(b.seed)
    observed = abs(float(direction @ _direction(xb, b.y)))
    null = np.asarray(
        [
            abs(float(direction @ _direction(xb, permute_labels(b.y, b.groups, rng))))
            for _ in range(min(settings.n_permutations, 500))
        ]
    )
    p = permutation_p(observed * (1 - 1e-9), null)
    return {"measure": "probe", "value": observed, "chance": float(null.mean()), "p": float(p)}
