"""From measured effects to cases: the classes of a task that has more than two."""

from __future__ import annotations

import math

import pandas as pd

from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.verdicts import Case, Effect
from moescope.types import Control


def several_claims(name: str, each: pd.DataFrame, criteria: pd.DataFrame, settings: CircuitSettings) -> list[Case]:
    """Whether every class is named, and each class's own circuit, from the tables ``each_class`` and ``criteria``."""
    rows = each.query("task == @name")
    chance = 1 / len(rows)
    size = f"{settings.k} neuron{'s' if settings.k > 1 else ''}"
    worst = rows.loc[rows["recall"].idxmin()]
    low, high = float(worst["recall_low"]) - chance, float(worst["recall_high"]) - chance
    # Every class must be shown: the largest p is that of them all (intersection-union test, Berger 1982).
    effect = Effect(
        float(worst["recall"]) - chance, low, high, f"chance ({chance:.1%})", settings.margin, float(rows["recall_p"].max())
    )
    said = ", ".join(f"{row['class']} {row['recall']:.1%}" for _, row in rows.iterrows())
    ways = ", ".join(f"{row['criterion']} {row['balanced']:.1%}" for _, row in criteria.query("task == @name").iterrows())
    claims = [
        Case(
            f"{name}: {size} name every class",
            float(worst["recall"]),
            effect,
            interval=(float(worst["recall_low"]), float(worst["recall_high"])),
            control=Control(f"chosen trivial cue on {worst['class']}", float(worst["cue_recall"])),
            words=f"the class that is named least, {worst['class']}; shares named rightly: {said}; one circuit ranked by "
            f"{ways}",
        )
    ]
    for _, row in rows.iterrows():
        if "own" not in rows or math.isnan(row["own"]):
            continue
        value, low, high = (float(row[f"rival_{end}"]) for end in ("value", "low", "high"))
        against, p = f"the best trivial cue ({row['cue']})", float(row["rival_p"])
        seen = bool(row["rival_bits"] > 0)
        rival = Effect(value, low, high, against, settings.margin, p, kind="trivial cue", seen=seen)
        value, low, high = (float(row[f"own_{end}"]) for end in ("value", "low", "high"))
        effect = Effect(value, low, high, "chance (50.0% balanced)", settings.margin, float(row["own_p"]))
        claims.append(
            Case(
                f"{name}: {size} of its own tell {row['class']} from the rest",
                float(row["own"]),
                effect,
                interval=(max(0.0, 0.5 + float(row["own_low"])), min(1.0, 0.5 + float(row["own_high"]))),
                control=Control("chosen trivial cue", float(row["cue_own"])),
                rivals=(rival,),
                family=f"{name}: each class",
                words=f"balanced accuracy of two; AUROC {row['own_auroc']:.3f}; {int(row['shared'])} of its {settings.k} are "
                f"of the task's circuit, {row['shared_others']:.1f} of another class's ({row['expected']:.2g} by chance)",
            )
        )
    return claims
