"""Claims about a task learnt from few labels on the neurons of other tasks' circuits."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from moescope.stats import Difference
from moescope.studies.circuits.related.few_shot import CIRCUITS, FULL, RANDOM, VARIANCE
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.spread import effect_of
from moescope.study.verdicts import Case
from moescope.types import Control


def few_shot_claims(areas: pd.DataFrame, settings: CircuitSettings) -> list[Case]:
    """Two claims that are judged together, by the mean balanced accuracy over numbers of labels that double (the area under the
    curve in log labels)."""
    task = str(areas["task"].iloc[0])
    rows = areas.set_index("method")
    own, random, variance, full = (rows.loc[name] for name in (CIRCUITS, RANDOM, VARIANCE, FULL))
    head: dict[str, Any] = {
        "measured": float(own["value"]),
        "id": "H18",
        "interval": (float(own["low"]), float(own["high"])),
        "family": f"{task}: from few labels",
    }
    most, k = int(own["most_labels"]), int(own["columns"])
    said = (
        f"{k} neurons of the circuits of {own['sources']}, mean balanced accuracy over 8 to {most} labels "
        f"({int(own['n_draws'])} draws from either half of {int(own['n'])} texts); random neurons "
        f"{float(random['value']):.1%}, the largest variance {float(variance['value']):.1%}, all {int(full['columns'])} "
        f"{float(full['value']):.1%}"
    )
    return [
        Case(
            f"{task}: from few labels, the neurons of other tasks' circuits learn it better than random neurons of "
            "their layers",
            effect=effect_of(
                _gap(random), f"{int(random['n_random'])} sets of random neurons of their layers", settings.margin
            ),
            rivals=(effect_of(_gap(variance), "the neurons of the largest variance", settings.margin, kind="trivial cue"),),
            control=Control("random neurons of their layers", float(random["value"])),
            words=said,
            **head,
        ),
        Case(
            f"{task}: from few labels, the neurons of other tasks' circuits learn it better than a regularised probe of "
            "all neurons",
            effect=effect_of(_gap(full), "a ridge on all neurons", settings.margin, kind="none found"),
            control=Control("ridge on all neurons", float(full["value"])),
            words=f"the probe's {float(full['target']):.1%} with {most} labels take {_needed(own, most)}, random neurons "
            f"{_needed(random, most)}",
            **head,
        ),
    ]


def _needed(row: Any, most: int) -> str:
    value, low, high = (float(row[name]) for name in ("needed", "needed_low", "needed_high"))
    if math.isnan(value):
        return f"more than {most} labels" + ("" if math.isnan(low) else f" (from {low:.0f})")
    return f"{value:.0f} labels ({low:.0f} to {f'more than {most}' if math.isnan(high) else f'{high:.0f}'})"


def _gap(row: Any) -> Difference:
    return Difference(*(float(row[column]) for column in ("gap", "gap_low", "gap_high", "p")))
