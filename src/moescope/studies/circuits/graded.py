"""A task with a graded label: the neurons that follow it, what K of them explain, and the tables that say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from moescope.errors import InputError
from moescope.select.graded import (
    GradedCV,
    GradedSums,
    correlation_max,
    fit_ridge,
    fixed_graded_cv,
    graded_cv,
    graded_sums,
    graded_widening,
    training_means,
)
from moescope.select.null import MaxNull
from moescope.select.ranking import rank
from moescope.stats import Difference, bootstrap_sums, expanded_percentiles, group_bootstrap
from moescope.studies.circuits.cues import EMBEDDING
from moescope.studies.circuits.features import Features
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.tables import SHOWN_NEURONS
from moescope.study.paired import interval_p
from moescope.tasks.folds import graded_folds
from moescope.tasks.surface_graded import graded_cues
from moescope.types import Circuit

N_DIVISIONS = 5
"""Into folds, from which it is measured how wide the intervals must be."""
_DRAWS = 500  # of a rank correlation's interval


@dataclass(frozen=True)
class GradedScorer:
    """Judges what is said of a graded label on the rows of one task.

    ``mean`` (N,): what is said without any knowledge, the mean of a row's training rows; R² is the share of its squared error
    that is taken away, so that 0 is chance and a bad reading lies below. ``widening`` of intervals, by
    :func:`moescope.select.graded.graded_widening`.
    """

    y: np.ndarray
    groups: np.ndarray
    mean: np.ndarray
    seed: int = 0
    widening: float = 1.0

    def r2(self, said: np.ndarray) -> float:
        return float(1 - np.square(self.y - said).sum() / np.square(self.y - self.mean).sum())

    def gap(self, said: np.ndarray, other: np.ndarray | None = None) -> Difference:
        """By how much the R² of ``said`` (N,) exceeds that of ``other`` (N,), or (S, N), the mean over S draws; None: chance.

        Whole groups are resampled, in both sums of the ratio; the p-value is two-sided and follows from the interval.
        """
        others = np.square(self.y - (self.mean if other is None else other))
        gained = (others if others.ndim == 1 else others.mean(axis=0)) - np.square(self.y - said)
        sums = np.stack([gained, np.square(self.y - self.mean)], axis=1)
        names, code = np.unique(self.groups, return_inverse=True)
        by_group = np.zeros((len(names), 2))
        np.add.at(by_group, code, sums)
        drawn = bootstrap_sums(by_group, seed=self.seed)
        value = float(sums[:, 0].sum() / sums[:, 1].sum())
        low, high = expanded_percentiles(drawn[:, 0] / np.maximum(drawn[:, 1], 1e-300), len(names))
        low, high = (value + self.widening * (end - value) for end in (low, high))
        return Difference(value, low, high, interval_p(value, low, high))

    def rank_correlation(self, said: np.ndarray) -> tuple[float, float, float]:
        """Spearman's, with its 95 % interval over groups."""
        value, both = spearman(self.y, said), np.stack([self.y, said], axis=1)
        low, high = group_bootstrap(both, self.groups, stat=lambda rows: spearman(*rows.T), n_boot=_DRAWS, seed=self.seed)
        low, high = (value + self.widening * (end - value) for end in (low, high))
        return value, max(-1.0, low), min(1.0, high)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two arrays (N,); 0 where one is constant."""
    return float(spearmanr(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


@dataclass(frozen=True)
class GradedCues:
    """What each trivial cue says of each row: as :class:`~moescope.studies.circuits.cues.Cues`, of values.

    ``said[cue][f, n]``: learnt without fold ``f`` and without the row's own fold; for a row of fold ``f`` it is held out.
    """

    said: Mapping[str, np.ndarray]
    y: np.ndarray
    folds: np.ndarray

    def held_out(self, cue: str) -> np.ndarray:
        """(N,) float."""
        return np.asarray(self.said[cue][self.folds, np.arange(len(self.y))])

    def chosen(self) -> list[str]:
        """For each fold the cue of the least squared error inside the other folds."""
        parts = [self.folds != f for f in range(int(self.folds.max()) + 1)]
        return [
            min(self.said, key=lambda cue: float(np.square(self.y[train] - self.said[cue][f, train]).sum()))
            for f, train in enumerate(parts)
        ]

    def chosen_said(self) -> np.ndarray:
        """(N,) float: held out, by each fold's chosen cue."""
        said = np.stack([self.held_out(cue) for cue in self.chosen()])
        return np.asarray(said[self.folds, np.arange(len(self.y))])

    def with_circuit(self, x: np.ndarray, selected: np.ndarray) -> np.ndarray:
        """(N,) float: the chosen cue and the circuit (F, K) of each fold, read together."""
        said = np.empty(len(self.y))
        for f, cue in enumerate(self.chosen()):
            held = self.folds == f
            # training rows hold what a cue said that had not learnt them, else the cue would be trusted too much
            both = np.column_stack([x[:, selected[f]].astype(np.float64), self.said[cue][f]])
            said[held] = fit_ridge(both[~held], self.y[~held]).predict(both[held])
        return said


def read_graded_cues(features: Features, tokenizer: Any) -> GradedCues:
    """Learn every cue, and a ridge on the embedding layer, without each fold and without each two folds."""
    y, folds = features.y, features.folds
    cues, n_folds = graded_cues(features.task, tokenizer), int(folds.max()) + 1
    said = {name: np.empty((n_folds, len(y))) for name in [*cues, EMBEDDING]}
    for f, g in combinations_with_replacement(range(n_folds), 2):
        train, held = np.flatnonzero((folds != f) & (folds != g)), np.flatnonzero((folds == f) | (folds == g))
        found = {name: cue(train, held, y) for name, cue in cues.items()}
        assert features.embed is not None
        found[EMBEDDING] = fit_ridge(features.embed[train], y[train]).predict(features.embed[held])
        for name, values in found.items():
            said[name][f, held[folds[held] == g]] = values[folds[held] == g]
            said[name][g, held[folds[held] == f]] = values[folds[held] == f]
    return GradedCues(said, y, folds)


@dataclass(frozen=True)
class GradedFindings:
    """What a task with a graded label gave.

    ``probes`` (S, N): what a ridge on each whole site says, held out. ``other``: by the other protocol of selection.
    """

    features: Features
    sums: GradedSums
    ranking: np.ndarray
    null: MaxNull
    cv: GradedCV
    other: GradedCV
    probes: np.ndarray
    cues: GradedCues
    scorer: GradedScorer
    circuit: Circuit
    tables: dict[str, pd.DataFrame]


def scorer_on(features: Features, widening: float = 1.0) -> GradedScorer:
    """The scorer of these rows and folds."""
    y, folds = features.y, features.folds
    return GradedScorer(y, features.groups, training_means(y, folds), features.seed, widening)


def graded_own(features: Features, settings: CircuitSettings, **changed: Any) -> GradedCV:
    """The study's own protocol at K; ``changed``: other arguments of :func:`graded_cv`."""
    own: dict[str, Any] = {"X": features.x, "values": features.y, "folds": features.folds, "ks": (settings.k,)}
    return graded_cv(**{**own, "selection": settings.selection, **changed})


def site_probes(features: Features) -> np.ndarray:
    """(S, N): what a ridge on each whole site says of held-out rows."""
    parts = [features.columns.slice_of(i) for i in range(len(features.columns.sites))]
    return np.stack([fixed_graded_cv(features.x[:, part], features.y, features.folds) for part in parts])


def best_site(probes: np.ndarray, y: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """What the site says (N,) that is chosen, for each fold, by its error on the other folds; and the chosen sites."""
    said, chosen = np.empty(len(y)), []
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        chosen.append(int(np.square(y - probes)[:, ~held].sum(axis=1).argmin()))
        said[held] = probes[chosen[-1], held]
    return said, chosen


def analyse_graded(features: Features, settings: CircuitSettings, tokenizer: Any) -> GradedFindings:
    """Study one task with a graded label on its captured features.

    Raises:
        InputError: when a circuit size exceeds the number of neurons.
    """
    columns, ks = features.columns, settings.all_ks()
    if max(ks) > columns.n:
        raise InputError(f"K = {max(ks)} is larger than the {columns.n} neurons of site {settings.site!r}", "ks")
    x, y, folds = features.x, features.y, features.folds
    sums = graded_sums(x, y, folds)
    r = sums.correlation()
    ranking = rank(np.abs(r))
    null = correlation_max(x, y, features.groups, n_permutations=settings.n_permutations, seed=features.seed)
    cv = graded_own(features, settings, ks=ks, sums=sums)
    opposite: Any = "global" if settings.selection == "nested" else "nested"
    other = graded_own(features, settings, ks=ks, sums=sums, selection=opposite)
    rng = np.random.default_rng(features.seed)
    divisions = [graded_folds(y, features.groups, settings.n_folds, rng) for _ in range(N_DIVISIONS)]
    widening = graded_widening(x, y, features.groups, divisions, settings.k, selection=settings.selection)
    scorer = scorer_on(features, widening)
    probes = site_probes(features)
    top = ranking[: settings.k]
    circuit = Circuit(
        features.task.name,
        tuple(columns.neuron(int(c)) for c in top),
        tuple(float(abs(r[c])) for c in top),
        "correlation",
    )
    nested = cv if settings.selection == "nested" else other
    tables = {
        "graded": pd.DataFrame([*_sizes(features, cv, settings.selection, scorer), *_sizes(features, other, opposite, scorer)]),
        "graded_neurons": _neurons(features, ranking, r, null, nested, settings),
        "graded_layers": _layers(features, ranking, r, probes, scorer),
    }
    cues = read_graded_cues(features, tokenizer)
    return GradedFindings(features, sums, ranking, null, cv, other, probes, cues, scorer, circuit, tables)


def _sizes(features: Features, cv: GradedCV, selection: str, scorer: GradedScorer) -> list[dict[str, Any]]:
    rows = []
    for k, said in zip(cv.ks, cv.said, strict=True):
        found = scorer.gap(said)
        value, low, high = scorer.rank_correlation(said)
        rows.append(
            {
                "task": features.task.name, "k": int(k), "selection": selection, "r2": found.value, "low": found.low,
                "high": found.high, "spearman": value, "spearman_low": low, "spearman_high": high,
                "error": float(np.sqrt(np.square(features.y - said).mean())), "n": len(said),
            }
        )  # fmt: skip
    return rows


def _neurons(
    features: Features, ranking: np.ndarray, r: np.ndarray, null: MaxNull, cv: GradedCV, settings: CircuitSettings
) -> pd.DataFrame:
    rows = []
    for place, column in enumerate(ranking[:SHOWN_NEURONS], start=1):
        neuron = features.columns.neuron(int(column))
        values = features.x[:, column].astype(np.float64)
        rows.append(
            {
                "task": features.task.name,
                "rank": place,
                "site": str(neuron.site),
                "layer": neuron.site.layer,
                "neuron": neuron.index,
                "correlation": float(r[column]),
                "spearman": spearman(values, features.y),
                "p_family": float(null.p[column]),
                "threshold_5pct": null.threshold(),
                "fold_frequency": float((cv.selected[:, : settings.k] == column).any(1).mean()),
            }
        )
    return pd.DataFrame(rows)


def _layers(features: Features, ranking: np.ndarray, r: np.ndarray, probes: np.ndarray, scorer: GradedScorer) -> pd.DataFrame:
    rows = []
    for position, site in enumerate(features.columns.sites):
        part = features.columns.slice_of(position)
        found = scorer.gap(probes[position])
        rows.append(
            {
                "task": features.task.name,
                "site": str(site),
                "layer": site.layer,
                "count_top10": int(((ranking[:10] >= part.start) & (ranking[:10] < part.stop)).sum()),
                "max_correlation": float(np.abs(r[part]).max()),
                "probe_r2": found.value,
                "probe_low": found.low,
                "probe_high": found.high,
            }
        )
    return pd.DataFrame(rows)
