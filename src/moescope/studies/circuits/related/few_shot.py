"""A further task from few labels: do the neurons of other tasks' circuits learn it from fewer than others would?

The circuits were ranked on the other tasks' texts; no text of the new task chose a neuron. Its groups are cut in two: labels
come from one half, the other judges, and the reverse. Of 8, 16, … labels each classifier is the same ridge, so that only the
columns that it may read differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.select.ranking import layer_matched_sets
from moescope.select.ridge import ridge_scores
from moescope.stats import bootstrap_sums, expanded_percentiles
from moescope.studies.circuits.features import Features
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.study.paired import interval_over, joined
from moescope.tasks.build import normalise
from moescope.types import Task

LABELS = (8, 16, 32, 64, 128, 256)
CIRCUITS, RANDOM, VARIANCE, FULL = METHODS = ("circuits", "random", "top_variance", "full_probe")
_BOOT = 1000


@dataclass(frozen=True)
class FewShot:
    """What was right on the new task's rows, by number of labels.

    Attributes:
        labels: (S,) numbers of labels; columns: of each method.
        right: by method (S, N), the share of draws in which a row was told right; of random neurons, of sets.
        draws: (R, S, N) bool, the circuits' own by draw; sets: (Q, S, N) bool, of each set of random neurons.
    """

    features: Features
    sources: tuple[str, ...]
    labels: tuple[int, ...]
    columns: dict[str, int]
    right: dict[str, np.ndarray]
    draws: np.ndarray
    sets: np.ndarray


def refuse_known(new: Task, tasks: Sequence[Task]) -> None:
    """Raise InputError where the new task has another's name, or a text of those on which the circuits are ranked."""
    if new.name in [task.name for task in tasks]:
        raise InputError(f"a task is called {new.name!r} already; name them apart, e.g. {new.name}2=SOURCE", "few_shot")
    for task in tasks:
        known = {normalise(e.text) for e in task.examples}
        both = sum(normalise(e.text) in known for e in new.examples)
        if both:
            raise InputError(
                f"{both} of {new.name}'s texts are {task.name}'s too, and would choose the neurons that they judge; "
                "give other texts",
                "few_shot",
            )


def learn(new: Features, sources: Sequence[TaskFindings], settings: CircuitSettings) -> FewShot:
    """Fit every method on few labels of one half of the groups (``new.folds``: 0 and 1), and judge it on the other.

    Raises:
        InputError: too few rows for the smallest number of labels, or too few neurons to draw others from.
    """
    ranked = np.concatenate([task.ranking[: settings.k] for task in sources])
    circuit = ranked[np.sort(np.unique(ranked, return_index=True)[1])]
    k = len(circuit)
    rng = np.random.default_rng([new.seed, 11])
    sets = layer_matched_sets(rng, circuit, new.columns.layer_of, k, settings.n_random)
    spread = np.mean([x.features.x.var(0, dtype=np.float64) for x in sources], axis=0)
    named = {CIRCUITS: circuit, VARIANCE: np.argsort(-spread, kind="stable")[:k], FULL: np.arange(new.columns.n)}
    labels = _sizes(new)
    n_draws = settings.few_shot_draws
    draws = {name: np.zeros((n_draws, len(labels), len(new.y)), bool) for name in named}
    others = np.zeros((len(sets), len(labels), len(new.y)), bool)
    for judge_of in np.unique(new.folds):
        pool, judge = np.flatnonzero(new.folds != judge_of), np.flatnonzero(new.folds == judge_of)
        orders = [_ordered(new, pool, rng) for _ in range(n_draws)]
        z = _scaled(new.x, pool)
        for name, columns in named.items():
            products = _products(z[:, columns])
            for turn, order in enumerate(orders):
                draws[name][turn][:, judge] = _told(products, new, order, judge, labels)
        for number, columns in enumerate(sets):
            others[number][:, judge] = _told(_products(z[:, columns]), new, orders[number % n_draws], judge, labels)
    right = {name: found.mean(0) for name, found in draws.items()} | {RANDOM: others.mean(0)}
    sizes = {name: len(columns) for name, columns in named.items()} | {RANDOM: k}
    names = tuple(task.features.task.name for task in sources)
    return FewShot(new, names, labels, sizes, right, draws[CIRCUITS], others)


def _sizes(new: Features) -> tuple[int, ...]:
    """Numbers of labels for which either half has rows of every class."""
    counts = np.zeros((2, new.n_classes), int)
    np.add.at(counts, (new.folds, new.y), 1)
    most = int(counts.min()) * new.n_classes
    sizes = tuple(n for n in LABELS if 2 * new.n_classes <= n <= most)
    if not sizes:
        raise InputError(
            f"{new.task.name}: {most} labels in a half, with classes alike; it needs {max(LABELS[0], 2 * new.n_classes)}: "
            "give more texts of the rarest class",
            "few_shot",
        )
    return sizes


def _ordered(new: Features, pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of the pool in the order in which they are labelled: groups at random, classes in turn."""
    _, code = np.unique(new.groups[pool], return_inverse=True)
    place = rng.permutation(int(code.max()) + 1)[code]
    rows = pool[np.argsort(place, kind="stable")]
    by_class = [rows[new.y[rows] == c] for c in range(new.n_classes)]
    least = min(map(len, by_class))
    return np.stack([own[:least] for own in by_class], axis=1).ravel()


def _scaled(x: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Columns in standard deviations over the texts that may be labelled, whatever their labels; those that do not vary are
    0."""
    centre, scale = x[pool].mean(0, dtype=np.float64), x[pool].std(0, dtype=np.float64)
    live = scale > 1e-9 * np.maximum(np.abs(centre), 1e-12)
    return np.asarray(((x - centre) / np.where(live, scale, 1.0) * live).astype(np.float32))


def _products(z: np.ndarray) -> np.ndarray:
    return np.asarray(z @ z.T, dtype=np.float64)


def _told(products: np.ndarray, new: Features, order: np.ndarray, judge: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """(S, len(judge)) bool: which rows that judge are told right after the first labels of ``order``."""
    found = np.empty((len(labels), len(judge)), bool)
    for i, n in enumerate(labels):
        fit = order[: n // new.n_classes * new.n_classes]
        scores = ridge_scores(products[np.ix_(fit, fit)], new.y[fit], products[np.ix_(judge, fit)], new.n_classes)
        found[i] = scores.argmax(1) == new.y[judge]
    return found


def few_shot_tables(found: FewShot) -> dict[str, pd.DataFrame]:
    """The tables ``few_shot``, a row for each method and number of labels, and ``few_shot_area``, one for each method."""
    new = found.features
    judge = Scorer(new.y, new.groups, new.seed)
    weighed = {name: judge.weighed(found.right[name]) for name in METHODS}  # (S, N)
    circuits, sets = judge.weighed(found.draws), judge.weighed(found.sets)
    needed = _needed(found, weighed)
    rows, areas = [], []
    for name in METHODS:
        head = {"task": new.task.name, "method": name, "columns": found.columns[name]}
        for i, n in enumerate(found.labels):
            own = _compared(weighed, name, lambda values, i=i: values[..., i, :], circuits, sets, judge)
            rows.append(head | {"labels": n, **own})
        whole = _compared(weighed, name, lambda values: values.mean(-2), circuits, sets, judge)
        areas.append(
            head
            | whole
            | needed[name]
            | {"target": float(weighed[FULL][-1].mean()), "most_labels": found.labels[-1], "chance": judge.chance}
            | {"sources": ", ".join(found.sources), "n_draws": len(circuits), "n_random": len(sets), "n": len(new.y)}
        )
    return {"few_shot": pd.DataFrame(rows), "few_shot_area": pd.DataFrame(areas)}


def _compared(
    weighed: dict[str, np.ndarray], name: str, part: Any, circuits: np.ndarray, sets: np.ndarray, judge: Scorer
) -> dict[str, float]:
    """A method's balanced accuracy with its interval, and by how much the circuits exceed it on the same rows.

    Intervals are over groups and over which texts were labelled; beside random neurons over which were drawn too.
    """
    own, first = part(weighed[name]), part(weighed[CIRCUITS])
    value = float(own.mean())
    labelled = float(part(circuits).mean(-1).std(ddof=1) / np.sqrt(len(circuits)))
    of_sets = part(sets).mean(-1)
    around = (value - 1.96 * labelled, value + 1.96 * labelled)
    if name == RANDOM:
        low, high = (float(q) for q in np.quantile(of_sets, [0.025, 0.975]))
    else:
        low, high = joined(value, interval_over(own, judge.groups, judge.seed), around)
    row = {"value": value, "low": max(low, 0.0), "high": min(high, 1.0)}
    if name == CIRCUITS:
        return row | dict.fromkeys(("gap", "gap_low", "gap_high", "p"), float("nan"))
    drawn = float(of_sets.std(ddof=1)) if name == RANDOM else 0.0
    gap = judge.difference(first, own, spread=float(np.hypot(labelled, drawn)))
    return row | {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high, "p": gap.p}


def _needed(found: FewShot, weighed: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Labels with which each method is as good as the full probe with the most of them, and 95 % over groups; NaN: never."""
    _, code = np.unique(found.features.groups, return_inverse=True)
    curves = np.concatenate([weighed[name] for name in METHODS])  # (4 S, N)
    sums = np.zeros((int(code.max()) + 1, len(curves) + 1))
    np.add.at(sums, code, np.concatenate([curves, np.ones((1, curves.shape[1]))]).T)
    drawn = bootstrap_sums(sums, n_boot=_BOOT, seed=found.features.seed)
    means = (drawn[:, :-1] / drawn[:, -1:]).reshape(_BOOT, len(METHODS), -1)
    own = curves.mean(1).reshape(len(METHODS), -1)
    full = METHODS.index(FULL)
    rows = {}
    for i, name in enumerate(METHODS):
        value = reached(own[i], own[full, -1], found.labels)
        many = np.array([reached(one[i], one[full, -1], found.labels) for one in means])
        low, high = expanded_percentiles(np.minimum(many, 1e9), len(sums)) if len(sums) > 1 else (np.nan, np.nan)
        ends = (value, low, high)
        rows[name] = {
            key: float(end) if end < 1e8 else float("nan")
            for key, end in zip(("needed", "needed_low", "needed_high"), ends, strict=True)
        }
    return rows


def reached(curve: np.ndarray, target: float, labels: Sequence[int]) -> float:
    """The number of labels at which a curve (S,) first reaches ``target``, on lines over their logarithm; infinite if nowhere.

    >>> float(reached(np.array([0.5, 0.7, 0.8]), 0.6, (8, 16, 32)))
    11.313708498984761
    """
    at = np.flatnonzero(curve >= target)
    if not len(at):
        return float("inf")
    i = int(at[0])
    if i == 0:
        return float(labels[0])
    share = (target - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(2 ** (np.log2(labels[i - 1]) + share * np.log2(labels[i] / labels[i - 1])))
