"""One task: heads fitted, rule calibrated, everything judged on rows that neither has seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.models import LoadedModel
from moescope.runtime.exit.classifier import ExitClassifier, check_layers
from moescope.runtime.exit.features import read_features
from moescope.runtime.exit.heads import KINDS, Heads, Kind, fit_heads
from moescope.runtime.exit.rule import Guarantee, exit_layers, losses, thresholds
from moescope.stats import group_bootstrap
from moescope.stats.conformal import crc_size, ltt_size
from moescope.studies.exit.calibration import calibrate
from moescope.studies.exit.settings import ExitSettings
from moescope.studies.exit.speed import measure
from moescope.tasks import group_folds, surface_predictions
from moescope.tasks.folds import Split, split_rows
from moescope.types import Task

Stage = Callable[[str, int, int], None]
PUBLISHED_DEPTH = 0.28  # of the layers: 0 to 8 of Mistral's 32
_BATCHES = (1, 64)
_SHOWN = 8  # thresholds and depths of the frontier that go on the clock
_Place = tuple[str, float]  # curve and setting of a row of the frontier


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
    y: np.ndarray
    groups: np.ndarray
    surface: str
    """the trivial cue that does best on training rows"""
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


def exit_task(model: LoadedModel, task: Task, settings: ExitSettings, tell: Stage) -> TaskExit:
    """Fit, calibrate, test and time.

    Raises:
        InputError: too few calibration groups (said before the model runs), a layer out of range, or K too large.
    """
    split = split_rows(task, settings.seed)
    y = np.array([e.label for e in task.examples])
    groups = np.array([e.group for e in task.examples])
    _check_size(task, len(np.unique(groups[split.calibration])), settings)
    checks = settings.layers if settings.layers is not None else tuple(range(model.n_layers))
    check_layers(checks, model.n_layers)
    if settings.k > model.d_model:
        raise InputError(f"--k: K = {settings.k} is larger than the {model.d_model} residual coordinates of a layer")
    texts = [e.text for e in task.examples]
    features = read_features(
        model,
        texts,
        max_tokens=settings.max_tokens,
        batch_tokens=settings.batch_tokens,
        progress=partial(tell, f"{task.name}: reading activations"),
    )
    fitted, stage = {}, f"{task.name}: heads"
    for step, kind in enumerate(KINDS):
        tell(stage, step, len(KINDS))
        train = features.rows(split.train)
        fitted[kind] = fit_heads(kind, train, y[split.train], groups[split.train], k=settings.k, seed=settings.seed)
    tell(stage, len(KINDS), len(KINDS))
    chosen: Kind = settings.head if settings.head != "auto" else max(KINDS, key=lambda kind: fitted[kind].accuracy.mean())
    heads = {kind: fit.heads for kind, fit in fitted.items()}
    calibrating = heads[chosen].probabilities(features.rows(split.calibration))
    guarantee = calibrate(calibrating, y[split.calibration], groups[split.calibration], checks, settings)
    classifier = ExitClassifier(
        model, heads[chosen], task.classes, guarantee.threshold, checks, guarantee, task.name, settings.max_tokens
    )
    tested = features.rows(split.test)
    said = {kind: head.probabilities(tested) for kind, head in heads.items()}
    at = exit_layers(said[chosen], guarantee.threshold, checks)
    cue, cue_right = _surface(task, split, y, groups, model.tokenizer, settings.seed)
    published = max(0, round(PUBLISHED_DEPTH * model.n_layers) - 1)
    shares = {float(t): float(exit_layers(said[chosen], t, checks).mean()) for t in thresholds(len(task.classes))}
    on_clock = [texts[i] for i in split.test]
    speed, timed = _speed(classifier, heads["circuit"], published, shares, on_clock, settings, tell)
    rows = [
        {
            "kind": kind,
            "layer": layer,
            "chosen": kind == chosen,
            "left_out": fitted[kind].accuracy[layer],
            "test": float((said[kind][:, layer].argmax(-1) == y[split.test]).mean()),
        }
        for kind in KINDS
        for layer in range(model.n_layers)
    ]
    tables = {
        "heads": pd.DataFrame(rows),
        "frontier": _frontier(said[chosen], said["circuit"], y[split.test], groups[split.test], classifier, timed, settings),
        "speed": speed,
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
        y=y[split.test],
        groups=groups[split.test],
        surface=cue,
        surface_right=cue_right,
        tables={name: _of_task(table, task.name) for name, table in tables.items()},
    )


def _check_size(task: Task, groups: int, settings: ExitSettings) -> None:
    """Calibration too small is said before minutes of work, with the number of rows that would do."""
    need = crc_size(settings.risk) if settings.method == "crc" else ltt_size(settings.risk, settings.delta)
    if groups < need:
        promise = f"risk {settings.risk:g}" + (f" at delta {settings.delta:g}" if settings.method == "ltt" else "")
        raise InputError(
            f"task {task.name}: {promise} needs at least {need} calibration groups, two fifths of the task's are {groups}; "
            "ask for more --risk or --delta, or give more rows"
        )


def _surface(task: Task, split: Split, y: np.ndarray, groups: np.ndarray, tokenizer: Any, seed: int) -> tuple[str, np.ndarray]:
    """The cue that does best on training rows left out in turn, and where it is right on the test rows."""
    folds = group_folds(y[split.train], groups[split.train], n_folds=3, seed=seed)
    score: dict[str, int] = {}
    for fold in range(3):
        train, held = split.train[folds != fold], split.train[folds == fold]
        for name, said in surface_predictions(task, train, held, tokenizer).items():
            score[name] = score.get(name, 0) + int((said == y[held]).sum())
    best = max(score, key=lambda name: score[name])
    return best, surface_predictions(task, split.train, split.test, tokenizer)[best] == y[split.test]


def _speed(
    classifier: ExitClassifier,
    circuit: Heads,
    published: int,
    shares: dict[float, float],
    texts: list[str],
    settings: ExitSettings,
    tell: Stage,
) -> tuple[pd.DataFrame, dict[_Place, float]]:
    """The speed table, and the time at batch 1, over full depth, of some of the frontier's places."""
    model = classifier.model
    encoded = encode(model, texts, max_tokens=settings.max_tokens)
    encoded = encoded.rows(0, min(len(encoded), settings.timed_texts))
    at_depth = dataclasses.replace(classifier, heads=circuit).fixed(published)
    main = {"full depth": classifier.full, "early exit": classifier, "circuit at 28 % of the depth": at_depth}
    rows = []
    for batch in _BATCHES:
        stage = f"{classifier.task}: on the clock, batch {batch}"
        rows += measure(main, encoded, batch, progress=partial(tell, stage))
    keys: dict[str, _Place] = {}
    contenders = {"full depth": classifier.full}
    for threshold in [*_spread(shares), classifier.threshold]:
        keys[f"threshold {threshold:.6g}"] = ("threshold", float(threshold))
        contenders[f"threshold {threshold:.6g}"] = dataclasses.replace(classifier, threshold=float(threshold), guarantee=None)
    for layer in _few(np.arange(model.n_layers)):
        keys[f"layer {layer}"] = ("fixed depth", float(layer))
        contenders[f"layer {layer}"] = classifier.fixed(int(layer))
    stage = f"{classifier.task}: frontier on the clock"
    found = measure(contenders, encoded, 1, repeats=2, progress=partial(tell, stage))
    return pd.DataFrame(rows), {keys[r["contender"]]: 1 / r["speedup"] for r in found if r["contender"] in keys}


def _spread(shares: dict[float, float]) -> list[float]:
    """Thresholds that spread evenly over the layers they run."""
    goals = np.linspace(min(shares.values()), max(shares.values()), _SHOWN)
    return sorted({min(shares, key=lambda t, goal=goal: abs(shares[t] - goal)) for goal in goals})  # type: ignore[misc]


def _few(values: np.ndarray) -> np.ndarray:
    return values[np.unique(np.linspace(0, len(values) - 1, _SHOWN).round().astype(int))]


def _frontier(
    said: np.ndarray,
    circuit: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    classifier: ExitClassifier,
    timed: dict[_Place, float],
    settings: ExitSettings,
) -> pd.DataFrame:
    """Accuracy against the share of layers and relative time: thresholds, fixed depths, and circuits chosen anew per depth."""
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
        low, high = group_bootstrap(right.astype(float), groups, n_boot=500, seed=settings.seed)
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
                "time": timed.get((curve, float(setting)), np.nan),
            }
        )
    return pd.DataFrame(rows)


def _of_task(table: pd.DataFrame, name: str) -> pd.DataFrame:
    table.insert(0, "task", name)
    return table
