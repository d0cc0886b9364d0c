"""One task at one model of a series, of checkpoints or of sizes: its circuit, where it decides, how far it repeats itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moescope.models import LoadedModel
from moescope.select.ranking import ClassMoments, divergence, fold_class_sums, top_k
from moescope.stats import permute_labels
from moescope.studies.circuits.depth import RAW, best_site_hits, layer_probes, reselected
from moescope.studies.circuits.features import Features, capture_features, columns_of, own_cv
from moescope.studies.circuits.overlap import coordinates
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import SearchSettings
from moescope.studies.circuits.single import N_HALVINGS, scorer_of
from moescope.study.protocol import Context
from moescope.study.rows import FoldRows
from moescope.study.run import Run
from moescope.tasks import group_folds, split_half
from moescope.types import Task

_PERMUTED = 4  # labellings of each halving


@dataclass(frozen=True, eq=False)
class Found:
    """One task at one model.

    Attributes:
        row: of the study's table.
        hits: (N,) bool, held-out hits of the circuit, the classes counted alike.
        early: (L, N) bool, the same of the circuit that is chosen anew within the layers up to each.
        repeats: (1 + n_folds,): the overlap of the circuit with itself on other texts (:func:`self_overlap`), and without the
            texts of each fold.
        selected: (F, K) columns, chosen in the training folds. top: (K,) columns, chosen on all rows.
    """

    row: dict[str, Any]
    hits: np.ndarray
    early: np.ndarray
    repeats: np.ndarray
    selected: np.ndarray
    top: np.ndarray
    scorer: Scorer


def folds_of(task: Task, settings: SearchSettings, run: Run) -> FoldRows:
    """Drawn from labels, groups and seed alone, so that every model of a series is judged by the same."""
    y = np.asarray([example.label for example in task.examples])
    groups = np.asarray([example.group for example in task.examples])
    return FoldRows(f"{task.name}: circuit", groups, group_folds(y, groups, n_folds=settings.n_folds, seed=run.seed))


def read(context: Context, model: LoadedModel, task: Task, rows: FoldRows, settings: SearchSettings, purpose: str) -> Features:
    """The task's activations, its tokens counted as read for ``purpose``."""
    run = context.run
    limits: Any = {"seed": run.seed, "folds": rows.folds, "batch_tokens": run.batch_tokens, "max_tokens": run.max_tokens}
    with context.tokens.of(model, purpose):
        return capture_features(model, task, columns_of(model, settings.site), settings, **limits)


def found_in(features: Features, settings: SearchSettings) -> Found:
    """What the series' tables say of one model."""
    scorer = scorer_of(features, settings)
    sums = fold_class_sums(features.x, features.y, features.folds)
    cv = own_cv(features, settings, sums=sums)
    scores = divergence(*sums.total(), sigma=settings.sigma)
    low, high = scorer.interval(cv.correct[0])
    probe, _ = best_site_hits(layer_probes(features), features.y, features.folds)
    early = np.stack([reselected(features, sums, settings, layer).even[0] for layer in features.columns.layers])
    repeats = self_overlap(features, settings)
    row = {
        "accuracy": float(cv.accuracy[0]),
        "balanced": scorer.balanced(cv.even[0]),
        "low": low,
        "high": high,
        "probe_accuracy": float(probe[RAW].mean()),
        "max_divergence": float(scores.max()),
        "depth": float(depths(scorer.weighed(early).mean(1), scorer.chance)),
        "self_overlap": float(repeats[0]),
    }
    return Found(row, cv.even[0], early, repeats, cv.selected[:, : settings.k], top_k(scores, settings.k), scorer)


def depths(accuracy: np.ndarray, chance: float) -> np.ndarray:
    """(...): the share of the depth that lies before what the last of ``L`` layers knows is known.

    The mean over the layers of the share of the last one's gain over ``chance`` that is still missing, from balanced accuracies
    (..., L); 1 where the last layer knows nothing. What is decided between two layers is counted half way between, or a model
    of few layers would seem to decide earlier than one of many; no layer's luck is cut off, or one of little gain would seem to
    decide later than one of much.
    """
    gain = accuracy[..., -1:] - chance
    missing = np.divide(accuracy[..., -1:] - accuracy, gain, out=np.ones_like(accuracy), where=gain > 0)
    return np.asarray(np.clip((missing.sum(-1) + 0.5) / accuracy.shape[-1], 0.0, 1.0))


def self_overlap(features: Features, settings: SearchSettings) -> np.ndarray:
    """(1 + n_folds,): how much of the circuit is found again on other texts, 0 by chance and 1 at most.

    Twice the distinct coordinates that the top K of two halves of the groups share, over those that they have (Dice), a mean
    over halvings; less what halves of permuted labels share, as a share of what is left to have. First of all texts, then
    without those of each fold; NaN where a class is then missing.
    """
    code, chance = coordinates(features.columns), []
    n_folds = int(features.folds.max()) + 1
    found = np.zeros((N_HALVINGS, 1 + n_folds))
    for i in range(N_HALVINGS):
        half = split_half(features.y, features.groups, features.seed + i).astype(np.int64)
        sums = fold_class_sums(features.x, features.y, 2 * features.folds + half)
        for j in range(1 + n_folds):
            tops = []
            for side in (0, 1):
                out = [c for c in range(sums.n_folds) if c % 2 != side or c // 2 == j - 1]
                tops.append(_top(sums.train(*out), code, settings))
            found[i, j] = _dice(*tops)
        rng = np.random.default_rng([features.seed, i])
        for _ in range(_PERMUTED):
            permuted = fold_class_sums(features.x, permute_labels(features.y, features.groups, rng), half)
            chance.append(_dice(*(_top(permuted.fold(side), code, settings) for side in (0, 1))))
    by_chance = float(np.mean(chance))
    return np.asarray((found.mean(0) - by_chance) / max(1 - by_chance, 1e-9))


def _top(moments: ClassMoments, code: np.ndarray, settings: SearchSettings) -> np.ndarray | None:
    """Distinct coordinates of the top K columns."""
    if (moments.n == 0).any():
        return None
    return np.unique(code[top_k(divergence(*moments, sigma=settings.sigma), settings.k)])


def _dice(a: np.ndarray | None, b: np.ndarray | None) -> float:
    return float("nan") if a is None or b is None else 2 * len(np.intersect1d(a, b)) / (len(a) + len(b))
