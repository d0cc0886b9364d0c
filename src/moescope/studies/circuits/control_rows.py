"""What every control of one task shares: rows of the table, the effects that claims rest on, and the study's own protocol."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

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
from moescope.tasks import Regrouped, dealt_folds


@dataclass
class Evidence:
    """What the controls of one task gave, whatever its labels: rows for a table, and the differences that claims rest on."""

    found: Any
    """has ``features``"""
    settings: CircuitSettings
    context: Context
    rows: list[dict[str, Any]] = field(default_factory=list)
    effects: list[dict[str, Any]] = field(default_factory=list)
    measure: ClassVar[str]
    """the column of a row's figure"""
    columns: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str:
        return str(self.found.features.task.name)

    def draws(self, control: str, values: np.ndarray, note: str, **more: Any) -> None:
        """A control that is a set of draws, each with its figure."""
        low, high = np.quantile(values, [0.025, 0.975])
        row = {"control": control, self.measure: float(values.mean()), "low": float(low), "high": float(high), "note": note}
        self.rows.append(row | more)

    def effect(self, name: str, found: Difference, **more: Any) -> None:
        self.effects.append({"task": self.name, "effect": name, **found._asdict(), **more})

    def leak(self) -> Regrouped | None:
        """The task as it was given, where near-duplicates stood on both sides of splits; where they could not be put together,
        that is an effect without a figure."""
        leak = self.context.leaks.get(self.name)
        if leak is not None and leak.refused:
            self.effect("apart", Difference(*[float("nan")] * 4))
            return None
        return leak

    def table(self) -> pd.DataFrame:
        table = pd.DataFrame(self.rows, columns=list(self.columns))
        table.insert(0, "task", self.name)
        return table


@dataclass
class Controls(Evidence):
    """Of a task of classes: rows of the table ``controls``.

    Of a row: control, accuracy, balanced (mean over classes), low, high (of the accuracy); ``gap``, ``gap_low``,
    ``gap_high``, ``p``: the circuit's balanced accuracy minus the control's on the same rows, NaN where the control has other
    rows.
    """

    found: TaskFindings
    measure = "accuracy"
    columns = ("control", "accuracy", "balanced", "low", "high", "gap", "gap_low", "gap_high", "p", "note")

    @property
    def circuit(self) -> np.ndarray:
        """(N,) bool: held-out hits of the circuit, classes counted alike."""
        return np.asarray(self.found.cv.even[self.found.cv.ks.index(self.settings.k)])

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
