"""What models of several sizes say of a circuit."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from moescope.studies.circuits.settings import BY_SIZE, ScalingSettings
from moescope.studies.circuits.trends import least_models
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

_SMALLER = "models of a tenth of the size"
_SAID = {
    "accuracy": ("the larger the model, the more its circuit tells", 1, "balanced accuracy for a tenfold of parameters"),
    "depth": (
        "the larger the model, the earlier in its depth it decides",
        -1,
        "share of the depth that is left after the decision, for a tenfold of parameters",
    ),
    "self_overlap": (
        "the larger the model, the more its circuit is the same on other texts",
        1,
        "share of the circuit found again, beyond chance, for a tenfold of parameters",
    ),
}


def scaling_claims(table: pd.DataFrame, trends: pd.DataFrame, settings: ScalingSettings) -> list[Claim | Case]:
    """Each quantity of each task: judged where orders of so many models can decide, else described.

    Args:
        table, trends: the tables ``scaling`` and ``scaling_trends``.
    """
    least = least_models(len(BY_SIZE), settings.alpha)
    claims: list[Claim | Case] = []
    for task in dict.fromkeys(table["task"]):
        own = trends[trends["task"] == task].set_index("quantity").to_dict("index")
        rows = table[table["task"] == task]
        claims += [_claim(task, quantity, own, rows, least, settings) for quantity in BY_SIZE]
    return claims


def _claim(
    task: str, quantity: str, own: dict[Any, dict[str, Any]], rows: pd.DataFrame, least: int, settings: ScalingSettings
) -> Claim | Case:
    statement, sign, unit = _SAID[quantity]
    statement = f"{task}: {statement}"
    if quantity not in own:
        why = "what is not known is not decided, and of the models that tell the classes none is twice as large as another"
        return Claim(statement, math.nan, id="H14", outcome="not tested", words=why)
    row = own[quantity]
    named = "balanced" if quantity == "accuracy" else quantity
    each = ", ".join(
        f"{r['model']} ({r['parameters'] / 1e6:,.1f} M) {r[named]:.1%}" for r in rows.to_dict("records") if r[named] == r[named]
    )
    slope, low, high = (sign * row[end] for end in (("slope", "low", "high") if sign > 0 else ("slope", "high", "low")))
    words = f"{unit}; {each}"
    twins = own.get("beyond_twin") if quantity == "accuracy" else None
    control = None
    if twins is not None:
        control = Control("untrained twins", row["slope"] - twins["slope"])
    if row["models"] < least:
        text = sorted((sign * row["text_low"], sign * row["text_high"]))
        count = {2: "two", 3: "three", 4: "four"}[row["models"]] if row["models"] < 5 else str(row["models"])
        said = (
            f"{count} points: described, not judged, for orders of fewer than {least} models cannot be told from chance; "
            f"{words}; of these very models, over texts alone {text[0]:+.3f} to {text[1]:+.3f}"
        )
        interval = None if math.isnan(low) else (low, high)
        return Claim(statement, slope, id="H14", interval=interval, control=control, outcome="descriptive", words=said)
    rivals: tuple[Effect, ...] = ()
    if twins is not None:
        beyond = (twins["slope"], twins["low"], twins["high"])
        rivals = (Effect(*beyond, "their untrained twins", settings.margin, twins["p"], kind="trivial cue"),)
    return Case(
        statement,
        slope,
        Effect(slope, low, high, _SMALLER, settings.margin, row["p"], kind="none found"),
        id="H14",
        interval=(low, high),
        control=control,
        rivals=rivals,
        not_run=() if twins is not None or quantity != "accuracy" else ("untrained twins (twin is off)",),
        family=f"{task} by size",
        words=words,
    )
