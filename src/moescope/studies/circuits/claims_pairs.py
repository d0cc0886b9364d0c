"""Claims about several tasks at once, or one task in several languages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moescope.studies.circuits import published
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.verdicts import ALPHA, significant
from moescope.types import Claim, Verdict

MARGIN = 0.02
"""Accuracy above the majority class that counts as carrying a task."""


def pair_claims(names: list[str], tables: dict[str, pd.DataFrame], settings: CircuitSettings) -> list[Claim]:
    """Overlap, transfer, specialization and symmetry of every pair of tasks, and the map over them."""
    cross = tables["cross_task"].set_index(["source", "target", "method"]).sort_index()
    majority = tables["controls"].query("control == 'majority class'").set_index("task")["accuracy"]
    claims = [_overlap(row) for row in tables["overlap"].query("k == @settings.k").to_dict("records")]
    transfer = {
        (source, target): float(cross.loc[(source, target, "transfer_accuracy"), "value"])
        for source in names
        for target in names
        if (source, target, "transfer_accuracy") in cross.index
    }
    for source in names:
        claims += [_cross(source, t, cross, float(majority[t])) for t in names if t != source]
    claims += _ratios(names, transfer, cross)
    if len(names) > 2:
        claims += _map(tables["task_map"])
    return claims


def _overlap(row: dict[str, Any]) -> Claim:
    shared, k, p = int(row["overlap"]), int(row["k"]), float(row["p"])
    own, other, cross = float(row["split_half_a"]), float(row["split_half_b"]), float(row["split_half_cross"])
    ceiling = (
        f"between halves of its data {row['task_a']} shares {own:.1f} of {k} with itself, {row['task_b']} {other:.1f}, "
        f"and the two {cross:.1f}"
    )
    verdict: Verdict
    if significant(p):
        verdict, note = "not reproduced", f"they share more than chance gives; {ceiling}"
    elif min(own, other) < k / 4:
        # Without a ceiling disjointness says nothing: the rankings could not have agreed either way.
        verdict, note = "explained by chance", f"a ranking that hardly repeats itself cannot overlap another: {ceiling}"
    else:
        verdict, note = "reproduced", f"random sets are disjoint too ({row['p_disjoint']:.1%} of pairs), but {ceiling}"
    return Claim(
        name=f"{row['task_a']} and {row['task_b']}: top-{k} circuits do not overlap",
        published=0,
        measured=shared,
        null=float(row["expected"]),
        p=p,
        verdict=verdict,
        note=note,
        details={"kuncheva": float(row["kuncheva"])},
    )


def _cross(source: str, target: str, cross: pd.DataFrame, majority: float) -> Claim:
    rows = cross.loc[(source, target)]
    refit, matched = rows.loc["refit"], rows.loc["refit_layer_matched"]
    parts = [
        f"refit on {target} the same neurons give {float(refit['value']):.1%}, random neurons of those layers "
        f"{float(matched['value']):.1%}"
    ]
    if "transfer_auroc" in rows.index:
        parts.insert(0, f"sign-free AUROC {float(rows.loc['transfer_auroc', 'value']):.2f}")
    carries = float(refit["low"]) > majority + MARGIN
    verdict: Verdict
    if carries:
        verdict, outcome = "not reproduced", f"{source}'s neurons do carry {target}"
    elif float(cross.loc[(target, target, "transfer_accuracy"), "low"]) <= majority + MARGIN:
        verdict, outcome = "explained by chance", f"at chance, but so are {target}'s own neurons"
    elif float(matched["high"]) <= majority + MARGIN:
        verdict, outcome = "explained by chance", "at chance, but so are random neurons of those layers"
    else:
        verdict, outcome = "reproduced", "at chance, where random neurons of those layers are not always"
    transferred = rows.loc["transfer_accuracy"] if "transfer_accuracy" in rows.index else None
    return Claim(
        name=f"{source} circuit is at chance on {target}",
        published=published.CROSS.get((source, target)),
        measured=float("nan") if transferred is None else float(transferred["value"]),
        interval=None if transferred is None else (float(transferred["low"]), float(transferred["high"])),
        null=majority,
        verdict=verdict,
        note=f"{outcome}: {', '.join(parts)}; the transferred classifier's polarity is arbitrary, so its accuracy is no test",
    )


def _ratios(names: list[str], transfer: dict[tuple[str, str], float], cross: pd.DataFrame) -> list[Claim]:
    claims = []
    for name in names:
        others = [value for (source, target), value in transfer.items() if source == name != target]
        if others and np.mean(others) > 0:
            refit = np.mean([float(cross.loc[(name, t, "refit"), "value"]) for t in names if t != name])
            own = transfer[name, name]
            claims.append(
                Claim(
                    name=f"{name}: specialization ratio",
                    published=published.RATIO.get(name),
                    measured=own / float(np.mean(others)),
                    null=2 * own,
                    verdict="identity",
                    note="own accuracy over that of the transferred classifier, hence twice the own accuracy (the null) "
                    f"whenever transfer is at 50 %; with the neurons refit it is {own / refit:.2f}",
                )
            )
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if (a, b) in transfer and (b, a) in transfer:
                own, other = transfer[a, a], transfer[b, b]
                score = abs(own - other) + abs(transfer[a, b] - transfer[b, a])
                claims.append(
                    Claim(
                        name=f"{a} and {b}: symmetry score",
                        published=published.SYMMETRY if {a, b} == set(published.TASKS) else None,
                        measured=score,
                        verdict="measured",
                        note=f"|AA−BB| + |AB−BA|, the definition that gives the published values; {abs(own - other):.3f} of "
                        "it is how far the two tasks differ in difficulty, the rest rests on arbitrary polarity",
                    )
                )
    return claims


def _map(task_map: pd.DataFrame) -> list[Claim]:
    claims = []
    for measure, rows in task_map.groupby("measure", sort=False):
        alike = int((rows["p_adjusted"] <= ALPHA).sum())
        best = rows.loc[rows["value"].idxmax()]
        claims.append(
            Claim(
                name=f"pairs of tasks alike by {measure}",
                measured=alike,
                verdict="measured",
                note=f"of {len(rows)} pairs, at a false discovery rate of 5 %; the most alike are {best['a']} and {best['b']} "
                f"({float(best['value']):.2f}, chance {float(best['chance']):.2f})",
            )
        )
    return claims


def language_claims(language: pd.DataFrame) -> list[Claim]:
    """One claim per task: the worst of the transfers between languages."""
    claims = []
    for task, rows in language.groupby("task", sort=False):
        away = rows[rows["train_language"] != rows["test_language"]]
        if away.empty:
            continue
        worst = away.loc[away["accuracy"].idxmin()]
        own = rows[(rows["train_language"] == rows["test_language"]) & (rows["test_language"] == worst["test_language"])]
        carries = float(worst["low"]) > float(worst["majority"])
        claims.append(
            Claim(
                name=f"{task}: the circuit speaks other languages",
                measured=float(worst["accuracy"]),
                interval=(float(worst["low"]), float(worst["high"])),
                null=float(worst["majority"]),
                verdict="measured",
                note=f"worst of {len(away)} transfers: selected and fitted on {worst['train_language']}, tested on "
                f"{worst['test_language']}, whose own circuit gives {float(own['accuracy'].iloc[0]):.1%}; "
                + ("above" if carries else "not above")
                + " the majority class",
            )
        )
    return claims
