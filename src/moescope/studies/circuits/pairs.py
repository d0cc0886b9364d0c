"""Two tasks side by side: overlap against chance, transfer, refit, and a map over many tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from moescope.select.nested import fit_classifier, fixed_cv
from moescope.select.ranking import layer_matched_sets, random_sets, top_variance
from moescope.stats import auroc, expanded_percentiles, group_bootstrap, permute_labels, sign_free_auroc
from moescope.studies.circuits.features import Features
from moescope.studies.circuits.overlap import coordinates, null_overlaps, overlap_row, permuted_rankings, shared
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.study.paired import interval_p
from moescope.study.verdicts import beyond_draws

MAP_K = 100
_DIRECTION_DRAWS = 500


@dataclass(frozen=True)
class Ranked:
    """One task's rankings in coordinates: on all rows, on halves, and (P, K) under permuted labels."""

    all: np.ndarray
    halves: tuple[tuple[np.ndarray, np.ndarray], ...]
    drawn: np.ndarray

    @classmethod
    def of(cls, found: TaskFindings, settings: CircuitSettings, k: int, *, turn: int) -> Ranked:
        """Up to ``k`` places; ``turn`` sets the permutations of several tasks apart."""
        code = coordinates(found.features.columns)
        seed = found.features.seed + 7919 * (turn + 1)
        drawn = permuted_rankings(found.features, settings.sigma, n=settings.n_permutations, k=k, seed=seed)
        halves = tuple((code[a[:k]], code[b[:k]]) for a, b in found.halves)
        return cls(code[found.ranking[:k]], halves, code[drawn])


def overlap_rows(a: str, b: str, ranked: Mapping[str, Ranked], ks: Sequence[int]) -> list[dict[str, Any]]:
    """What two tasks' circuits of each size share: the rows of the table ``overlap``."""
    one, two = ranked[a], ranked[b]
    found = [overlap_row(one.all, two.all, one.halves, two.halves, one.drawn, two.drawn, k) for k in ks]
    return [{"task_a": a, "task_b": b, **row} for row in found]


def cross_task_rows(source: TaskFindings, target: TaskFindings, settings: CircuitSettings) -> list[dict[str, Any]]:
    """How far the source's K neurons carry the target: zero-shot and refit, beside neurons of the same number by chance.

    ``transfer_accuracy`` is the published quantity: the classifier fitted on the source, applied to the target. Its
    polarity is arbitrary, so ``transfer_auroc`` takes the better sign (its chance level lies above 0.5). ``refit`` trains
    anew on the target with the source's neurons, which were chosen without the target's rows; its gap, and that of the target's
    own circuit, is to the mean of random neurons of the source's layers on the same rows.
    """
    own, other = source.features, target.features
    k, seed = settings.k, other.seed
    judge = Scorer(other.y, other.groups, seed)
    chosen = source.ranking[:k]
    rows: list[dict[str, Any]] = []

    def add(method: str, value: float, interval: tuple[float, float], gap: Sequence[float] = (float("nan"),) * 4) -> None:
        head = {"source": own.task.name, "target": other.task.name, "method": method}
        names = ("gap", "gap_low", "gap_high", "p")
        rows.append({**head, "value": value, "low": interval[0], "high": interval[1], **dict(zip(names, gap, strict=True))})

    if own.n_classes == other.n_classes:
        model = fit_classifier(own.x[:, chosen], own.y, settings.classifier)
        read = other.x[:, chosen].astype(np.float64)
        correct = model.predict(read) == other.y
        add("transfer_accuracy", float(correct.mean()), group_bootstrap(correct, other.groups, seed=seed))
        if other.n_classes == 2:
            scores = model.predict_proba(read)[:, 1]
            interval, polar = _auroc_intervals(scores, other.y, other.groups, seed)
            add("transfer_auroc", sign_free_auroc(scores, other.y), interval, polar)
    rng = np.random.default_rng(seed)
    sets = {
        "refit_random": random_sets(rng, own.columns.n, k, settings.n_random),
        "refit_layer_matched": layer_matched_sets(rng, chosen, own.columns.layer_of, k, settings.n_random),
    }
    drawn = {method: np.stack([set_hits(other, members, settings) for members in some]) for method, some in sets.items()}
    matched = drawn["refit_layer_matched"]
    head = {"source": own.task.name, "target": other.task.name}
    for method, hits in (
        ("refit", set_hits(other, chosen, settings)),
        ("refit_top_variance", set_hits(other, top_variance(target.sums.total(), k), settings)),
        ("own", target.cv.even[target.cv.ks.index(k)]),
    ):
        rows.append(head | cross_row(method, hits, matched, judge))
    for method, hits in drawn.items():
        values = np.array([judge.balanced(some) for some in hits])
        low, high = np.quantile(values, [0.025, 0.975])
        add(method, float(values.mean()), (float(low), float(high)))
    return rows


def cross_row(method: str, hits: np.ndarray, matched: np.ndarray, judge: Scorer) -> dict[str, Any]:
    """Hits (N,) beside those of random neurons of the same layers (R, N) on the same rows."""
    # one set beside many: what another set of the same kind might have given
    gap = judge.gap(hits, matched.mean(0), spread=judge.spread(matched))
    weighed = judge.weighed(hits)
    low, high = group_bootstrap(weighed, judge.groups, seed=judge.seed)
    head = {"method": method, "value": float(weighed.mean()), "low": max(low, 0.0), "high": min(high, 1.0)}
    return head | {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high, "p": gap.p}


def native_row(found: TaskFindings, settings: CircuitSettings) -> dict[str, Any]:
    """The diagonal of the cross-task matrix: the circuit's own held-out accuracy."""
    hits, name = found.circuit_hits(settings.k), found.features.task.name
    low, high = group_bootstrap(hits, found.features.groups, seed=found.features.seed)
    value = float(hits.mean())
    nothing = dict.fromkeys(("gap", "gap_low", "gap_high", "p"), float("nan"))
    return {"source": name, "target": name, "method": "transfer_accuracy", "value": value, "low": low, "high": high, **nothing}


def set_hits(features: Features, chosen: np.ndarray, settings: CircuitSettings) -> np.ndarray:
    """(N,) bool: held-out hits, the classes counted alike, of the classifier on given columns (no selection)."""
    return np.asarray(fixed_cv(features.x[:, chosen], features.y, features.folds, settings.classifier).even[0])


def _auroc_intervals(
    scores: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[tuple[float, float], tuple[float, float, float, float]]:
    """95 % group-bootstrap intervals: of the sign-free AUROC, and of the AUROC beyond one half with its p.

    The sign is chosen anew in each of 500 resamples.
    """
    rng = np.random.default_rng(seed)
    names, inverse = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    values = []
    for _ in range(500):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(names), len(names))])
        if len(np.unique(y[rows])) == 2:
            values.append(auroc(scores[rows], y[rows]))
    drawn = np.array(values)
    folded = expanded_percentiles(np.maximum(drawn, 1 - drawn), len(names))
    signed = float(auroc(scores, y)) - 0.5
    # never narrower than the normal, which the bootstrap of a perfect ranking is
    floor = float(norm.ppf(0.975)) * 0.5 / len(names)
    low, high = (q - 0.5 for q in expanded_percentiles(drawn, len(names)))
    low, high = min(low, signed - floor), max(high, signed + floor)
    return folded, (signed, low, high, interval_p(signed, low, high))


def task_map_rows(
    found: Sequence[TaskFindings], ranked: Mapping[str, Ranked], settings: CircuitSettings
) -> list[dict[str, Any]]:
    """Similarity of every two tasks, by circuit and by probe direction, against permuted labels.

    ``circuit`` is the share of distinct coordinates in common at K = 100, or a tenth of the neurons where that is less, beyond
    what permuted labels share. ``probe`` is |cosine| between the two tasks' standardised class-mean-difference directions at
    the last site. Multi-class tasks enter by the direction between their two most distant classes. ``p_adjusted`` is by the
    most alike of all pairs under permuted labels (Westfall and Young 1993), and so holds for all pairs of one measure.
    """
    pairs = [(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]
    rows: list[dict[str, Any]] = []
    for measure, similarity in (("circuit", _circuit_similarity), ("probe", _probe_similarity)):
        measured = [similarity(a, b, ranked, settings) for a, b in pairs]
        best = np.max([draws for _, draws in measured], axis=0)
        low, high = np.quantile(best, [0.025, 0.975])
        for (a, b), (value, draws) in zip(pairs, measured, strict=True):
            rows.append(
                {
                    "a": a.features.task.name,
                    "b": b.features.task.name,
                    "measure": measure,
                    "value": value,
                    "chance": float(draws.mean()),
                    "p": beyond_draws(value, draws, "", 0.0).p,
                    "p_adjusted": beyond_draws(value, best, "", 0.0).p,
                    "best_mean": float(best.mean()),
                    "best_low": float(low),
                    "best_high": float(high),
                }
            )
    return rows


def map_k(n: int) -> int:
    """Size of the circuits that the map compares, of n neurons."""
    return min(MAP_K, max(1, n // 10))


def _circuit_similarity(
    a: TaskFindings, b: TaskFindings, ranked: Mapping[str, Ranked], settings: CircuitSettings
) -> tuple[float, np.ndarray]:
    k = map_k(len(a.ranking))
    one, two = ranked[a.features.task.name], ranked[b.features.task.name]
    draws = null_overlaps(one.all, two.all, one.drawn, two.drawn, k) / k
    return shared(one.all, two.all, k) / k, draws


def _direction(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unit vector between the two most distant class means of standardised columns x (N, d)."""
    means = np.stack([x[y == c].mean(0) for c in np.unique(y)])
    gaps = means[:, None] - means[None]
    first, second = np.unravel_index(np.argmax((gaps**2).sum(-1)), gaps.shape[:2])
    difference = means[max(first, second)] - means[min(first, second)]
    return np.asarray(difference / (np.linalg.norm(difference) + 1e-12))


def _probe_similarity(
    a: TaskFindings, b: TaskFindings, ranked: Mapping[str, Ranked], settings: CircuitSettings
) -> tuple[float, np.ndarray]:
    one, two = a.features, b.features
    last = one.columns.slice_of(len(one.columns.sites) - 1)
    # One scale for both, or the direction would measure the texts' difference in scale.
    joint = np.concatenate([one.x[:, last], two.x[:, last]]).astype(np.float64)
    scale = joint.std(0) + 1e-8
    xa, xb = one.x[:, last] / scale, two.x[:, last] / scale
    direction = _direction(xa, one.y)
    rng = np.random.default_rng(two.seed)
    draws = [
        abs(float(direction @ _direction(xb, permute_labels(two.y, two.groups, rng))))
        for _ in range(min(settings.n_permutations, _DIRECTION_DRAWS))
    ]
    return abs(float(direction @ _direction(xb, two.y))), np.array(draws)
