"""From tables to claims: each published statement beside what was measured, its null, and a verdict in words."""

from __future__ import annotations

import math

import pandas as pd

from moescope.studies.circuits import published
from moescope.studies.circuits.claims_pairs import language_claims, pair_claims
from moescope.studies.circuits.controls import MAJORITY, SURFACE
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.single import TaskFindings
from moescope.study.verdicts import ALPHA, significant
from moescope.types import Claim, Verdict


def circuit_claims(found: dict[str, TaskFindings], tables: dict[str, pd.DataFrame], settings: CircuitSettings) -> list[Claim]:
    """All claims of a circuits study, in the order in which the source makes them."""
    claims: list[Claim] = []
    for name in found:
        controls = tables["controls"].query("task == @name").set_index("control")
        claims += [
            _handful(name, found[name], controls, settings),
            _two_neurons(name, tables["accuracy"], controls, settings),
            _basis(name, controls, settings),
            _range(name, tables["depth_range"]),
            _columns(name, found[name], tables["columns"]),
            _projection(name, tables["pc1"]),
            _early_exit(name, tables["depth"], controls),
        ]
    if len(found) > 1:
        claims += pair_claims(list(found), tables, settings)
    if "language" in tables:
        claims += language_claims(tables["language"], settings)
    return claims


def best_cue(controls: pd.DataFrame) -> tuple[str, float]:
    """(words for it, accuracy) of the strongest trivial cue of one task; the embedding layer counts as one.

    Args:
        controls: the task's control table, indexed by control.
    """
    rows = controls.loc[[c for c in controls.index if c.startswith(SURFACE) or c == "embedding_layer"], "accuracy"]
    best = str(rows.astype(float).idxmax())
    words = "the embedding layer" if best == "embedding_layer" else f"{best.removeprefix(SURFACE)!r}"
    return words, float(rows[best])


def _handful(name: str, found: TaskFindings, controls: pd.DataFrame, settings: CircuitSettings) -> Claim:
    circuit = controls.loc["circuit"]
    accuracy, low, high = (float(circuit[column]) for column in ("accuracy", "low", "high"))
    chance = float(controls.loc[MAJORITY, "accuracy"])
    cue, cue_accuracy = best_cue(controls)
    random = float(controls.loc["layer_matched_circuit", "accuracy"])
    random_high = float(controls.loc["layer_matched_circuit", "high"])
    probe = float(controls.loc["full_layer_probe", "accuracy"])
    matched = float(controls.loc["matched_subset", "accuracy"])
    p = float(controls.loc["permuted_labels", "p"]) if "permuted_labels" in controls.index else None
    verdict: Verdict
    if low <= chance or (p is not None and not significant(p)):
        verdict, note = "explained by chance", f"not told apart from the majority class ({chance:.1%})"
    elif accuracy <= cue_accuracy:
        verdict, note = "explained by a trivial cue", f"{cue} alone reaches {cue_accuracy:.1%}"
    elif low <= cue_accuracy:
        verdict, note = "explained by a trivial cue", f"{cue} alone reaches {cue_accuracy:.1%}, inside the interval"
    elif accuracy <= random_high:
        verdict, note = "not reproduced", f"random neurons of the same layers reach up to {random_high:.1%} (95 % of sets)"
    else:
        verdict, note = "reproduced", f"above the best trivial cue ({cue}, {cue_accuracy:.1%}) and random neurons"
    beside = f"full-layer probe {probe:.1%}, layer-matched random neurons {random:.1%} on average"
    if not math.isnan(matched):
        beside += f", the circuit where length and full stop are balanced {matched:.1%}"
    beyond = int((found.null.p <= ALPHA).sum())
    return Claim(
        name=f"{name}: {settings.k} neurons carry the task",
        published=published.ACCURACY.get(name),
        measured=accuracy,
        interval=(low, high),
        null=max(chance, cue_accuracy),
        p=p,
        verdict=verdict,
        note=f"{note}; {beside}. p by permuted labels; {beyond} of {len(found.null.p):,} neurons differ between classes "
        f"at 5 % family-wise",
        details={"p_best_neuron": float(found.null.p[found.ranking[0]]), "significant_neurons": beyond},
    )


def _two_neurons(name: str, accuracy: pd.DataFrame, controls: pd.DataFrame, settings: CircuitSettings) -> Claim:
    rows = accuracy.query("task == @name and selection == @settings.selection and classifier == @settings.classifier")
    two = rows.loc[(rows["k"] - 2).abs().idxmin()]
    cue, cue_accuracy = best_cue(controls)
    chance = float(controls.loc[MAJORITY, "accuracy"])
    probe = float(controls.loc["full_layer_probe", "accuracy"])
    measured, low, high = (float(two[column]) for column in ("accuracy", "low", "high"))
    verdict: Verdict
    # To suffice, the few must come close to what the whole layer knows, and that must be more than a cue gives.
    if low <= chance:
        verdict, note = "explained by chance", f"the interval holds the majority class ({chance:.1%})"
    elif measured < probe - 0.02:
        verdict, note = "not reproduced", f"the full-layer probe reaches {probe:.1%}, so they do not hold what the layer does"
    elif low <= cue_accuracy:
        verdict, note = "explained by a trivial cue", f"{cue} alone reaches {cue_accuracy:.1%}"
    else:
        verdict, note = "reproduced", f"within 2 points of the full-layer probe ({probe:.1%})"
    covered = (
        f"; sure (probability ≥ 0.9) of {two['coverage']:.1%} of the texts, and right on {two['selective_accuracy']:.1%} of "
        "those"
        if two["coverage"] > 0
        else "; never sure (probability ≥ 0.9)"
    )
    return Claim(
        name=f"{name}: {int(two['k'])} neurons suffice",
        published=published.TWO_NEURONS.get(name),
        measured=measured,
        interval=(low, high),
        null=cue_accuracy,
        verdict=verdict,
        note=note + covered,
    )


def _basis(name: str, controls: pd.DataFrame, settings: CircuitSettings) -> Claim:
    circuit, turned = controls.loc["circuit"], controls.loc["rotated_basis"]
    gap, low, high = (float(turned[column]) for column in ("gap", "gap_low", "gap_high"))
    chance = float(controls.loc[MAJORITY, "accuracy"])
    verdict: Verdict
    if float(circuit["low"]) <= chance:
        verdict, note = "explained by chance", f"the circuit itself is not told apart from the majority class ({chance:.1%})"
    elif low > 0:
        verdict = "reproduced"
        note = f"{gap:.1%} more ({low:+.1%} to {high:+.1%}) than the top {settings.k} coordinates of a rotated basis give"
    else:
        verdict = "not reproduced"
        note = (
            f"the top {settings.k} coordinates of a randomly rotated basis do as well (difference {low:+.1%} to {high:+.1%}): "
            "nothing singles out neurons over other directions"
        )
    return Claim(
        name=f"{name}: single neurons are the unit",
        measured=float(circuit["accuracy"]),
        interval=(float(circuit["low"]), float(circuit["high"])),
        null=float(turned["accuracy"]),
        verdict=verdict,
        note=note,
    )


def _range(name: str, ranges: pd.DataFrame) -> Claim:
    row = ranges.query("task == @name").iloc[0]
    low, high, mean = float(row["random_low"]), float(row["random_high"]), float(row["mean_layer"])
    where = "earlier than" if mean < low else "later than" if mean > high else "where"
    return Claim(
        name=f"{name}: layers of the circuit",
        measured=f"{int(row['first_layer'])} to {int(row['last_layer'])}, mean {mean:.1f}",
        null=f"mean {low:.1f} to {high:.1f}",
        verdict="measured",
        note=f"{where} random sets of {int(row['k'])} neurons lie; the null is 95 % of such sets",
    )


def _columns(name: str, found: TaskFindings, columns: pd.DataFrame) -> Claim:
    rows = columns.query("task == @name")
    largest, distinct = int(rows["n_layers"].max()), int(rows["distinct_coordinates"].iloc[0])
    clusters = int(rows["clusters"].iloc[0])
    residual = found.circuit.neurons[0].site.kind == "resid"
    top = min(10, found.features.columns.n)
    reason = (
        "a residual coordinate is carried on by the skip connection, so one thing is seen in several layers; "
        if residual and largest > 1
        else ""
    )
    return Claim(
        name=f"{name}: largest functional column",
        published=published.COLUMN.get(name),
        measured=largest,
        verdict="identity" if residual and largest > 1 else "measured",
        note=f"neurons of the top {top} with one index; {reason}the {top} are {distinct} distinct coordinates, in {clusters} "
        "clusters correlated at |r| ≥ 0.9",
    )


def _projection(name: str, pc1: pd.DataFrame) -> Claim:
    row = pc1.query("task == @name").iloc[0]
    return Claim(
        name=f"{name}: classes oppose on PC1",
        measured=float(row["distance"]),
        null=float(row["null_distance"]),
        p=float(row["p"]),
        verdict="identity",
        note="opposite means hold for any balanced, centred data. The test is the distance against permuted labels: "
        f"classes make up {float(row['class_share']):.1%} of PC1's variance (of standardised coordinates' "
        f"{float(row['class_share_standardised']):.1%}, p = {float(row['p_standardised']):.2g}); PC1 explains "
        f"{float(row['explained']):.0%} of all variance, {float(row['explained_null']):.0%} were coordinates independent",
    )


def _early_exit(name: str, depth: pd.DataFrame, controls: pd.DataFrame) -> Claim:
    rows = depth.query("task == @name")
    curve = rows.query("curve == 'circuit_reselected'").sort_values("layer")
    at = curve.loc[(curve["fraction"] - published.EARLY_EXIT_FRACTION).abs().idxmin()]
    last = curve.iloc[-1]
    cue, surface = best_cue(controls)
    chance = float(controls.loc[MAJORITY, "accuracy"])
    reported = published.DEPTH.get(name)
    lost = f"{float(at['loss']):+.1%} lost ({float(at['loss_low']):+.1%} to {float(at['loss_high']):+.1%})"
    verdict: Verdict
    if float(last["low"]) <= chance:
        verdict, why = "explained by chance", "at no depth is there accuracy to lose"
    elif float(at["loss_low"]) > 0:
        verdict, why = "not reproduced", "deeper layers add accuracy"
    elif surface >= float(at["low"]):
        verdict, why = "explained by a trivial cue", f"{cue} needs no deeper layer and reaches {surface:.1%}"
    elif float(at["loss_high"]) > 0.02:
        verdict, why = "measured", "a loss of over 2 points is not excluded"
    else:
        verdict, why = "reproduced", f"less than 2 points lost; best trivial cue {surface:.1%}"
    return Claim(
        name=f"{name}: done early",
        published=f"{reported[0]:.1%} of {reported[1]:.1%} at {published.EARLY_EXIT_FRACTION:.0%} depth" if reported else None,
        measured=f"{float(at['accuracy']):.1%} of {float(last['accuracy']):.1%} at {float(at['fraction']):.0%} depth",
        null=surface,
        verdict=verdict,
        note=f"circuit selected anew within layers 0 to {int(at['layer'])}: {lost}; {why}",
    )
