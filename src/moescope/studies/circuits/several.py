"""A task of more than two classes: each class by itself against the rest, what is taken for what, and other criteria."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from moescope.select.nested import held_out_cv, nested_cv, training_shares
from moescope.select.ranking import Sigma, divergence, top_k
from moescope.select.sums import ClassMoments, separation
from moescope.stats import auroc, expected_overlap
from moescope.studies.circuits.cues import read_cues
from moescope.studies.circuits.features import Features
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings

MOST = 12
"""Classes that are sought one by one; of more, what each is taken for is told alone, for cues are learnt anew for each."""
PAIRS, SEPARATION, EACH = "pairs", "separation", "each class"


def several_tables(found: TaskFindings, settings: CircuitSettings, tokenizer: Any) -> dict[str, pd.DataFrame]:
    """Tables ``each_class``, ``confusion`` and ``criteria``; empty for two classes, of which each is the other's rest."""
    features = found.features
    if features.n_classes == 2:
        return {}
    scores = found.cv.scores[found.cv.ks.index(settings.k)]
    named = (scores / training_shares(features.y, features.folds)).argmax(axis=1)
    return {
        "each_class": pd.DataFrame([_row(found, settings, c, named, scores, tokenizer) for c in range(features.n_classes)]),
        "confusion": pd.DataFrame(_confusion(features, named)),
        "criteria": pd.DataFrame(_criteria(found, settings)),
    }


def one_class(features: Features, one: int) -> Features:
    """The same activations and folds with two classes: 1 is class ``one``, 0 the rest."""
    y = (features.y == one).astype(np.int64)
    name = features.task.classes[one]
    examples = tuple(replace(e, label=int(c)) for e, c in zip(features.task.examples, y, strict=True))
    task = replace(features.task, examples=examples, classes=(f"not {name}", name), answers=())
    return replace(features, task=task, y=y)


def _row(
    found: TaskFindings, settings: CircuitSettings, one: int, named: np.ndarray, scores: np.ndarray, tokenizer: Any
) -> dict[str, Any]:
    features, k = found.features, settings.k
    inside = features.y == one
    recall = replace(found.scorer, y=features.y[inside], groups=features.groups[inside])
    # of one class alone the balanced accuracy is its share of hits
    beyond = recall.gap(named[inside] == one, found.scorer.chance)
    row: dict[str, Any] = {
        "task": features.task.name,
        "class": features.task.classes[one],
        "n": int(inside.sum()),
        "recall": beyond.value + found.scorer.chance,
        "recall_low": max(0.0, beyond.low + found.scorer.chance),
        "recall_high": min(1.0, beyond.high + found.scorer.chance),
        "recall_p": beyond.p,
        "precision": float(inside[named == one].mean()) if (named == one).any() else float("nan"),
        "auroc": float(auroc(scores[:, one], inside)),
        "cue_recall": float((found.cues.chosen_said()[inside] == one).mean()),
    }
    return row | (_alone(found, settings, one, tokenizer) if features.n_classes <= MOST else {}) | {"k": k}


def _alone(found: TaskFindings, settings: CircuitSettings, one: int, tokenizer: Any) -> dict[str, Any]:
    """The class's own circuit, sought and tested against the rest, beside the best trivial cue of that question."""
    features, sums = one_class(found.features, one), found.sums.against_rest(one)
    own = nested_cv(
        features.x, features.y, features.folds, (settings.k,), sigma=settings.sigma, classifier=settings.classifier,
        selection=settings.selection, sums=sums,
    )  # fmt: skip
    scorer = Scorer(features.y, features.groups, features.seed, found.scorer.widening)
    chance = scorer.gap(own.even[0], scorer.chance)
    cues = read_cues(features, tokenizer)
    both, bits = cues.with_circuit(features.x, own.selected, settings.classifier)
    cue = cues.chosen_hits()
    rival = scorer.gap(both, cue)
    ranking = top_k(divergence(*sums.total(), sigma=settings.sigma), settings.k)
    total = found.sums.total()
    others = [top_k(_apart(total, c, settings.sigma), settings.k) for c in range(len(total.n)) if c != one]
    return {
        "own": scorer.balanced(own.even[0]),
        "own_auroc": float(auroc(own.scores[0][:, 1], features.y)),
        **{f"own_{end}": float(getattr(chance, end)) for end in ("value", "low", "high", "p")},
        "cue": " or ".join(dict.fromkeys(cues.chosen())),
        "cue_own": scorer.balanced(cue),
        **{f"rival_{end}": float(getattr(rival, end)) for end in ("value", "low", "high", "p")},
        "rival_bits": scorer.bits(bits, cue, settings.margin),
        "top1": str(features.columns.neuron(int(ranking[0]))),
        "shared": len(np.intersect1d(ranking, found.ranking[: settings.k])),
        "shared_others": float(np.mean([len(np.intersect1d(ranking, other)) for other in others])),
        "expected": expected_overlap(settings.k, features.columns.n),
    }


def _confusion(features: Features, named: np.ndarray) -> Iterator[dict[str, Any]]:
    counts = np.zeros((features.n_classes, features.n_classes), dtype=np.int64)
    np.add.at(counts, (features.y, named), 1)
    for c, own in enumerate(features.task.classes):
        for d, other in enumerate(features.task.classes):
            share = float(counts[c, d] / counts[c].sum())
            yield {
                "task": features.task.name, "class": own, "predicted": other, "n": int(counts[c, d]), "share": share
            }  # fmt: skip


def _criteria(found: TaskFindings, settings: CircuitSettings) -> Iterator[dict[str, Any]]:
    """The circuit by each way of making one ranking of several classes, all chosen inside the folds."""
    features, sums, scorer, k = found.features, found.sums, found.scorer, settings.k
    own: np.ndarray | None = None
    first = by_criterion(PAIRS, sums.total(), features, settings)
    for criterion in (PAIRS, SEPARATION, EACH):
        chosen = [by_criterion(criterion, sums.train(fold), features, settings) for fold in range(sums.n_folds)]
        result = held_out_cv(features.x, features.y, features.folds, chosen, (k,), settings.classifier, "nested")
        hits = result.even[0]
        own = hits if own is None else own
        gap = scorer.gap(hits, own)
        low, high = scorer.interval(result.correct[0])
        ranking = by_criterion(criterion, sums.total(), features, settings)
        yield {
            "task": features.task.name,
            "criterion": criterion,
            "k": k,
            "accuracy": float(result.correct[0].mean()),
            "low": low,
            "high": high,
            "balanced": scorer.balanced(hits),
            "gap": gap.value,
            "gap_low": gap.low if criterion != PAIRS else 0.0,
            "gap_high": gap.high if criterion != PAIRS else 0.0,
            "shared": len(np.intersect1d(ranking, first)),
            "top1": str(features.columns.neuron(int(ranking[0]))),
        }


def by_criterion(criterion: str, moments: ClassMoments, features: Features, settings: CircuitSettings) -> np.ndarray:
    """K columns by ``pairs`` (the largest gap between two classes), ``separation``, or ``each class`` (the best of every class
    against the rest in turn), best first, int64 (K,).
    """
    if criterion == PAIRS:
        return top_k(divergence(*moments, sigma=settings.sigma), settings.k)
    if criterion == SEPARATION:
        return top_k(separation(*moments), settings.k)
    ranked = [top_k(_apart(moments, c, settings.sigma), settings.k) for c in range(len(moments.n))]
    in_turn = np.stack(ranked, axis=1).ravel()
    return np.asarray(list(dict.fromkeys(in_turn.tolist()))[: settings.k], dtype=np.int64)


def _apart(moments: ClassMoments, one: int, sigma: Sigma) -> np.ndarray:
    """Divergence of class ``one`` from the rest as one class, (D,)."""
    others = [c for c in range(len(moments.n)) if c != one and moments.n[c] > 0]
    share = (moments.n[others] / moments.n[others].sum())[:, None]
    mean = (share * moments.mean[others]).sum(axis=0)
    var = (share * (moments.var[others] + (moments.mean[others] - mean) ** 2)).sum(axis=0)
    n = np.array([moments.n[others].sum(), moments.n[one]])
    return divergence(np.stack([mean, moments.mean[one]]), np.stack([var, moments.var[one]]), n, sigma)
