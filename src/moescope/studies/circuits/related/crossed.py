"""Two properties of the same texts: is one circuit as good where the other property differs, and can each be edited alone?

Accuracy: a circuit is chosen and fitted on texts of one class of the other property, and read on held-out texts of both. Edits:
on one half of the groups both circuits are ranked and both probes fitted; on the other either circuit is set to its mean in the
running model, and both probes are read. That each edit costs its own property more than the other's is one contrast, the
interaction of what is edited with what is read (a double dissociation, Teuber 1955).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from moescope.intervene.replicas import Reading
from moescope.intervene.together import run_together
from moescope.models import LoadedModel
from moescope.select.nested import fit_classifier
from moescope.select.ranking import layer_matched_sets
from moescope.studies.circuits.causal import NeuronAblation
from moescope.studies.circuits.causal_targets import true_odds
from moescope.studies.circuits.features import Features, rows_of
from moescope.studies.circuits.halves import judges
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import rank_columns
from moescope.studies.circuits.trial import prepare_trial
from moescope.study.paired import beyond_sets, interval_over
from moescope.study.protocol import Context
from moescope.study.rows import Rows
from moescope.tasks import split_half, subset, surface_cues
from moescope.tasks.crossed import Crossed

CONTRAST = "contrast"
WORDS = "bag of words"


def strata_table(crossed: Crossed, here: Features, settings: CircuitSettings) -> pd.DataFrame:
    """The table ``crossed_strata``: of each property, what is right within strata of the other and from one to the other.

    Args:
        here: activations of the texts; its folds judge.
    """
    rows: list[dict[str, Any]] = []
    for i, task in enumerate(crossed.properties):
        y, other = crossed.labels[i], crossed.labels[1 - i]
        names = crossed.properties[1 - i].classes
        circuit, random, words = _strata(here, task, y, other, settings)
        head = {"property": task.name, "other": crossed.properties[1 - i].name}
        places = np.arange(len(y))
        for fitted, chosen in (("same", other), ("opposite", 1 - other)):  # the stratum fitted on, for each row
            hits, said, sets = circuit[chosen, places], words[chosen, places], random[chosen, :, places].T
            for stratum in (*range(2), None):
                of = np.ones(len(y), bool) if stratum is None else other == stratum
                own = Scorer(y[of], here.groups[of], here.seed)
                value = own.weighed(hits[of])
                low, high = interval_over(value, own.groups, here.seed)
                gap = own.gap(hits[of], sets[:, of].mean(0), spread=own.spread(sets[:, of]))
                lost = own.gap(hits[of], circuit[other, places][of])
                rows.append(
                    head
                    | {"tested_on": "both" if stratum is None else names[stratum], "fitted_on": fitted, "k": settings.k}
                    | {"value": float(value.mean()), "low": max(low, 0.0), "high": min(high, 1.0)}
                    | {"random": own.balanced(sets[:, of].mean(0)), "words": own.balanced(said[of])}
                    | {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high, "p": gap.p}
                    | {"beside_same": lost.value, "beside_same_low": lost.low, "beside_same_high": lost.high}
                    | {"n": int(of.sum()), "n_random": len(sets)}
                )
    return pd.DataFrame(rows)


def _strata(
    here: Features, task: Any, y: np.ndarray, other: np.ndarray, settings: CircuitSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Held-out hits, by the stratum that was fitted on: of the circuit (2, N), random sets (2, R, N) and words (2, N), bool."""
    n, k = len(y), settings.k
    circuit, words = np.zeros((2, 2, n), bool)
    random = np.zeros((2, settings.n_random, n), bool)
    predict = surface_cues(task)[WORDS]
    rng = np.random.default_rng([here.seed, 13])
    for fold in np.unique(here.folds):
        held = np.flatnonzero(here.folds == fold)
        for stratum in range(2):
            train = np.flatnonzero((here.folds != fold) & (other == stratum))
            chosen = rank_columns(here.x[train], y[train], settings.sigma)[:k]
            sets = layer_matched_sets(rng, chosen, here.columns.layer_of, k, settings.n_random)
            for at, columns in ((circuit[stratum], chosen), *zip(random[stratum], sets, strict=True)):
                fitted = fit_classifier(here.x[np.ix_(train, columns)], y[train], settings.classifier)
                at[held] = fitted.predict(here.x[np.ix_(held, columns)].astype(np.float64)) == y[held]
            words[stratum, held] = predict(train, held, y) == y[held]
    return circuit, random, words


def edit_table(
    model: LoadedModel, crossed: Crossed, here: Features, settings: CircuitSettings, context: Context
) -> pd.DataFrame:
    """The table ``crossed_edits``: what setting either circuit to its mean costs either probe, and the contrast.

    A cost is the share of a probe's log-odds of the right class (at the last layer, mean over texts) that is gone; 1 is all.
    """
    assert here.encoded is not None
    seed, name = context.run.seed, crossed.cells.name
    half = split_half(here.y, here.groups, seed)
    rows = context.rows(
        Rows(
            f"{name}: edits",
            here.groups,
            fit=np.flatnonzero(half),
            select=np.flatnonzero(half),
            judge=judges(half, here.groups, settings.ablate_rows, seed),
        )
    )
    used = np.concatenate([rows.fit, rows.judge])
    first = np.arange(len(used)) < len(rows.fit)
    final = {site: x[used] for site, x in here.final.items()}
    trials, edits = [], []
    for i, task in enumerate(crossed.properties):
        trial = prepare_trial(model, replace(subset(task, used), answers=()), rows_of(here.encoded, used), final, first)
        ranking = rank_columns(here.x[rows.select], crossed.labels[i][rows.select], settings.sigma)
        circuit = [here.columns.neuron(int(c)) for c in ranking[: settings.k]]
        edit = NeuronAblation(model, trial, circuit, k=settings.k, mode="mean", n_random=settings.crossed_random, seed=seed + i)
        context.control(f"{task.name}: matched random neurons", **edit.proof())
        trials.append(trial)
        edits.append(edit)
    truth = [torch.from_numpy(trial.split.labels) for trial in trials]

    def read(reading: Reading) -> dict[str, torch.Tensor]:
        return {
            trial.task.name: true_odds(
                trial.probe.scores(reading.hidden), true[reading.examples].to(reading.hidden.device)[:, None]
            )
            for trial, true in zip(trials, truth, strict=True)
        }

    stage = f"{name}: editing one and reading both"

    def scores() -> list[dict[str, np.ndarray]]:
        with context.tokens.of(model, "crossed edits"):
            replicas = trials[0].replicas(batch_tokens=context.run.batch_tokens)
            return run_together(replicas, [edit.sets for edit in edits], read, context.counter(stage))

    return contrast_table(context.stage(stage, scores), trials[0].groups, seed=seed)


def contrast_table(scores: list[dict[str, np.ndarray]], groups: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """Rows of ``crossed_edits`` from log-odds (2 + R, N) by probe, of either edit: none, the circuit, R random sets."""
    names = list(scores[0])
    costs = {}
    rows = []
    for edited, found in zip(names, scores, strict=True):
        for read in names:
            odds = found[read].astype(np.float64)
            costs[edited, read] = cost = (odds[0] - odds[1:]) / abs(odds[0].mean())  # (1 + R, N)
            low, high = interval_over(odds[0], groups, seed)
            clean = {"clean": float(odds[0].mean()), "clean_low": low, "clean_high": high}
            rows.append({"edited": edited, "read": read, **_beyond(cost, groups, seed), **clean})
    a, b = names
    contrast = (costs[a, a] - costs[a, b] + costs[b, b] - costs[b, a]) / 2
    nothing = dict.fromkeys(("clean", "clean_low", "clean_high"), float("nan"))
    return pd.DataFrame([*rows, {"edited": CONTRAST, "read": CONTRAST, **_beyond(contrast, groups, seed), **nothing}])


def _beyond(cost: np.ndarray, groups: np.ndarray, seed: int) -> Mapping[str, float]:
    """The circuit's cost (the first row) beside that of random sets (the others)."""
    own, random = cost[0], cost[1:]
    low, high = interval_over(own, groups, seed)
    gap = beyond_sets(own, random, groups, "", 0.0, seed)
    of_sets = np.quantile(random.mean(1), [0.025, 0.975])
    return {
        "cost": float(own.mean()),
        "low": low,
        "high": high,
        "random": float(random.mean()),
        "random_low": float(of_sets[0]),
        "random_high": float(of_sets[1]),
        "gap": gap.value,
        "gap_low": gap.low,
        "gap_high": gap.high,
        "p": float("nan") if gap.p is None else gap.p,
        "n_random": len(random),
        "n": len(own),
    }
