"""Claims about several tasks at once, or one task in several languages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from moescope.stats import Difference
from moescope.studies.circuits import published
from moescope.studies.circuits.claims_causal import interference_claims, pair_family
from moescope.studies.circuits.settings import CircuitSettings
from moescope.studies.circuits.spread import effect_of
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control, Published

OVERLAP_MARGIN = 0.1
"""Share of a circuit that counts as shared: one neuron of ten."""


def pair_claims(names: list[str], tables: dict[str, pd.DataFrame], settings: CircuitSettings) -> list[Claim | Case]:
    """Overlap, transfer, specialization and symmetry of every pair of tasks, and the map over them."""
    cross = tables["cross_task"].set_index(["source", "target", "method"]).sort_index()
    claims: list[Claim | Case] = []
    for _, rows in tables["overlap"].groupby(["task_a", "task_b"], sort=False):
        claims += [overlap_claim(rows, settings), own_coordinates_claim(rows, settings)]
    for source in names:
        for target in names:
            if source != target:
                claims += cross_claims(source, target, cross.loc[(source, target)], settings)
    claims += _ratios(names, cross)
    if "interference" in tables:
        claims += interference_claims(tables["interference"], tables["ablation"], settings)
    if len(names) > 2:
        claims += [_map(str(measure), rows, settings) for measure, rows in tables["task_map"].groupby("measure", sort=False)]
    return claims


def overlap_claim(rows: pd.DataFrame, settings: CircuitSettings) -> Case:
    """H1 as published: at the headline K no coordinate is shared, beside what permuted labels share.

    Args:
        rows: of one pair in the table ``overlap``, by k.
    """
    row = rows[rows["k"] == settings.k].iloc[0]
    k, both, expected = int(row["k"]), int(row["overlap"]), float(row["expected"])
    # what another sample might have given: at least the grain of a count, and chance's own spread
    half = 1.96 * math.sqrt(max(both * (1 - both / k), expected * (1 - expected / k), 0.0)) / k
    more = (both - expected) / k
    names = f"{row['task_a']} and {row['task_b']}"
    chance = Effect(-more, -more - half, -more + half, "permuted labels (in how few they share)", OVERLAP_MARGIN)
    apart = Effect(-more, -more - half, -more + half, "what permuted labels share", OVERLAP_MARGIN, no_worse=True)
    return Case(
        f"{names}: the top-{k} circuits share no coordinate beyond chance",
        both,
        apart,
        id="H1",
        published=Published(0, f"{published.SOURCE}, Table 1") if _published(row) else None,
        interval=(max(0.0, both - half * k), min(float(k), both + half * k)),
        control=Control("permuted labels share", expected),
        rivals=(chance,),
        family=pair_family(row["task_a"], row["task_b"]),
        words=f"they share {both} of {int(row['distinct_a'])} and {int(row['distinct_b'])} distinct coordinates; under "
        f"permuted labels {expected:.2g} on average and none in {float(row['p_disjoint']):.0%} of draws (two-sided p "
        f"{float(row['p']):.2g}), so that sharing none says little at this K; the interval is binomial",
    )


def own_coordinates_claim(rows: pd.DataFrame, settings: CircuitSettings) -> Case:
    """The evidence for H1: tasks share less with each other than with themselves between halves, with a bound over K."""
    row = rows[rows["k"] == settings.k].iloc[0]
    names = f"{row['task_a']} and {row['task_b']}"
    own = (float(row["split_half_a"]) + float(row["split_half_b"])) / 2
    found = Difference(*(float(row[c]) for c in ("gap", "gap_low", "gap_high")), float("nan"))
    error = (found.high - found.low) / 2 / 1.96
    p = float(2 * student.sf(abs(found.value) / error, 4))  # five halvings
    effect = effect_of(found._replace(p=p), "they share with each other, of what each shares with itself", OVERLAP_MARGIN)
    return Case(
        f"{names}: each circuit of {settings.k} repeats itself on other texts more than it resembles the other",
        own - float(row["split_half_cross"]),
        effect,
        id="H1",
        interval=(found.low * settings.k, found.high * settings.k),
        control=Control("shared across tasks, between halves", float(row["split_half_cross"])),
        family=pair_family(row["task_a"], row["task_b"]),
        words=f"between halves of the groups {row['task_a']} shares {float(row['split_half_a']):.1f} of {settings.k} with "
        f"itself, {row['task_b']} {float(row['split_half_b']):.1f}, and the two {float(row['split_half_cross']):.1f}; "
        f"{_bound(rows)}; "
        "the interval is over halvings",
    )


def _bound(rows: pd.DataFrame) -> str:
    """At which K the two come nearest to the ceiling that each task's own repetition sets, with a bound for all K."""
    own = (rows["split_half_a"] + rows["split_half_b"]) / 2
    usable = rows[own >= 1].assign(own=own[own >= 1])
    if usable.empty:
        return "at no K does either repeat one coordinate of its own"
    z = float(student.ppf(1 - 0.05 / (2 * len(usable)), 4))
    high = usable["split_half_cross"] + z / 1.96 * (usable["gap_high"] - usable["gap"]) * usable["k"]
    share = (high / usable["own"]).clip(upper=1.0)
    least, most = int(usable["k"].min()), int(usable["k"].max())
    worst = int(usable.loc[share.idxmax(), "k"])
    return f"at K = {least} to {most} they share at most {share.max():.0%} of that (at K = {worst}; 95 % for all K together)"


def cross_claims(source: str, target: str, rows: pd.DataFrame, settings: CircuitSettings) -> list[Case]:
    """H2, second half, and transfer without fitting: the rows of one source and target in ``cross_task``, by method."""
    refit, matched, own = rows.loc["refit"], rows.loc["refit_layer_matched"], rows.loc["own"]
    gap = _difference(refit)
    # the claim is that nothing is gained, so a loss against the circuit is what would contradict it
    lost = Difference(-gap.value, -gap.high, -gap.low, float("nan"))
    said = "less than they" if gap.high < 0 else "more than they" if gap.low > 0 else "not told apart from them"
    transferred = rows.loc["transfer_accuracy"] if "transfer_accuracy" in rows.index else None
    words = (
        f"fitted anew on {target}, {source}'s neurons give {float(refit['value']):.1%} (balanced) and random neurons of their "
        f"layers {float(matched['value']):.1%}: {said}"
    )
    figure = published.CROSS.get((source, target))
    if transferred is not None:
        words += f"; {source}'s classifier as it is gives {float(transferred['value']):.1%}, whose polarity is arbitrary"
    if figure is not None:
        words += f" (published: {figure:.1%})"
    family = pair_family(source, target)
    cases = [
        Case(
            f"{source}'s {settings.k} neurons say no more of {target} than random neurons of their layers do",
            float(refit["value"]),
            effect_of(lost, f"{source}'s circuit", settings.margin, no_worse=True),
            id="H2",
            interval=(float(refit["low"]), float(refit["high"])),
            control=Control("random neurons of the same layers, refitted", float(matched["value"])),
            rivals=(effect_of(_difference(own), f"random neurons, by {target}'s own circuit", settings.margin),),
            family=family,
            words=words,
        )
    ]
    if "transfer_auroc" in rows.index:
        auroc = rows.loc["transfer_auroc"]
        signed = _difference(auroc)
        turned = signed.value < 0
        free = Difference(-signed.value, -signed.high, -signed.low, signed.p) if turned else signed
        cases.append(
            Case(
                f"{source}'s classifier, not fitted anew, tells {target}'s classes apart with either polarity",
                float(auroc["value"]),
                effect_of(free, "one half of the AUROC", settings.margin),
                id="H18",
                interval=(float(auroc["low"]), float(auroc["high"])),
                control=Control("one half", 0.5),
                family=family,
                words=f"sign-free AUROC; the polarity is {'turned' if turned else 'kept'}",
            )
        )
    return cases


def _ratios(names: list[str], cross: pd.DataFrame) -> list[Claim]:
    claims = []
    transfer = {
        (source, target): float(cross.loc[(source, target, "transfer_accuracy"), "value"])
        for source in names
        for target in names
        if (source, target, "transfer_accuracy") in cross.index
    }
    for name in names:
        others = [value for (source, target), value in transfer.items() if source == name != target]
        if others and np.mean(others) > 0:
            refit = np.mean([float(cross.loc[(name, t, "refit"), "value"]) for t in names if t != name])
            own = transfer[name, name]
            claims.append(
                Claim(
                    f"{name}: specialization ratio, own accuracy over that of the transferred classifier",
                    own / float(np.mean(others)),
                    id="H3",
                    published=_source(published.RATIO.get(name), "section 4.3"),
                    control=Control("twice the own accuracy", 2 * own),
                    outcome="identity",
                    words="twice the own accuracy whenever transfer is at 50 %, hence no interval; refitted it is "
                    f"{own / refit:.2f}",
                )
            )
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if (a, b) in transfer and (b, a) in transfer:
                own, other = transfer[a, a], transfer[b, b]
                score = abs(own - other) + abs(transfer[a, b] - transfer[b, a])
                claims.append(
                    Claim(
                        f"{a} and {b}: symmetry score |AA−BB| + |AB−BA|",
                        score,
                        id="H3",
                        published=_source(published.SYMMETRY, "section 4.3") if {a, b} == set(published.TASKS) else None,
                        words=f"the definition that gives the published values; {abs(own - other):.3f} of it is how far the "
                        "two tasks differ in difficulty, the rest rests on arbitrary polarity, for which no interval is given",
                    )
                )
    return claims


def _map(measure: str, rows: pd.DataFrame, settings: CircuitSettings) -> Case:
    best = rows.loc[rows["value"].idxmax()]
    alike = int(((rows["p_adjusted"] <= settings.alpha) & (rows["value"] > rows["chance"])).sum())
    value, mean, low, high = (float(best[c]) for c in ("value", "best_mean", "best_low", "best_high"))
    against = f"the most alike of all {len(rows)} pairs under permuted labels"
    return Case(
        f"some tasks are alike by {measure}: {best['a']} and {best['b']} the most",
        value,
        Effect(value - mean, value - high, value - low, against, OVERLAP_MARGIN, float(best["p_adjusted"])),
        id="H22",
        interval=(value - (high - mean), value + (mean - low)),
        control=Control("permuted labels, the most alike pair", mean),
        words=f"{alike} of {len(rows)} pairs are, each against the most alike of all under permuted labels; the interval is "
        "what permuted labels spread",
    )


def language_claims(language: pd.DataFrame, settings: CircuitSettings) -> list[Case]:
    """One claim per task and ordered pair of languages."""
    cases = []
    for row in language[language["train_language"] != language["test_language"]].to_dict("records"):
        task, first, second = row["task"], row["train_language"], row["test_language"]
        of_task = language[(language["task"] == task) & (language["test_language"] == second)]
        own = of_task.loc[of_task["train_language"] == second, "accuracy"].iloc[0]
        value, low, high, chance = (float(row[c]) for c in ("accuracy", "low", "high", "chance"))
        cases.append(
            Case(
                f"{task}: the circuit of its {first} texts tells the classes of its {second} texts apart",
                value,
                Effect(value - chance, low - chance, high - chance, "a guess", settings.margin, float(row["p"])),
                id="H22",
                interval=(low, high),
                control=Control("a guess, balanced accuracy", chance),
                family=f"{task}: languages",
                words=f"the circuit of the {second} texts themselves gives {own:.1%}",
            )
        )
    return cases


def _published(row: Any) -> bool:
    return {row["task_a"], row["task_b"]} == set(published.TASKS)


def _source(value: float | None, where: str) -> Published | None:
    return None if value is None else Published(value, f"{published.SOURCE}, {where}")


def _difference(row: Any) -> Difference:
    return Difference(*(float(row[column]) for column in ("gap", "gap_low", "gap_high", "p")))
