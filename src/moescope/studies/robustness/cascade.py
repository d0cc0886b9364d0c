"""A monitor cascade of one category: fitted, calibrated and judged by turns, beside its two stages alone and a bag of words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline

from moescope.models import LoadedModel
from moescope.runtime.exit.layers import check_leaving
from moescope.runtime.monitor import (
    MonitorCascade,
    Promise,
    Score,
    Thresholds,
    calibrated,
    cascade_path,
    first_alone,
    fit_score,
    second_alone,
)
from moescope.runtime.route.router import source_sites
from moescope.runtime.route.watch import prompt_features
from moescope.stats import group_bootstrap, wilson
from moescope.studies.robustness.perturb import perturbed
from moescope.studies.robustness.settings import RobustnessSettings
from moescope.studies.robustness.turns import one_each
from moescope.study.protocol import Context
from moescope.study.rows import Rows
from moescope.tasks import Prompt, group_folds

CASCADE, SIGNATURE, WHOLE, WORDS = "cascade", "first stage alone", "whole model alone", "bag of words"
MONITORS = (CASCADE, SIGNATURE, WHOLE, WORDS)
_TIMED, _TURNS = 24, 3


@dataclass(frozen=True, eq=False)
class Judged:
    """What every monitor said of each of N prompts, fitted and calibrated without it."""

    y: np.ndarray
    """(N,) bool: of the watched category"""
    groups: np.ndarray
    flagged: dict[str, np.ndarray]
    """monitor -> (N,) bool"""
    asked: np.ndarray
    """(N,) bool: the cascade needed its second stage"""
    risk: float
    delta: float

    def misses(self, name: str) -> np.ndarray:
        """(n,) float64 of the watched category's prompts."""
        return np.asarray(~self.flagged[name][self.y], float)

    def alarms(self, name: str) -> np.ndarray:
        """(m,) float64 of the others."""
        return np.asarray(self.flagged[name][~self.y], float)


@dataclass(frozen=True, eq=False)
class Fitted:
    """One turn: what it was fitted and calibrated to."""

    rows: Rows
    first: Score
    second: Score
    thresholds: dict[str, Thresholds]
    promise: Promise


@dataclass(frozen=True, eq=False)
class Cascade:
    """The monitor that is kept, and what all turns said."""

    monitor: MonitorCascade
    turns: tuple[Fitted, ...]
    judged: Judged
    seconds: np.ndarray
    """(n, 2) medians of a prompt's seconds by the cascade, and by the whole model alone"""


def fit_turn(
    rows: Rows, x: tuple[np.ndarray, np.ndarray], texts: Sequence[str], y: np.ndarray, settings: RobustnessSettings
) -> tuple[Fitted, dict[str, np.ndarray], np.ndarray]:
    """Fit and calibrate every monitor; what each says of the rows that judge, and which of them the cascade asked about.

    Args:
        x: features of the two stages, (N, F1) and (N, F2).
    """
    scores = [fit_score(part[rows.fit], y[rows.fit]) for part in x]
    every = [score.of(part) for score, part in zip(scores, x, strict=True)]
    held = [_held_out(part[rows.fit], y[rows.fit], rows.groups[rows.fit]) for part in x]
    own = one_each(rows.calibrate[y[rows.calibrate]], rows.groups)
    words, words_held = _words(texts, y, rows)
    none = np.zeros(len(y))
    target = y[rows.fit]
    candidates = {
        CASCADE: (cascade_path(held[0], held[1], target), every[0], every[1]),
        SIGNATURE: (first_alone(held[0], target), every[0], none),
        WHOLE: (second_alone(held[1], target), none, every[1]),
        WORDS: (first_alone(words_held, target), words, none),
    }
    thresholds, said = {}, {}
    promise, asked = None, none.astype(bool)
    for name, (path, first, second) in candidates.items():
        chosen, kept = calibrated(path, first[own], second[own], settings.risk, settings.delta)
        thresholds[name] = chosen
        flagged, unsure = chosen.decisions(first[rows.judge], second[rows.judge])
        said[name] = flagged
        if name == CASCADE:
            promise, asked = kept, unsure
    assert promise is not None
    return Fitted(rows, scores[0], scores[1], thresholds, promise), said, asked


def _held_out(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    folds = group_folds(y.astype(int), groups, n_folds=3, seed=0)
    out = np.empty(len(y))
    for fold in range(3):
        out[folds == fold] = fit_score(x[folds != fold], y[folds != fold]).of(x[folds == fold])
    return out


def _words(texts: Sequence[str], y: np.ndarray, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all rows by a bag of words of the rows that fit, and held-out ones of those."""
    make = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=500, class_weight="balanced"))
    fit = [texts[i] for i in rows.fit]
    folds = group_folds(y[rows.fit].astype(int), rows.groups[rows.fit], n_folds=3, seed=0)
    parts = [(np.flatnonzero(folds != f), np.flatnonzero(folds == f)) for f in range(3)]
    held = cross_val_predict(make, fit, y[rows.fit], cv=parts, method="decision_function")
    return np.asarray(make.fit(fit, y[rows.fit]).decision_function(texts)), np.asarray(held)


def features(
    context: Context, model: LoadedModel, texts: Sequence[str], layer: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """What both stages read of each text."""
    run = context.run
    read = partial(prompt_features, model, texts, max_tokens=run.max_tokens, batch_tokens=run.batch_tokens)
    return context.stage(
        f"{name}, for the monitor", lambda: (read(source="routing", layer=layer)[0], read("residual", model.n_layers - 1)[0])
    )


def monitor_layer(model: LoadedModel, settings: RobustnessSettings) -> int:
    """The last layer that the first stage reads: a quarter of the way up where none is named.

    Raises:
        InputError: the model is dense there, or rows cannot leave a batch of it.
    """
    layer = model.n_layers // 4 if settings.layer is None else settings.layer
    if settings.layer is None:  # the first layers of some mixtures are dense
        layer = max(layer, next((site.layer for site in model.sites("router")), layer))
    source_sites(model, "routing", layer)
    check_leaving(model)
    return layer


def cascade(
    context: Context,
    model: LoadedModel,
    prompts: Sequence[Prompt],
    y: np.ndarray,
    parts: Sequence[Rows],
    settings: RobustnessSettings,
) -> Cascade:
    """Fit, calibrate and judge by turns, keep the first turn's monitor, and time it."""
    layer = monitor_layer(model, settings)
    texts = [p.text for p in prompts]
    x = features(context, model, texts, layer, "the prompts")
    done = [fit_turn(context.rows(rows), x, texts, y, settings) for rows in parts]
    flagged = {name: np.zeros(len(y), bool) for name in MONITORS}
    asked = np.zeros(len(y), bool)
    for fitted, said, unsure in done:
        for name in MONITORS:
            flagged[name][fitted.rows.judge] = said[name]
        asked[fitted.rows.judge] = unsure
    kept = done[0][0]
    monitor = MonitorCascade(
        model,
        str(settings.monitor),
        layer,
        kept.first,
        kept.second,
        kept.thresholds[CASCADE],
        kept.promise,
        context.run.max_tokens,
    )
    judged = Judged(y, parts[0].groups, flagged, asked, settings.risk, settings.delta)
    seconds = context.stage(
        "the monitor on the clock", lambda: _timed(monitor, [texts[i] for i in kept.rows.judge], context.run.seed)
    )
    return Cascade(monitor, tuple(fitted for fitted, _, _ in done), judged, seconds)


def _timed(monitor: MonitorCascade, texts: Sequence[str], seed: int) -> np.ndarray:
    """(n, 2) seconds of a prompt by itself, by turns; the median of three."""
    rng = np.random.default_rng(seed)
    chosen = [texts[i] for i in rng.permutation(len(texts))[:_TIMED]]
    ways = (monitor.run, monitor.whole)
    for way in ways:
        way(chosen[:1])
    out = np.empty((len(chosen), 2))
    for row, text in enumerate(chosen):
        spent: list[list[float]] = [[], []]
        for turn in range(_TURNS):
            for i in (0, 1) if turn % 2 else (1, 0):
                began = time.perf_counter()
                ways[i]([text])
                spent[i].append(time.perf_counter() - began)
        out[row] = [median(times) for times in spent]
    return out


def monitor_table(found: Cascade) -> pd.DataFrame:
    """Table ``monitor``: one row a monitor."""
    judged, rows = found.judged, []
    for name in MONITORS:
        misses, alarms = judged.misses(name), judged.alarms(name)
        asked = {CASCADE: judged.asked.mean(), WHOLE: 1.0}.get(name, 0.0)
        row = {"monitor": name, "prompts": len(misses), "misses": float(misses.mean())}
        row["misses_low"], row["misses_high"] = wilson(int(misses.sum()), len(misses))
        low, high = group_bootstrap(alarms, judged.groups[~judged.y])
        row |= {"others": len(alarms), "alarms": float(alarms.mean()), "alarms_low": low, "alarms_high": high}
        rows.append(row | {"second_stage": float(asked), "risk": judged.risk})
    return pd.DataFrame(rows)


def cascade_of(
    context: Context,
    model: LoadedModel,
    prompts: Sequence[Prompt],
    y: np.ndarray,
    parts: Sequence[Rows],
    settings: RobustnessSettings,
) -> tuple[Cascade, dict[str, pd.DataFrame]]:
    """The cascade of the category ``y`` (N,) bool, and the tables ``monitor`` and ``monitor_changes``."""
    found = cascade(context, model, prompts, y, parts, settings)
    rows = []
    for name in settings.perturbations:
        texts = [p.text for p in perturbed(prompts, name, context.run.seed)]
        rows.append(changed_row(found, name, features(context, model, texts, found.monitor.layer, name)))
    columns = ["change", "misses", "misses_low", "misses_high", "alarms", "second_stage"]
    return found, {"monitor": monitor_table(found), "monitor_changes": pd.DataFrame(rows, columns=columns)}


def changed_row(found: Cascade, name: str, x: tuple[np.ndarray, np.ndarray]) -> dict[str, float | str]:
    """What a change of the prompts does to the cascade, each by the turn that had not seen its prompt."""
    y = found.judged.y
    flagged, asked = np.zeros(len(y), bool), np.zeros(len(y), bool)
    for turn in found.turns:
        judge = turn.rows.judge
        first, second = turn.first.of(x[0][judge]), turn.second.of(x[1][judge])
        flagged[judge], asked[judge] = turn.thresholds[CASCADE].decisions(first, second)
    low, high = wilson(int((~flagged[y]).sum()), int(y.sum()))
    return {
        "change": name,
        "misses": float((~flagged[y]).mean()),
        "misses_low": low,
        "misses_high": high,
        "alarms": float(flagged[~y].mean()),
        "second_stage": float(asked.mean()),
    }
