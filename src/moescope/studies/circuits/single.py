"""Everything that is measured on one task: ranking, sufficiency, neurons, projection, depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moescope.errors import InputError
from moescope.select.nested import CVResult
from moescope.select.ranking import (
    SIGMAS,
    FoldSums,
    MaxNull,
    Sigma,
    divergence,
    fold_class_sums,
    massive_dimensions,
    permutation_max,
    rank,
)
from moescope.select.widening import interval_widening
from moescope.studies.circuits.cues import Cues
from moescope.studies.circuits.depth import depth_rows, layer_probes, reselected
from moescope.studies.circuits.features import Features, own_cv
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import CircuitSettings, SearchSettings
from moescope.studies.circuits.tables import (
    class_tables,
    column_table,
    layer_table,
    neuron_table,
    projection_tables,
    range_table,
    sigma_table,
    stability_table,
    sufficiency_rows,
)
from moescope.tasks import dealt_folds, split_half
from moescope.types import Circuit

N_HALVINGS = 5
N_DIVISIONS = 10
"""Into folds, from which it is measured how wide the intervals must be."""
_CURVE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class TaskFindings:
    """What one task gave: intermediate arrays that other parts need, and finished tables.

    Attributes:
        sums: over all rows, by fold and class.
        ranking: (D,) columns, best first, by divergence on all rows: for description, never for accuracy.
        halves: pairs of such rankings from disjoint halves of the groups.
        null: family-wise permutation null of the ranking.
        cv: cross-validation with the chosen selection over all ks; cv_other: the same by the other protocol.
        massive: (D,) bool, massive activations.
        hits: (2, S, N) bool, full-probe hits per site.
        early: by layer, the circuit chosen anew within the layers up to it.
        scorer: of this task's rows.
    """

    features: Features
    sums: FoldSums
    ranking: np.ndarray
    halves: tuple[tuple[np.ndarray, np.ndarray], ...]
    null: MaxNull
    cv: CVResult
    cv_other: CVResult
    massive: np.ndarray
    hits: np.ndarray
    early: dict[int, CVResult]
    cues: Cues
    scorer: Scorer
    circuit: Circuit
    tables: dict[str, pd.DataFrame]

    def circuit_hits(self, k: int) -> np.ndarray:
        """(N,) bool: held-out hits of the circuit of k neurons."""
        return np.asarray(self.cv.correct[self.cv.ks.index(k)])


def overlap_ks(settings: CircuitSettings, n: int) -> tuple[int, ...]:
    """The Ks of the overlap curve: up to half of the n neurons, and the headline K."""
    curve = {k for k in (*_CURVE, *settings.all_ks()) if k <= n // 2} | {settings.k}
    return tuple(sorted(k for k in curve if k < n))  # with all n neurons every set is the same


def scorer_of(features: Features, settings: SearchSettings) -> Scorer:
    """Who judges the hits of a task, with intervals as wide as :func:`interval_widening` asks for at K."""
    y, groups = features.y, features.groups
    rng = np.random.default_rng(features.seed)
    divisions = [dealt_folds(y, groups, settings.n_folds, rng) for _ in range(N_DIVISIONS)]
    try:
        (widening,) = interval_widening(
            features.x,
            y,
            groups,
            divisions,
            (settings.k,),
            sigma=settings.sigma,
            classifier=settings.classifier,
            selection=settings.selection,
        )
    except InputError:  # without two folds a class is missing: so few rows that only the widest interval is safe
        widening = np.sqrt(settings.n_folds)
    return Scorer(y, groups, features.seed, float(widening))


def analyse(features: Features, settings: CircuitSettings, *, cues: Cues, n_layers: int) -> TaskFindings:
    """Study one task on its captured features.

    Raises:
        InputError: when a circuit size exceeds the number of neurons.
    """
    columns, name = features.columns, features.task.name
    ks = settings.all_ks()
    if max(ks) > columns.n:
        raise InputError(
            f"K = {max(ks)} is larger than the {columns.n} neurons of site {settings.site!r}; choose a smaller K", "ks"
        )
    x, y, folds = features.x, features.y, features.folds
    sums = fold_class_sums(x, y, folds)
    total = sums.total()
    scores = {sigma: divergence(*total, sigma=sigma) for sigma in SIGMAS}
    divergences = scores[settings.sigma]
    ranking = rank(divergences)
    halves = _split_half_rankings(features, settings)
    null = permutation_max(
        x, y, features.groups, n_permutations=settings.n_permutations, sigma=settings.sigma, seed=features.seed
    )
    # Beside the chosen protocol the other one (how far selection on all rows flatters) and the other classifier.
    other_protocol: Any = "global" if settings.selection == "nested" else "nested"
    other_classifier: Any = "logistic" if settings.classifier == "lda" else "lda"
    cv = own_cv(features, settings, ks=ks, sums=sums)
    cv_other = own_cv(features, settings, ks=ks, sums=sums, selection=other_protocol)
    cv_classifier = own_cv(features, settings, ks=ks, sums=sums, classifier=other_classifier)
    massive = massive_dimensions(total, layer_of=columns.site_of)
    hits = layer_probes(features)
    scorer = scorer_of(features, settings)
    accuracy = [
        *sufficiency_rows(features, cv, settings.classifier, settings.selection, scorer),
        *sufficiency_rows(features, cv_classifier, other_classifier, settings.selection, scorer),
        *sufficiency_rows(features, cv_other, settings.classifier, other_protocol, scorer),
    ]
    circuit = Circuit(
        name,
        tuple(columns.neuron(int(c)) for c in ranking[: settings.k]),
        tuple(float(divergences[c]) for c in ranking[: settings.k]),
        settings.sigma,
    )
    early = {layer: reselected(features, sums, settings, layer) for layer in columns.layers}
    depth = depth_rows(features, early, cv, hits, cues.chosen_hits(), scorer, settings, n_layers=n_layers)
    nested = cv if settings.selection == "nested" else cv_other
    tables = {
        "accuracy": pd.DataFrame(accuracy),
        "neurons": neuron_table(features, ranking, scores, null, massive, nested, settings),
        **class_tables(features, ranking, features.seed),
        "layers": layer_table(features, ranking, divergences, massive),
        "depth_range": range_table(features, ranking, settings),
        "depth": pd.DataFrame(depth),
        "columns": column_table(features, ranking),
        "sigma_compare": sigma_table(features, sums, scores, settings),
        "stability": stability_table(features, nested, halves, overlap_ks(settings, columns.n)),
        **projection_tables(features, settings),
    }
    return TaskFindings(
        features, sums, ranking, halves, null, cv, cv_other, massive, hits, early, cues, scorer, circuit, tables
    )


def rank_columns(x: np.ndarray, y: np.ndarray, sigma: Sigma) -> np.ndarray:
    """(D,) columns by divergence on all rows of x (N, D), best first."""
    return rank(divergence(*fold_class_sums(x, y, np.zeros(len(y), dtype=np.int64)).total(), sigma=sigma))


def _split_half_rankings(features: Features, settings: CircuitSettings) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    pairs = []
    for i in range(N_HALVINGS):
        half = split_half(features.y, features.groups, features.seed + i).astype(np.int64)
        sums = fold_class_sums(features.x, features.y, half)
        first, second = (rank(divergence(*sums.fold(part), sigma=settings.sigma)) for part in (0, 1))
        pairs.append((first, second))
    return tuple(pairs)
