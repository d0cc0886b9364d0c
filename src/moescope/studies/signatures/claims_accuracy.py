"""Claims on telling the category from the signature, each beside the strongest trivial cue in the same folds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.routing.subject import Subject
from moescope.studies.signatures import published
from moescope.studies.signatures.classifications import SIGNATURE
from moescope.types import Claim, Verdict


def accuracy_claims(accuracy: pd.DataFrame, subject: Subject) -> list[Claim]:
    """Accuracy and macro F1 in stratified folds, as published."""
    rows = accuracy[accuracy["split"] == "stratified"]
    head = rows[rows["features"] == SIGNATURE].iloc[0]
    permuted = rows[rows["kind"] == "null"]
    cue, best = best_cue(accuracy, "stratified")
    chance = float(np.bincount(subject.y).max() / len(subject))
    measured, low = float(head["accuracy"]), float(head["low"])
    beside = f"best trivial cue ({cue}) {best:.1%}" if cue else "no text or tokens at hand for trivial cues"
    verdict: Verdict
    if low <= chance:
        verdict, note = "explained by chance", f"the interval contains the largest category ({chance:.1%}); {beside}"
    elif measured <= best:
        verdict, note = "explained by a trivial cue", f"{cue}: {best:.1%}, without reading the routing"
    else:
        verdict, note = "reproduced", f"better than every trivial cue; {beside}"
    if len(permuted):
        note += f"; labels permuted {float(permuted.iloc[0]['accuracy']):.1%}"
    note += f"; Wilson interval (bootstrap {head['boot_low']:.1%} to {head['boot_high']:.1%})"
    p = float(head["p"]) if "p" in head and pd.notna(head["p"]) else None
    null = max(chance, best)
    name = "accuracy of the category from the signature"
    return [
        Claim(name, measured, published.ACCURACY, (low, float(head["high"])), null, p, verdict, note),
        Claim(
            "macro F1 of the category",
            float(head["macro_f1"]),
            published.MACRO_F1,
            (float(head["f1_low"]), float(head["f1_high"])),
            1 / len(subject.categories),
            verdict=verdict,
            note="the same predictions and the same verdict as the accuracy; null: guessing",
        ),
    ]


def best_cue(accuracy: pd.DataFrame, split: str) -> tuple[str, float]:
    """Name and accuracy of the strongest trivial cue under a split; ("", 0) where none was measured."""
    cues = accuracy[(accuracy["split"] == split) & (accuracy["kind"] == "cue")]
    if not len(cues):
        return "", 0.0
    best = cues.loc[cues["accuracy"].astype(float).idxmax()]
    return str(best["features"]), float(best["accuracy"])


def grouped_claim(accuracy: pd.DataFrame, split: str, subject: Subject) -> Claim | None:
    """Accuracy on topics or templates that no training fold has; None where the prompts do not allow that split."""
    rows = accuracy[(accuracy["split"] == split) & (accuracy["features"] == SIGNATURE)]
    if not len(rows):
        return None
    row = rows.iloc[0]
    cue, best = best_cue(accuracy, split)
    chance = float(np.bincount(subject.y).max() / len(subject))
    measured = float(row["accuracy"])
    what = split.removeprefix("by ")
    verdict: Verdict = "measured"
    note = f"best trivial cue ({cue}) {best:.1%} on the same split" if cue else "no text at hand for trivial cues"
    if row["boot_low"] <= chance:
        verdict = "explained by chance"
    elif measured <= best:
        verdict = "explained by a trivial cue"
    elif row["boot_low"] <= best:
        note += ", which the interval contains"
    return Claim(
        f"accuracy on {what}s not trained on",
        measured,
        interval=(float(row["boot_low"]), float(row["boot_high"])),
        null=max(best, chance),
        verdict=verdict,
        note=f"{note}; interval from whole {what}s",
    )
