"""Two tasks side by side: overlap against chance, transfer, refit, and a map over many tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from moescope.circuits.features import Features
from moescope.circuits.lda import fit_lda
from moescope.circuits.nested import fixed_cv
from moescope.circuits.ranking import layer_matched_sets, random_sets
from moescope.stats import (
    expected_overlap,
    group_bootstrap,
    kuncheva,
    overlap_p,
    permutation_p,
    permute_labels,
    sign_free_auroc,
)

OVERLAP_KS = (10, 50, 100)


def overlap_rows(
    a: str, b: str, ranking_a: np.ndarray, ranking_b: np.ndarray, halves: dict[str, tuple[np.ndarray, np.ndarray]]
) -> list[dict[str, Any]]:
    """Overlap of two tasks' top-K sets beside chance and beside each task's overlap with itself.

    Args:
        ranking_a, ranking_b: (D,) columns, best first, on all data.
        halves: per task the rankings from two disjoint halves of its groups (the ceiling that overlap can reach).
    """
    n = len(ranking_a)
    rows = []
    for k in (k for k in OVERLAP_KS if k <= n):
        shared = len(np.intersect1d(ranking_a[:k], ranking_b[:k]))
        ceiling = {t: len(np.intersect1d(halves[t][0][:k], halves[t][1][:k])) for t in (a, b)}
        rows.append(
            {
                "task_a": a,
                "task_b": b,
                "k": k,
                "overlap": shared,
                "expected": expected_overlap(k, n),
                "p": overlap_p(shared, k, n),
                "kuncheva": kuncheva(ranking_a[:k], ranking_b[:k], n),
                "split_half_a": ceiling[a],
                "split_half_b": ceiling[b],
            }
        )
    return rows


def cross_task_rows(
    source: Features, target: Features, ranking: np.ndarray, *, k: int, n_random: int, seed: int
) -> list[dict[str, Any]]:
    """How far the source's K neurons carry the target: zero-shot and refit, beside neurons of the same number by chance.

    ``transfer_accuracy`` is the published quantity: LDA fitted on the source, applied to the target. Its polarity is
    arbitrary, so ``transfer_auroc`` takes the better sign. ``refit`` trains anew on the target with the source's neurons.
    """
    chosen = ranking[:k]
    rows: list[dict[str, Any]] = []

    def add(method: str, value: float, interval: tuple[float, float]) -> None:
        rows.append(
            {
                "source": source.task.name,
                "target": target.task.name,
                "method": method,
                "value": value,
                "low": interval[0],
                "high": interval[1],
            }
        )

    if source.n_classes == target.n_classes:
        model = fit_lda(source.x[:, chosen], source.y)
        correct = model.predict(target.x[:, chosen]) == target.y
        add("transfer_accuracy", float(correct.mean()), group_bootstrap(correct, target.groups, seed=seed))
        if target.n_classes == 2:
            scores = model.predict_proba(target.x[:, chosen])[:, 1]
            low, high = _auroc_interval(scores, target.y, target.groups, seed)
            add("transfer_auroc", sign_free_auroc(scores, target.y), (low, high))
    refit = fixed_cv(target.x[:, chosen], target.y, target.folds)
    add("refit", float(refit.correct[0].mean()), group_bootstrap(refit.correct[0], target.groups, seed=seed))
    rng = np.random.default_rng(seed)
    columns = source.columns
    for method, sets in (
        ("refit_random", random_sets(rng, columns.n, k, n_random)),
        ("refit_layer_matched", layer_matched_sets(rng, chosen, columns.layer_of, k, n_random)),
    ):
        values = np.asarray([set_accuracy(target, chosen_set) for chosen_set in sets])
        add(method, float(values.mean()), (float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))))
    variance = target.x.var(0, dtype=np.float64)
    top = fixed_cv(target.x[:, np.argsort(-variance)[:k]], target.y, target.folds)
    add("refit_top_variance", float(top.correct[0].mean()), group_bootstrap(top.correct[0], target.groups, seed=seed))
    return rows


def set_accuracy(features: Features, chosen: np.ndarray) -> float:
    """Cross-validated LDA accuracy of a given set of columns (no selection)."""
    return float(fixed_cv(features.x[:, np.asarray(chosen)], features.y, features.folds).correct[0].mean())


def _auroc_interval(scores: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % group-bootstrap interval of the sign-free AUROC (500 resamples; the sign is chosen anew in each)."""
    rng = np.random.default_rng(seed)
    names, inverse = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    values = []
    for _ in range(500):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(names), len(names))])
        if len(np.unique(y[rows])) == 2:
            values.append(sign_free_auroc(scores[rows], y[rows]))
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


def task_map_rows(
    features: dict[str, Features], rankings: dict[str, np.ndarray], *, k: int, n_permutations: int, seed: int
) -> list[dict[str, Any]]:
    """Similarity of every two tasks, by circuit and by probe direction, against chance.

    ``circuit`` is Kuncheva's chance-corrected overlap at K (chance 0, hypergeometric p). ``probe`` is |cosine| between the
    two tasks' standardised class-mean-difference directions at the last site; its chance level and p come from permuting
    the second task's labels. Multi-class tasks enter the probe row by their two most distant classes' direction.
    """
    names = list(features)
    rows: list[dict[str, Any]] = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            n = len(rankings[a])
            top = min(k, n)
            shared = len(np.intersect1d(rankings[a][:top], rankings[b][:top]))
            rows.append(
                {
                    "a": a,
                    "b": b,
                    "measure": "circuit",
                    "value": kuncheva(rankings[a][:top], rankings[b][:top], n),
                    "chance": 0.0,
                    "p": overlap_p(shared, top, n),
                }
            )
            rows.append({"a": a, "b": b, **_probe_similarity(features[a], features[b], n_permutations, seed)})
    return rows


def _direction(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unit vector between the two most distant class means of standardised columns x (N, d)."""
    means = np.stack([x[y == c].mean(0) for c in np.unique(y)])
    gaps = means[:, None] - means[None]
    first, second = np.unravel_index(np.argmax((gaps**2).sum(-1)), gaps.shape[:2])
    difference = means[max(first, second)] - means[min(first, second)]
    return difference / (np.linalg.norm(difference) + 1e-12)


def _probe_similarity(a: Features, b: Features, n_permutations: int, seed: int) -> dict[str, Any]:
    last = a.columns.slice_of(len(a.columns.sites) - 1)
    # One scale for both, or the direction would measure the texts' difference in scale.
    joint = np.concatenate([a.x[:, last], b.x[:, last]]).astype(np.float64)
    scale = joint.std(0) + 1e-8
    xa, xb = a.x[:, last] / scale, b.x[:, last] / scale
    direction = _direction(xa, a.y)
    rng = np.random.default_rng(seed)
    observed = abs(float(direction @ _direction(xb, b.y)))
    null = np.asarray(
        [abs(float(direction @ _direction(xb, permute_labels(b.y, b.groups, rng)))) for _ in range(n_permutations)]
    )
    return {
        "measure": "probe",
        "value": observed,
        "chance": float(null.mean()),
        "p": float(permutation_p(observed, null)),
    }
