"""A task cut in two for interventions: on one half of its groups the circuit is ranked, the other judges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from moescope.studies.circuits.features import Columns, Features, rows_of
from moescope.studies.circuits.images import edited_places
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import rank_columns
from moescope.studies.circuits.trial import Trial, prepare_trial
from moescope.study.protocol import Context
from moescope.study.rows import Rows
from moescope.tasks import split_half, subset

if TYPE_CHECKING:
    from moescope.models import LoadedModel


@dataclass(frozen=True)
class Halved:
    """One task, ready for interventions."""

    trial: Trial
    columns: Columns
    ranking: np.ndarray = field(repr=False)
    """(D,) columns, best first, by divergence on the rows that select"""
    variance: np.ndarray = field(repr=False)
    """(D,) of the columns on those rows, whatever their labels"""

    @property
    def name(self) -> str:
        return self.trial.task.name


def halved(model: LoadedModel, here: Features, settings: CircuitSettings, context: Context) -> Halved:
    """The rows are put on record: those that fit and select, and at most ``ablate_rows`` that judge."""
    assert here.encoded is not None
    name, seed = here.task.name, context.run.seed
    half = split_half(here.y, here.groups, seed)
    first = np.flatnonzero(half)
    judge = judges(half, here.groups, settings.ablate_rows, seed)
    rows = context.rows(Rows(f"{name}: interventions", here.groups, fit=first, select=first, judge=judge))
    x = here.x[rows.select]
    ranking = rank_columns(x, here.y[rows.select], settings.sigma)
    used = np.concatenate([rows.fit, rows.judge])
    trial = prepare_trial(
        model,
        subset(here.task, used),
        rows_of(here.encoded, used),
        {site: x[used] for site, x in here.final.items()},
        np.arange(len(used)) < len(rows.fit),
        edited_places(model, settings),
    )
    return Halved(trial, here.columns, ranking, x.var(0, dtype=np.float64))


def judges(half: np.ndarray, groups: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Rows outside ``half`` (N,) bool: all, or whole groups drawn at random up to ``limit`` rows."""
    rows = np.flatnonzero(~half)
    if len(rows) <= limit:
        return rows
    rng = np.random.default_rng(seed)
    names, counts = np.unique(groups[rows], return_counts=True)
    order = rng.permutation(len(names))
    chosen = names[order[np.cumsum(counts[order]) <= limit]]
    return rows[np.isin(groups[rows], chosen)]
