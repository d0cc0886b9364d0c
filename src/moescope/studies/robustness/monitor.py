"""A monitor: it names a running prompt's category from the experts that the prompt is sent to, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from moescope.capture.encode import Encoded
from moescope.routing.signatures import normalise
from moescope.study.rows import FoldRows

Counter = Callable[[Encoded], np.ndarray]
"""``counter(encoded)`` -> (N, L, E): tokens of each text that each expert received. It is
:func:`moescope.routing.counts.routing_counts` with its model, or what :mod:`moescope.routing.dense` makes of a dense one."""


def flat_signatures(counts: np.ndarray) -> np.ndarray:
    """Counts (N, L, E) as signatures (N, L * E)."""
    return normalise(counts).reshape(len(counts), -1)


@dataclass(frozen=True, eq=False)
class Monitors:
    """One logistic regression per fold, each fitted without the prompts that it judges, as a monitor meets new prompts."""

    rows: FoldRows
    models: tuple[Pipeline, ...]

    @classmethod
    def fit(cls, signatures: np.ndarray, y: np.ndarray, rows: FoldRows) -> Monitors:
        """From signatures (N, D) and category codes 0..C-1 (N,); the rows that fit have every category."""
        return cls(
            rows,
            tuple(
                make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, tol=1e-3)).fit(signatures[r.fit], y[r.fit])
                for r in rows
            ),
        )

    def log_odds(self, signatures: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float64 (n, C): log probability of every category for signatures (n, D) of versions of the prompts ``rows`` (n,),
        each by the monitor that has not seen its prompt."""
        out = np.empty((len(rows), len(self.models[0].classes_)))
        for fold, model in zip(np.unique(self.rows.folds), self.models, strict=True):
            at = self.rows.folds[rows] == fold
            if at.any():
                out[at] = model.predict_log_proba(signatures[at])
        return out

    def predict(self, signatures: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """int64 (n,) categories, as :meth:`log_odds`."""
        return np.asarray(self.log_odds(signatures, rows).argmax(1))
