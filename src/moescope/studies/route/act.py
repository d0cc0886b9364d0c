"""Routing that acts: each task's heads behind one router, one promise for all of it, and its rivals on one mixed stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.runtime.choices import KINDS, Kind
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.features import ExitFeatures, read_features
from moescope.runtime.exit.heads import Fitted, Heads, fit_heads
from moescope.runtime.exit.rule import Guarantee, exit_layers, thresholds
from moescope.runtime.route.dispatch import Dispatcher
from moescope.runtime.route.router import Named, TaskRouter
from moescope.stats.conformal import group_means, tests_passed
from moescope.studies.route.settings import BAG, FULL, PROBE, ROUTED, TOLD, RouteSettings
from moescope.study.protocol import Context
from moescope.study.rows import Rows
from moescope.tasks import group_folds
from moescope.tasks.build import RenderedTask
from moescope.types import Task

_FOLDS = 3  # of the fitting rows


@dataclass(frozen=True)
class Stream:
    """N texts of T tasks, mixed, and what every task's heads say of each, its own task's or not."""

    task: np.ndarray
    """(N,) int64"""
    label: np.ndarray
    """(N,) int64: the class within the task"""
    groups: np.ndarray
    said: tuple[np.ndarray, ...]
    """of each task (N, L, C)"""

    @property
    def full(self) -> np.ndarray:
        """(N,) int64: the class that its own task's classifier gives each text at full depth."""
        return np.array([self.said[t][i, -1].argmax() for i, t in enumerate(self.task)], np.int64)


@dataclass(frozen=True)
class Answered:
    """What a way of answering makes of N texts, by candidate (T): from the safest to the riskiest."""

    right: np.ndarray
    """(N, T) bool: the text's own task and the right class"""
    lost: np.ndarray
    """(N, T) bool: what the risk counts, against full depth with the task told"""
    layers: np.ndarray
    """(N, T) int64: run, 1..L"""
    candidates: np.ndarray
    """(T,)"""


def answered(
    stream: Stream,
    nearest: np.ndarray,
    known: np.ndarray,
    checks: Sequence[int],
    loss: str,
    candidates: np.ndarray,
) -> Answered:
    """Each text by the heads of the task ``nearest`` (N,), leaving early where ``known`` (N,) bool, at each confidence."""
    n, n_layers = len(stream.task), stream.said[0].shape[1]
    at = np.full((n, len(candidates)), n_layers - 1)
    said = np.zeros((n, len(candidates)), np.int64)
    for t, heads in enumerate(stream.said):
        mine = np.flatnonzero(nearest == t)
        free = known[mine]
        for c, threshold in enumerate(candidates):
            at[mine[free], c] = exit_layers(heads[mine[free]], float(threshold), tuple(checks))
        said[mine] = heads[mine].argmax(-1)[np.arange(len(mine))[:, None], at[mine]]
    return _counted(stream, (nearest == stream.task)[:, None], said, at + 1, loss, candidates)


def _counted(
    stream: Stream, own: np.ndarray, said: np.ndarray, layers: np.ndarray, loss: str, candidates: np.ndarray
) -> Answered:
    """An answer of another task is wrong, and other than the full-depth one."""
    full = stream.full
    right = own & (said == stream.label[:, None])
    lost = ~(own & (said == full[:, None]))
    if loss == "accuracy":
        lost = (full == stream.label)[:, None] & ~right
    return Answered(right, lost, layers, candidates)


def probed(stream: Stream, joint: np.ndarray, pairs: Sequence[tuple[int, int]], loss: str) -> Answered:
    """One head for all pairs of task and class, (N, L, P), at one depth: the last layer is safest, the first riskiest."""
    n_layers = joint.shape[1]
    order = np.arange(n_layers)[::-1]
    task, label = np.array(pairs).T
    best = joint.argmax(-1)[:, order]  # (N, L)
    layers = np.broadcast_to(order + 1, best.shape)
    return _counted(stream, task[best] == stream.task[:, None], label[best], layers, loss, order)


@dataclass(frozen=True)
class Way:
    """A way of answering the stream, calibrated: the riskiest candidate that is allowed, the safest where none is."""

    answers: Answered
    place: int
    promised: bool

    def of(self, what: str, rows: np.ndarray) -> np.ndarray:
        """(n,): ``right``, ``lost`` or ``layers`` of ``rows`` (n,)."""
        return np.asarray(getattr(self.answers, what)[rows, self.place])


def allowed(lost: np.ndarray, groups: np.ndarray, settings: RouteSettings) -> int:
    """How many candidates of ``lost`` (n, T) calibration rows are allowed, by Learn-then-Test over groups."""
    table = group_means(lost.astype(float), groups)
    return tests_passed(table.mean(0), len(table), settings.risk, settings.delta, binary=len(table) == len(groups))


def calibrated_way(answers: Answered, stream: Stream, rows: np.ndarray, settings: RouteSettings) -> Way:
    passed = allowed(answers.lost[rows], stream.groups[rows], settings)
    return Way(answers, max(0, passed - 1), passed > 0)


@dataclass(frozen=True)
class Acting:
    """What was fitted and calibrated, and how it and its rivals answer."""

    dispatcher: Dispatcher
    stream: Stream
    ways: dict[str, Way]
    runners: Mapping[str, Any]
    """of the rivals that run: the told classifiers, the bag of words, the probe; ``nearest``, the task that answers each row"""


def act(
    context: Context,
    model: LoadedModel,
    parts: Sequence[Task],
    together: Task,
    rows: Rows,
    router: TaskRouter,
    named: list[Named],
    settings: RouteSettings,
) -> Acting:
    """Fit every task's heads on ``rows.fit``, and calibrate one confidence for all on ``rows.calibrate``, which neither heads
    nor router have seen: neither what fitted it nor, among ``rows.select``, what says how strange is unknown.

    Args:
        named: of all rows of ``together``, whose classes are the tasks.

    Raises:
        InputError: naming mistakes alone cost more than the risk that is asked for.
    """
    run = context.run
    task = np.array([e.label for e in together.examples])
    label = np.concatenate([[e.label for e in part.examples] for part in parts]).astype(np.int64)
    texts = [e.text for e in together.examples]
    limits: Any = {"max_tokens": run.max_tokens, "batch_tokens": run.batch_tokens, "progress": context.counter("all layers")}
    features = context.stage("all layers", partial(read_features, model, texts, **limits))
    heads: list[Heads] = []
    for t, part in enumerate(parts):
        mine = rows.fit[task[rows.fit] == t]
        kinds = KINDS if settings.head == "auto" else (settings.head,)
        fitted = [_fitted(context, part.name, kind, features, label, mine, rows.groups, settings) for kind in kinds]
        heads.append(max(fitted, key=lambda one: float(one.accuracy.mean())).heads)
    stream = Stream(task, label, rows.groups, tuple(head.probabilities(features) for head in heads))
    nearest = np.array([router.tasks.index(one.nearest) for one in named])
    known = np.array([one.task is not None for one in named])
    every = tuple(range(model.n_layers))
    checks = every[router.layer :]
    candidates = thresholds(max(len(part.classes) for part in parts))
    answer = partial(answered, stream, loss=settings.loss, candidates=candidates)
    bag = bag_of_words([texts[i] for i in rows.fit], task[rows.fit])
    pairs = [(t, c) for t, part in enumerate(parts) for c in range(len(part.classes))]
    code = np.array([pairs.index(pair) for pair in zip(task.tolist(), label.tolist(), strict=True)])
    joint = _fitted(context, "all tasks", "pooled", features, code, rows.fit, rows.groups, settings).heads
    sure = np.ones(len(task), bool)
    found = {
        ROUTED: answer(nearest, known, checks),
        BAG: answer(bag.predict(texts), sure, every),
        PROBE: probed(stream, joint.probabilities(features), pairs, settings.loss),
        TOLD: answer(task, sure, every),
    }
    ways = {name: calibrated_way(one, stream, rows.calibrate, settings) for name, one in found.items()}
    ways[FULL] = Way(found[TOLD], 0, True)  # nobody leaves early
    here = ways[ROUTED]
    groups = stream.groups[rows.calibrate]
    share = float(group_means(here.of("lost", rows.calibrate)[:, None].astype(float), groups).mean())
    n = len(np.unique(groups))
    if not here.promised:
        raise InputError(
            f"{settings.risk:g} cannot be promised: before any text leaves early, mistakes of naming cost {share:.2%} of {n} "
            "calibration groups; ask for more risk, or read a later layer",
            "risk",
        )
    moved = float((nearest != task).mean())
    shared = np.intersect1d(groups, stream.groups[np.concatenate([rows.fit, rows.select, rows.judge])])
    context.control(
        "rows that calibrate the promise",
        differs=len(shared) == 0,
        evidence=f"{len(shared)} of {n} groups fit heads or router, say what is unknown, or judge; {moved:.1%} of all rows are "
        "nearest to another task, and counted",
    )
    guarantee = Guarantee(
        threshold=float(candidates[here.place]),
        risk=settings.risk,
        delta=settings.delta,
        loss=settings.loss,
        method="ltt",
        groups=n,
        calibration_risk=share,
    )

    def classifier(t: int, threshold: float, layers: tuple[int, ...]) -> ExitClassifier:
        part = parts[t]
        template = part.template if isinstance(part, RenderedTask) else None
        return ExitClassifier(model, heads[t], part.classes, threshold, layers, None, part.name, run.max_tokens, template)

    def classifiers(way: str, layers: tuple[int, ...]) -> tuple[ExitClassifier, ...]:
        threshold = float(candidates[ways[way].place])
        return tuple(classifier(t, threshold, layers) for t in range(len(parts)))

    names = tuple(f"{parts[t].name}: {parts[t].classes[c]}" for t, c in pairs)
    probe = ExitClassifier(model, joint, names, 0.0, every, None, "all tasks", run.max_tokens)
    depth = int(ways[PROBE].answers.candidates[ways[PROBE].place])
    runners: dict[str, Any] = {
        "nearest": [one.nearest for one in named],
        BAG: (bag, classifiers(BAG, every)),
        TOLD: classifiers(TOLD, every),
        PROBE: probe.fixed(depth),
    }
    return Acting(Dispatcher(router, classifiers(ROUTED, checks), guarantee), stream, ways, runners)


def _fitted(
    context: Context,
    name: str,
    kind: Kind,
    features: ExitFeatures,
    y: np.ndarray,
    rows: np.ndarray,
    groups: np.ndarray,
    settings: RouteSettings,
) -> Fitted:
    folds = group_folds(y[rows], groups[rows], n_folds=_FOLDS, seed=context.run.seed)
    return context.stage(f"{name}: heads, {kind}", lambda: fit_heads(kind, features.rows(rows), y[rows], folds, k=settings.k))


def bag_of_words(texts: Sequence[str], task: np.ndarray) -> Pipeline:
    """Text to task without any layer: logistic regression on tf-idf weights of words, as the surface cue of that name."""
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    return make_pipeline(words, LogisticRegression(C=10.0, max_iter=300, tol=1e-3)).fit(list(texts), task)


def resplits(acting: Acting, rows: Rows, settings: RouteSettings, seed: int) -> pd.DataFrame:
    """The promise made anew on other groups: calibration and test groups are dealt out again, heads and router stay.

    ``pool`` is the loss of the confidence that was chosen on all groups, the population from which those that calibrate are
    drawn without replacement: that is what the promise is about, and it is known here.
    """
    answers, groups = acting.ways[ROUTED].answers, acting.stream.groups
    both = np.concatenate([rows.calibrate, rows.judge])
    lost = group_means(answers.lost[both].astype(float), groups[both])
    share = group_means(answers.layers[both] / acting.dispatcher.model.n_layers, groups[both])
    n = len(np.unique(groups[rows.calibrate]))
    binary = len(lost) == len(both)
    rng, found = np.random.default_rng(seed), []
    for split in range(settings.n_resplits):
        order = rng.permutation(len(lost))
        held, rest = order[:n], order[n:]
        passed = tests_passed(lost[held].mean(0), n, settings.risk, settings.delta, binary=binary)
        place = max(0, passed - 1)
        found.append(
            {
                "split": split,
                "promised": passed > 0,
                "confidence": float(answers.candidates[place]),
                "calibrated": float(lost[held, place].mean()),
                "judged": float(lost[rest, place].mean()),
                "pool": float(lost[:, place].mean()),
                "share": float(share[rest, place].mean()),
            }
        )
    return pd.DataFrame(found)


def strangers(
    acting: Acting, rows: Rows, others: Mapping[int, tuple[TaskRouter, list[Named]]], settings: RouteSettings
) -> pd.DataFrame:
    """Test texts of each task, put to all of it calibrated without that task: no promise covers them.

    Args:
        others: of each task left out, the router that does not know it, and what it says of all rows.
    """
    stream, n_layers, found = acting.stream, acting.dispatcher.model.n_layers, []
    tasks = acting.dispatcher.router.tasks
    candidates = acting.ways[ROUTED].answers.candidates
    for out, (router, named) in others.items():
        nearest = np.array([tasks.index(one.nearest) for one in named])
        known = np.array([one.task is not None for one in named])
        checks = range(router.layer, n_layers)
        answers = answered(stream, nearest, known, checks, settings.loss, candidates)
        held = rows.calibrate[stream.task[rows.calibrate] != out]
        way = calibrated_way(answers, stream, held, settings)
        judged = rows.judge[stream.task[rows.judge] == out]
        wrong = known[judged]
        mostly = np.bincount(nearest[judged], minlength=len(tasks)).argmax()
        layers = way.of("layers", judged)
        found.append(
            {
                "task": tasks[out],
                "n": len(judged),
                "unknown": float(1 - wrong.mean()),
                "routed": float(wrong.mean()),
                "mostly": tasks[mostly],
                "early": float((wrong & (layers < n_layers)).mean()),
                "share": float(layers.mean() / n_layers),
            }
        )
    return pd.DataFrame(found)
