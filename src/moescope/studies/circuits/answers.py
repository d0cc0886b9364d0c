"""Is the model's own answer right? What its neurons say of that beside what the answer and its question give away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture.answers import answered
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.stats import auroc, class_weights, group_bootstrap, permutation_p, permute_labels
from moescope.studies.circuits.features import Features, own_cv
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.study.protocol import Context
from moescope.tasks import dealt_folds
from moescope.tasks.answered import CLASSES, RIGHT, Answered
from moescope.tasks.build import normalise
from moescope.tasks.questions import Questions
from moescope.types import Task

CONFIDENCE, EVERYTHING = "log-probability and entropy", "all of these"
PLACES = {"question": "at the question's last token", "answer": "at the answer's last token"}
_LEAST = 2  # of either kind, for each fold
_COMMON = 0.05  # share of the answers that one must be to be told from the others
_PENALTY = 10.0  # on the weights of standardised columns
_STRATA, _STRATUM = 10, 20  # strata of equal confidence, and groups that each has at least


def labelled(model: LoadedModel, task: Task, settings: CircuitSettings, context: Context) -> Task:
    """The task itself; or, where it is of questions, whether the model answers each rightly.

    Raises:
        InputError: as :func:`~moescope.capture.answers.answered`, or too few answers are right, or wrong.
    """
    if not isinstance(task, Questions):
        return task
    limits: dict[str, Any] = {"batch_tokens": context.run.batch_tokens, "max_tokens": context.run.max_tokens}
    with context.noted(), context.tokens.of(model, "answers"):
        found = answered(model, task, progress=context.counter(f"{task.name}: answering"), **limits)
    least, counts = _LEAST * settings.n_folds, np.bincount([e.label for e in found.examples])
    if counts.min() < least:
        raise InputError(
            f"task {task.name!r}: {counts.min()} of {len(found)} answers are {CLASSES[int(counts.argmin())]}, and "
            f"{settings.n_folds} folds need {least}; give more questions, or {_other(counts)} ones"
        )
    context.stages.read(found)
    context.note(
        f"{task.name}: {model.name} answers {counts[RIGHT]} of {len(found)} questions rightly (check={task.check}); it is read "
        f"{PLACES[task.at]}."
    )
    return found


def _other(counts: np.ndarray) -> str:
    return "easier" if counts[RIGHT] == counts.min() else "harder"


def answer_tables(found: TaskFindings, settings: CircuitSettings, context: Context) -> dict[str, pd.DataFrame]:
    """Tables ``answers`` and ``beyond_answers``; none of a task that a model did not answer."""
    task = found.features.task
    if not isinstance(task, Answered):
        return {}
    return {"answers": _described(task, found.features), "beyond_answers": _beyond(task, found, settings, context)}


def _described(task: Answered, features: Features) -> pd.DataFrame:
    """How many answers are right, by difficulty and in all."""
    given = task.answers_given
    right, levels = features.y == RIGHT, np.array([a.difficulty for a in given])
    said = np.array([normalise(a.text) for a in given])
    frame = pd.DataFrame(
        {"log_probability": [a.log_probability for a in given], "entropy": [a.entropy for a in given],
         "tokens": [a.tokens for a in given]}
    )  # fmt: skip
    rows = []
    for level in dict.fromkeys(["", *sorted(levels)]):
        some = levels == level if level else np.ones(len(right), dtype=bool)
        low, high = group_bootstrap(right[some], features.groups[some], seed=features.seed)
        words, counts = np.unique(said[some], return_counts=True)
        rows.append(
            {"task": task.name, "at": task.at, "difficulty": level or "all", "n": int(some.sum()),
             "right": float(right[some].mean()), "low": max(low, 0.0), "high": min(high, 1.0),
             "commonest": str(words[counts.argmax()]), "commonest_share": float(counts.max() / some.sum()),
             **frame[some].mean().to_dict()}
        )  # fmt: skip
    return pd.DataFrame(rows)


def rivals_of(task: Answered) -> dict[str, np.ndarray]:
    """What may tell a right answer without looking inside the model: numbers (N, F) by name, the last all of them."""
    given = task.answers_given
    slots = [task.slot_of[e.text] for e in task.examples]
    questions = [s.removesuffix(f"\n{a.text}") if task.at == "answer" else s for s, a in zip(slots, given, strict=True)]
    found = {
        CONFIDENCE: np.array([[a.log_probability, a.least, a.total, a.entropy] for a in given]),
        "length of question and answer": np.log1p(
            [[len(q), len(q.split()), a.tokens] for q, a in zip(questions, given, strict=True)]
        ),
        "its own words": _one_hot([normalise(a.text) for a in given], _COMMON),
        "difficulty": _one_hot([a.difficulty for a in given], 0.0),
    }
    found = {name: numbers for name, numbers in found.items() if numbers.size}
    return found | {EVERYTHING: np.hstack([*found.values()])}


def _one_hot(values: list[str], least: float) -> np.ndarray:
    """(N, V) a column for each value that at least that share of the rows have; none where all rows have one."""
    names, code, counts = np.unique(values, return_inverse=True, return_counts=True)
    shown = np.flatnonzero((counts >= least * len(values)) & (len(names) > 1))
    return np.asarray(code[:, None] == shown, dtype=np.float64)


def _beyond(task: Answered, found: TaskFindings, settings: CircuitSettings, context: Context) -> pd.DataFrame:
    features, scorer = found.features, found.scorer
    chosen = found.cv.selected[:, : settings.k]
    circuit = found.cv.scores[found.cv.ks.index(settings.k)][:, RIGHT]
    rows = []
    for name, numbers in rivals_of(task).items():
        alone, both = held_out(numbers, features.x, chosen, features.y, features.folds)
        first, second = placements(both, features.y), placements(at_least_chance(alone, features.y), features.y)
        gain = scorer.difference(scorer.weighed(first), scorer.weighed(second))
        p, n_draws = gain.p, 0
        if name in (CONFIDENCE, EVERYTHING) and settings.n_label_permutations:
            drawn = _permuted(task.name, name, numbers, alone, features, settings, context)
            if drawn is not None:
                # both must speak: the one against chance, the other for another sample of questions
                p, n_draws = max(p, float(permutation_p(gain.value, drawn))), len(drawn)
        own = scorer.weighed(placements(alone, features.y))
        low, high = group_bootstrap(own, features.groups, seed=features.seed)
        rows.append(
            {"task": task.name, "rival": name, "at": task.at, "rival_auroc": float(auroc(alone, features.y)),
             "rival_low": max(low, 0.0), "rival_high": min(high, 1.0), "circuit_auroc": float(auroc(circuit, features.y)),
             "both_auroc": float(auroc(both, features.y)), "gain": gain.value, "gain_low": gain.low, "gain_high": gain.high,
             "p": p, "n_draws": n_draws, "k": settings.k, "n": len(features.y)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def held_out(
    numbers: np.ndarray, x: np.ndarray, chosen: np.ndarray, y: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out scores (N,) of an answer being right: by ``numbers`` (N, F) alone, and with the neurons of each fold.

    Args:
        x: (N, D) activations. chosen: (folds, K) columns, for each fold those chosen in its training folds.
    """
    alone, both = np.zeros(len(y)), np.zeros(len(y))
    for fold in range(len(chosen)):
        held = folds == fold
        for out, columns in ((alone, numbers), (both, np.hstack([numbers, x[:, chosen[fold]].astype(np.float64)]))):
            out[held] = _ridge(columns[~held], y[~held], columns[held])
    return alone, both


def _ridge(train: np.ndarray, y: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Scores (M,) by least squares on ±1, classes weighed alike, columns standardised: Fisher's discriminant with a ridge."""
    mean, spread = train.mean(0), train.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    a, b = (train - mean) / scale, (held - mean) / scale
    weights = class_weights(y)
    target = np.where(y == RIGHT, 1.0, -1.0)
    centre = np.average(a, axis=0, weights=weights)
    a, b = a - centre, b - centre
    gram = (a.T * weights) @ a + _PENALTY * np.eye(a.shape[1])
    return np.asarray(b @ np.linalg.solve(gram, (a.T * weights) @ target))


def at_least_chance(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The scores (N,), or where they are wrong more often than right a guess: less than nothing is no yardstick."""
    return scores if auroc(scores, y) >= 0.5 else np.zeros(len(scores))


def placements(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N,) whose mean, classes weighed alike, is the AUROC, and whose spread over rows is the AUROC's (DeLong et al. 1988).

    The placement of a row is the share of the other class's rows that it is on the right side of.
    """
    value = float(auroc(scores, y))
    positive, negative = np.sort(scores[y == RIGHT]), np.sort(scores[y != RIGHT])
    at = np.where(y == RIGHT, _share_below(negative, scores), 1 - _share_below(positive, scores))
    return np.asarray(2 * at - value)


def _share_below(ordered: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Share of the values that lie below each score, equal ones counted half."""
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / (2 * len(ordered))


def _permuted(
    name: str,
    rival: str,
    numbers: np.ndarray,
    alone: np.ndarray,
    features: Features,
    settings: CircuitSettings,
    context: Context,
) -> np.ndarray | None:
    """What the whole procedure, selection included, gains on labels permuted among rows that the rival holds for alike (R,);
    None where it tells all of them, so that there is nothing to permute."""
    rng = np.random.default_rng([features.seed, 3])
    strata = strata_of(alone, features.groups)
    draws, moved = [], []
    for _ in range(settings.n_label_permutations):
        y = features.y.copy()
        for stratum in np.unique(strata):
            inside = strata == stratum
            y[inside] = permute_labels(y[inside], features.groups[inside], rng)
        moved.append(float((y != features.y).mean()))
        if not moved[-1]:
            return None
        folds = dealt_folds(y, features.groups, settings.n_folds, rng)
        chosen = own_cv(replace(features, folds=folds), settings, y=y).selected[:, : settings.k]
        drawn = held_out(numbers, features.x, chosen, y, folds)
        draws.append(float(auroc(drawn[1], y) - auroc(at_least_chance(drawn[0], y), y)))
    context.control(
        f"{name}: labels permuted among answers alike in {rival}",
        differs=max(moved) > 0,
        evidence=f"{np.mean(moved):.1%} of the labels moved on average, each within one of {len(np.unique(strata))} strata",
    )
    return np.asarray(draws)


def strata_of(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(N,) int: which of up to ten strata of like scores a row's group is in, by the group's mean."""
    code = np.unique(groups, return_inverse=True)[1]
    means = np.bincount(code, scores) / np.bincount(code)
    order = np.argsort(np.argsort(means, kind="stable"), kind="stable")
    n = int(np.clip(len(means) // _STRATUM, 1, _STRATA))
    return np.asarray((order * n // len(means))[code])
