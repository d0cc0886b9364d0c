"""One task: heads fitted, rule calibrated, everything judged on rows that neither has seen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture.encode import encode
from moescope.models import LoadedModel
from moescope.runtime.choices import KINDS, Kind
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.runtime.exit.features import read_features
from moescope.runtime.exit.heads import Heads, fit_heads
from moescope.runtime.exit.rule import Guarantee, exit_layers, losses, thresholds
from moescope.stats import group_bootstrap
from moescope.studies.exit.calibration import calibrate
from moescope.studies.exit.published import SHARE
from moescope.studies.exit.settings import ExitSettings
from moescope.studies.exit.speed import Timed, measure
from moescope.study.protocol import Context
from moescope.study.rows import FoldRows, Rows
from moescope.tasks import chosen_cue, group_folds
from moescope.tasks.build import RenderedTask
from moescope.types import Task

_FOLDS = 3  # of the fitting rows
_BATCHES = (1, 64)


@dataclass(frozen=True)
class TaskExit:
    """What was found for one task. ``said`` and ``y`` are of the test rows; ``at`` is the layer at which each leaves."""

    task: Task
    classifier: ExitClassifier
    guarantee: Guarantee
    published_layer: int
    """the last layer within 28 % of the depth"""
    circuit: np.ndarray
    """(n, L, C) what circuit heads say of the test rows"""
    said: np.ndarray
    """(n, L, C) what the heads of the classifier say"""
    at: np.ndarray
    """(n,) int64"""
    dealt: np.ndarray
    """(P, n) bool: right where rows leave when the depths ``at`` are dealt out among them at random, P times"""
    y: np.ndarray
    groups: np.ndarray
    surface: str
    """the trivial cue that does best on fitting rows left out in turn"""
    surface_right: np.ndarray
    """(n,) bool: what it gets right on the test rows"""
    tables: dict[str, pd.DataFrame]

    @property
    def right(self) -> np.ndarray:
        """(n,) bool: right where each row leaves."""
        return np.asarray(self.said[np.arange(len(self.y)), self.at].argmax(-1) == self.y)

    @property
    def full_right(self) -> np.ndarray:
        """(n,) bool: right at full depth."""
        return np.asarray(self.said[:, -1].argmax(-1) == self.y)

    @property
    def lost(self) -> np.ndarray:
        """(n,) float: the loss that the guarantee is about."""
        return losses(self.said, self.y, self.at, self.guarantee.loss)


def exit_task(context: Context, model: LoadedModel, task: Task, rows: Rows, settings: ExitSettings) -> TaskExit:
    """Fit, calibrate, test and time."""
    run = context.run
    y = np.array([e.label for e in task.examples])
    checks = settings.layers if settings.layers is not None else tuple(range(model.n_layers))
    texts = [e.text for e in task.examples]
    stage = f"{task.name}: reading activations"
    limits: Any = {"max_tokens": run.max_tokens, "batch_tokens": run.batch_tokens, "progress": context.counter(stage)}
    features = context.stage(stage, lambda: read_features(model, texts, **limits))
    # Temperatures and the choices between heads and between cues come from fitting rows that are left out in turn.
    fitting = rows.groups[rows.fit]
    folds = group_folds(y[rows.fit], fitting, n_folds=_FOLDS, seed=run.seed)
    inner = context.rows(FoldRows(f"{task.name}: within fit", fitting, folds))
    train = features.rows(rows.fit)
    fitted = {
        kind: context.stage(
            f"{task.name}: heads, {kind}", partial(fit_heads, kind, train, y[rows.fit], inner.folds, k=settings.k)
        )
        for kind in context.steps(f"{task.name}: heads", KINDS)
    }
    chosen: Kind = settings.head if settings.head != "auto" else max(KINDS, key=lambda kind: fitted[kind].accuracy.mean())
    heads = {kind: fit.heads for kind, fit in fitted.items()}
    calibrating = heads[chosen].probabilities(features.rows(rows.calibrate))
    guarantee = calibrate(calibrating, y[rows.calibrate], rows.groups[rows.calibrate], checks, settings)
    classifier = ExitClassifier(
        model, heads[chosen], task.classes, guarantee.threshold, checks, guarantee, task.name, run.max_tokens, _template(task)
    )
    tested, tested_y, tested_groups = features.rows(rows.judge), y[rows.judge], rows.groups[rows.judge]
    said = {kind: head.probabilities(tested) for kind, head in heads.items()}
    at = exit_layers(said[chosen], guarantee.threshold, checks)
    dealt = _dealt(said[chosen], at, tested_y, settings.n_random, run.seed, context, task.name)
    cue, cue_said = chosen_cue(task, rows.fit, rows.judge, inner.folds, model.tokenizer)
    cue_right = cue_said == tested_y
    published = max(0, round(SHARE * model.n_layers) - 1)
    clocked = partial(_speed, classifier, heads["circuit"], published, [texts[i] for i in rows.judge], settings, context)
    speed, singly = context.stage(f"{task.name}: on the clock", clocked)
    accuracies = [
        {
            "kind": kind,
            "layer": layer,
            "chosen": kind == chosen,
            "left_out": fitted[kind].accuracy[layer],
            "test": float((said[kind][:, layer].argmax(-1) == tested_y).mean()),
        }
        for kind in KINDS
        for layer in range(model.n_layers)
    ]
    tables = {
        "heads": pd.DataFrame(accuracies),
        "frontier": _frontier(said[chosen], said["circuit"], tested_y, tested_groups, classifier, singly, settings, run.seed),
        "speed": pd.DataFrame(speed),
        "depth": pd.DataFrame({"layers": np.arange(1, model.n_layers + 1), "rows": np.bincount(at, minlength=model.n_layers)}),
        "surface": pd.DataFrame([{"cue": cue, "accuracy": float(cue_right.mean()), "n": len(cue_right)}]),
    }
    return TaskExit(
        task=task,
        classifier=classifier,
        guarantee=guarantee,
        published_layer=published,
        circuit=said["circuit"],
        said=said[chosen],
        at=at,
        dealt=dealt,
        y=tested_y,
        groups=tested_groups,
        surface=cue,
        surface_right=cue_right,
        tables={name: _of_task(table, task.name) for name, table in tables.items()},
    )


def _template(task: Task) -> str | None:
    return task.template if isinstance(task, RenderedTask) else None


def _dealt(said: np.ndarray, at: np.ndarray, y: np.ndarray, n: int, seed: int, context: Context, name: str) -> np.ndarray:
    """(n, N) bool: right where rows leave at random, at the same depths and so as deep on average."""
    rng, rows = np.random.default_rng(seed), np.arange(len(at))
    orders = np.stack([rng.permutation(rows) for _ in range(n)])
    moved = float((at[orders] != at).mean())
    if len(np.unique(at)) > 1:
        evidence = f"{moved:.1%} of the rows leave after another layer"
        context.control(f"{name}: exits at random", differs=moved > 0, evidence=evidence)
    right = said.argmax(-1) == y[:, None]  # (N, L)
    return np.asarray(right[rows, at[orders]])


def _speed(
    classifier: ExitClassifier,
    circuit: Heads,
    published: int,
    texts: list[str],
    settings: ExitSettings,
    context: Context,
) -> tuple[list[dict[str, Any]], Timed]:
    """The rows of the speed table, and what was measured at batch 1."""
    encoded = encode(classifier.model, texts[: settings.timed_texts], max_tokens=classifier.max_tokens)
    at_depth = dataclasses.replace(classifier, heads=circuit).fixed(published)
    contenders = {"full depth": classifier.full, "early exit": classifier, "circuit at 28 % of the depth": at_depth}
    singly, together = (
        measure(
            contenders,
            encoded,
            n,
            seconds=settings.timed_seconds,
            batch_tokens=context.run.batch_tokens,
            seed=context.run.seed,
            progress=context.counter(f"{classifier.task}: on the clock, batch {n}"),
        )
        for n in _BATCHES
    )
    return [*singly.rows, *together.rows], singly


def _frontier(
    said: np.ndarray,
    circuit: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    classifier: ExitClassifier,
    singly: Timed,
    settings: ExitSettings,
    seed: int,
) -> pd.DataFrame:
    """Accuracy against the share of layers and relative time: thresholds, fixed depths, and circuits chosen anew per depth.

    A text by itself runs to the layer at which it leaves as in the pass that goes on, so one pass with every head asked tells
    the time of every place.
    """
    n_layers = said.shape[1]
    places = []
    for threshold in thresholds(said.shape[2]):
        places.append(("threshold", float(threshold), said, exit_layers(said, threshold, classifier.checks)))
    for layer in range(n_layers):
        fixed = np.full(len(y), layer)
        places += [("fixed depth", layer, said, fixed), ("circuit per depth", layer, circuit, fixed)]
    rows = []
    for curve, setting, table, at in places:
        right = table[np.arange(len(y)), at].argmax(-1) == y
        low, high = group_bootstrap(right.astype(float), groups, n_boot=500, seed=seed)
        rows.append(
            {
                "curve": curve,
                "setting": setting,
                "calibrated": curve == "threshold" and setting == classifier.threshold,
                "share": float((at + 1).mean() / n_layers),
                "accuracy": float(right.mean()),
                "low": low,
                "high": high,
                "loss": float(losses(table, y, at, settings.loss).mean()),
                "time": float(np.take_along_axis(singly.ends, at[singly.texts, None] + 1, 1).sum() / singly.ends[:, -1].sum()),
            }
        )
    return pd.DataFrame(rows)


def _of_task(table: pd.DataFrame, name: str) -> pd.DataFrame:
    table.insert(0, "task", name)
    return table
