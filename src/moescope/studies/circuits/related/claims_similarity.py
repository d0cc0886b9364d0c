"""Claims about many tasks at once: do like texts have like circuits, and do like circuits carry over."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from moescope.stats.matrices import members_needed
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

MARGIN = 0.3
"""Partial correlation that counts: a tenth of what the other terms leave."""
FAMILY = "likeness of tasks"
_TEXTS = "how classes differ in words, length and endings"
_ASKED = (
    ("circuit", "vocabulary", "tasks with like vocabulary have like circuits", _TEXTS),
    ("transfer", "vocabulary", "classifiers carry over between tasks with like vocabulary", _TEXTS),
    ("transfer", "circuit", "classifiers carry over between tasks with like circuits", "likeness of their texts"),
)


def similarity_claims(pairs: pd.DataFrame, regression: pd.DataFrame, settings: CircuitSettings) -> list[Claim | Case]:
    """Three claims that are judged together, by partial correlations over all pairs of tasks."""
    least = members_needed(math.ceil(2 * len(_ASKED) / settings.alpha - 1 - 1e-9))
    rows = regression.set_index(["response", "term"])
    return [_claim(rows.loc[(r, t)], pairs, r, t, said, given, least, settings) for r, t, said, given in _ASKED]


def _claim(
    row: Any, pairs: pd.DataFrame, response: str, term: str, said: str, given: str, least: int, settings: CircuitSettings
) -> Claim | Case:
    tasks, value, chance = int(row["tasks"]), float(row["partial"]), float(row["chance"])
    out = f"; {int(row['left_out'])} left out (does not repeat itself, has another's texts, or over two classes)"
    counted = f"{tasks} tasks, {int(row['pairs'])} pairs{out if row['left_out'] else ''}"
    statement = f"{said}, beyond {given}"
    if tasks < least or math.isnan(value):
        why = (
            f"of {counted}: too few for any p to fall to {settings.alpha:g}; at least {least} tasks are needed"
            if tasks < least
            else f"of {counted}: nothing varies beyond the other terms"
        )
        shown = value if math.isfinite(value) else "too few tasks"
        return Claim(statement, shown, id="H22", outcome="inconclusive", words=why)
    low, high = float(row["low"]), float(row["high"])
    effect = Effect(
        value - chance, low - chance, high - chance, "orders of the tasks at random", MARGIN, float(row["p"]), share=False
    )
    enough = (effect.could_have_shown(settings.alpha) / MARGIN) ** 2 * int(row["pairs"])
    many = math.ceil((1 + math.sqrt(1 + 8 * enough)) / 2)
    both = pairs[[response, term]].dropna()
    plain = float(np.corrcoef(both[response], both[term])[0, 1])
    return Case(
        statement,
        value,
        effect,
        id="H22",
        interval=(low, high),
        control=Control("orders of the tasks at random", chance),
        family=FAMILY,
        words=f"partial correlation over {counted}, the other terms given (double semi-partialling, "
        f"{int(row['n_permutations'])} orders; the interval is what these spread); without them {plain:.2f}; "
        f"{_most(pairs, response)}; about {many} tasks could show {MARGIN:g}",
    )


def _most(pairs: pd.DataFrame, measure: str) -> str:
    best = pairs.loc[pairs[measure].idxmax()]
    return f"the most alike by {measure} are {best['task_a']} and {best['task_b']} ({float(best[measure]):.2f})"
