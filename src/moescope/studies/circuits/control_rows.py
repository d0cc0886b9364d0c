"""What every control of one task shares: rows of the table, the effects that claims rest on, and the study's own protocol."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from moescope.select.nested import CVResult
from moescope.stats import Difference
from moescope.studies.circuits.depth import EVEN, RAW
from moescope.studies.circuits.features import Features, own_cv
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.study.protocol import Context
from moescope.tasks import dealt_folds


@dataclass
class Controls:
    """What the controls of one task gave: rows for the table ``controls``, and the differences that claims rest on.

    Of a row: control, accuracy, balanced (mean over classes), low, high (of the accuracy); ``gap``, ``gap_low``,
    ``gap_high``, ``p``: the circuit's balanced accuracy minus the control's on the same rows, NaN where the control has other
    rows.
    """

    found: TaskFindings
    settings: CircuitSettings
    context: Context
    rows: list[dict[str, Any]] = field(default_factory=list)
    effects: list[dict[str, Any]] = field(default_factory=list)

    @property
    def circuit(self) -> np.ndarray:
        """(N,) bool: held-out hits of the circuit, classes counted alike."""
        return np.asarray(self.found.cv.even[self.found.cv.ks.index(self.settings.k)])

    @property
    def name(self) -> str:
        return self.found.features.task.name

    def row(self, control: str, raw: np.ndarray, even: np.ndarray, scorer: Scorer, note: str = "") -> dict[str, Any]:
        """A row of hits (N,), appended and returned."""
        low, high = scorer.interval(raw)
        accuracy, balanced = float(raw.mean()), scorer.balanced(even)
        self.rows.append(
            {"control": control, "accuracy": accuracy, "balanced": balanced, "low": low, "high": high, "note": note}
        )
        return self.rows[-1]

    def beside(self, control: str, hits: np.ndarray, note: str, effect: str = "") -> None:
        """A control of hits (2, N) on the circuit's own rows, whose gap is an effect where that is named."""
        gap = self.found.scorer.gap(self.circuit, hits[EVEN])
        self.row(control, hits[RAW], hits[EVEN], self.found.scorer, note).update(gap_columns(gap))
        if effect:
            self.effect(effect, gap)

    def draws(self, control: str, values: np.ndarray, note: str, **more: Any) -> None:
        """A control that is a set of draws, each with its accuracy."""
        low, high = np.quantile(values, [0.025, 0.975])
        row = {"control": control, "accuracy": float(values.mean()), "low": float(low), "high": float(high), "note": note}
        self.rows.append(row | more)

    def effect(self, name: str, found: Difference, **more: Any) -> None:
        self.effects.append({"task": self.name, "effect": name, **found._asdict(), **more})

    def table(self) -> pd.DataFrame:
        columns = ["control", "accuracy", "balanced", "low", "high", "gap", "gap_low", "gap_high", "p", "note"]
        table = pd.DataFrame(self.rows, columns=columns)
        table.insert(0, "task", self.name)
        return table


def both_hits(result: CVResult, at: int = 0) -> np.ndarray:
    """(2, N) bool."""
    return np.stack([result.correct[at], result.even[at]])


def gap_columns(found: Difference) -> dict[str, float]:
    return {"gap": found.value, "gap_low": found.low, "gap_high": found.high, "p": found.p}


def own_protocol(
    features: Features, x: np.ndarray, settings: CircuitSettings, y: np.ndarray | None = None, **options: Any
) -> CVResult:
    """The study's own protocol at K on other activations or other labels, for which folds are stratified anew."""
    folds = features.folds
    if y is None:
        y = features.y
    elif (_by_fold(y, features) != _by_fold(features.y, features)).any():
        folds = dealt_folds(y, features.groups, settings.n_folds, np.random.default_rng(features.seed))
    return own_cv(replace(features, folds=folds), settings, X=x, y=y, **options)


def _by_fold(y: np.ndarray, features: Features) -> np.ndarray:
    """Rows of each class in each of the study's folds."""
    return np.bincount(features.folds * features.n_classes + y, minlength=(int(features.folds.max()) + 1) * features.n_classes)
