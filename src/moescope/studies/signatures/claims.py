"""From tables to claims: each published statement beside what was measured, its null, and a verdict in words."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from moescope.routing.subject import Subject
from moescope.studies.signatures import published
from moescope.studies.signatures.claims_accuracy import accuracy_claims, grouped_claim
from moescope.study.verdicts import ALPHA, beyond_chance, significant
from moescope.types import Claim, Verdict

# The two readings of "load balance", by their row in the table of nulls.
BASELINES = {"uniform": "uniform experts", "own counts reshuffled": "reshuffled counts"}
_EXACT = 8  # layers up to which every order is enumerated


def signature_claims(tables: dict[str, pd.DataFrame], subject: Subject) -> list[Claim]:
    """All claims of a signatures study: the source's in its order, then what it leaves open."""
    similarity = tables["similarity"]
    head = similarity[(similarity["measure"] == "cosine") & (similarity["prompts"] == "all")].iloc[0]
    nulls = tables["routing_nulls"].set_index("null")
    accuracy = tables["routing_accuracy"]
    claims = [
        _within(head, nulls),
        _across(head, nulls),
        _order(head, nulls),
        _effect(head, similarity, nulls),
        *accuracy_claims(accuracy, subject),
        _ranges(tables["category_similarity"]),
        _depth(tables["routing_layers"]),
        _length(similarity, head),
    ]
    if "same token reshuffled" in nulls.index:
        claims.append(_identity(nulls))
    if "random model" in nulls.index:
        claims.append(_twin(nulls))
    claims += [c for split in ("by topic", "by template") if (c := grouped_claim(accuracy, split, subject)) is not None]
    return [*claims, _experts(tables["experts"])]


def _interval(row: pd.Series, name: str) -> tuple[float, float]:
    return float(row[f"{name}_low"]), float(row[f"{name}_high"])


def _within(head: pd.Series, nulls: pd.DataFrame) -> Claim:
    null = nulls.loc["own counts reshuffled"]
    measured, interval = float(head["within"]), _interval(head, "within")
    chance = f"routing dealt out at random, prompts as long as these, gives {null['within']:.3f} without any task"
    verdict: Verdict
    if interval[0] > null["within_high"]:
        verdict, note = "reproduced", f"prompts of one category route more alike than chance: {chance}"
    else:
        verdict, note = "explained by chance", f"{chance}; a high cosine says only that there were many tokens"
    return Claim("cosine within categories", measured, published.WITHIN, interval, float(null["within"]), None, verdict, note)


def _across(head: pd.Series, nulls: pd.DataFrame) -> Claim:
    null = nulls.loc["own counts reshuffled"]
    measured, interval = float(head["across"]), _interval(head, "across")
    note = f"routing dealt out at random gives {null['across']:.3f}"
    verdict: Verdict
    if interval[1] >= null["across_low"]:
        verdict, note = "not reproduced", f"prompts of different categories route as alike as chance: {note}"
    elif head["within"] < null["within_low"]:
        # Overdispersion: the tokens of one text go together, so any two texts differ more than random routings do.
        verdict = "measured"
        note += ", but pairs of one category lie below that too: any two texts differ more than random routings, so this is no "
        note += "sign of a task"
    else:
        verdict, note = "reproduced", f"prompts of different categories route less alike than chance: {note}"
    return Claim("cosine across categories", measured, published.ACROSS, interval, float(null["across"]), None, verdict, note)


def _order(head: pd.Series, nulls: pd.DataFrame) -> Claim:
    values = [("across", float(head["across"])), ("within", float(head["within"]))]
    values += [(words, float(nulls.loc[name, "within"])) for name, words in BASELINES.items()]
    values.sort(key=lambda pair: pair[1])
    between = [w for w, v in values if w in BASELINES.values() and float(head["across"]) < v < float(head["within"])]
    outside = [w for w in BASELINES.values() if w not in between]
    verdict: Verdict = "not reproduced" if outside else "reproduced"
    note = " < ".join(f"{name} {value:.3f}" for name, value in values)
    if between and outside:
        note += f". It holds if load balance means {between[0]}, not if it means {outside[0]}"
    note += ". Where a baseline lies follows from the number of tokens: longer prompts raise it, whatever the task"
    measured = " < ".join(name for name, _ in values)
    return Claim("order of cosines", measured, published.ORDER, verdict=verdict, note=note)


def _effect(head: pd.Series, similarity: pd.DataFrame, nulls: pd.DataFrame) -> Claim:
    d, interval, p = float(head["d_pairs"]), _interval(head, "d"), float(head["p"])
    null = nulls.loc["own counts reshuffled"]
    corrected = similarity[(similarity["measure"] == "null_corrected") & (similarity["prompts"] == "all")].iloc[0]
    cues = _effect_cues(nulls, corrected)
    verdict: Verdict
    if not significant(p) or _as_far(nulls, "own counts reshuffled"):
        verdict, note = "explained by chance", "shuffled labels or randomly dealt routing separate as well"
    elif cues:
        verdict, note = "explained by a trivial cue", cues[0]
    elif interval[0] >= published.D / 2:
        verdict, note = "reproduced", "beats permuted labels, both load-balance baselines and token identity"
    else:
        verdict, note = (
            "not reproduced",
            "a separation beyond all nulls, but the interval reaches below half of the effect in the source",
        )
    note += (
        f". Interval and p from prompts; taking the {int(head['n_within'] + head['n_across']):,} pairs as independent would "
        f"claim {head['d_naive_low']:.2f} to {head['d_naive_high']:.2f}. With one value per prompt d is {head['d_prompts']:.2f}"
    )
    return Claim("Cohen's d of within over across", d, published.D, interval, float(null["d_pairs"]), p, verdict, note)


def _as_far(nulls: pd.DataFrame, name: str) -> bool:
    """Whether the measured separation lies within what the draws of a null reach (their upper 2.5 %)."""
    return bool(nulls.loc["measured routing", "d_pairs"] <= nulls.loc[name, "d_pairs_high"] + 1e-9)


def _effect_cues(nulls: pd.DataFrame, corrected: pd.Series) -> list[str]:
    """The trivial explanations that suffice, in words."""
    found = []
    if not significant(corrected["p"]):
        found.append("corrected for the prompts' lengths nothing is left of it")
    if "same token reshuffled" in nulls.index and _as_far(nulls, "same token reshuffled"):
        found.append(
            "choices dealt out among equal tokens separate as well "
            f"(d {nulls.loc['same token reshuffled', 'd_pairs']:.2f}): the words differ, not what is done with them"
        )
    if "random model" in nulls.index and nulls.loc["random model", "d_pairs"] >= nulls.loc["random model", "trained_d"]:
        found.append("a randomly initialised model separates the prompts as well")
    return found


def _ranges(means: pd.DataFrame) -> Claim:
    same = means["category"] == means["other"]
    own, other = means[same], means[~same]
    record = published.RECORD

    def span(low: float, high: float) -> str:
        return f"{low:.2f}–{high:.2f}"

    low = own.loc[own["cosine"].idxmin(), "category"]
    return Claim(
        "cosine by category: within; across",
        f"{span(own['cosine'].min(), own['cosine'].max())}; {span(other['cosine'].min(), other['cosine'].max())}",
        f"{span(*record['within_range'])}; {span(*record['across_range'])}",
        note=f"least alike within: {low}",
    )


def _depth(layers: pd.DataFrame) -> Claim:
    d = layers["d_pairs"].to_numpy()
    n = len(d)
    peak = int(layers["layer"].iloc[int(d.argmax())])
    carrying = int(layers["p_family"].map(significant).sum())
    measured = f"peak at layer {peak} of {n}"
    source = f"peak near layer {published.PEAK_LAYER} of {published.LAYERS}"
    by_layer = ", ".join(f"{layer}: {v:.2f}" for layer, v in zip(layers["layer"], d, strict=True)) if n <= _EXACT else ""
    note = f"layers count from 0; {carrying} of {n} with experts separate (family-wise p ≤ {ALPHA:g})"
    note += f"; d by layer {by_layer}" if by_layer else ""
    if n < 3 or np.ptp(d) == 0:
        return Claim("deeper layers separate more", measured, source, note=f"too few layers for a trend; {note}")
    rho = float(spearmanr(np.arange(n), d).statistic)
    p = _trend_p(d, rho)
    verdict: Verdict = "reproduced" if rho > 0 and significant(p) else "not reproduced"
    return Claim(
        "deeper layers separate more",
        measured,
        source,
        p=p,
        verdict=verdict,
        note=f"rank correlation with depth {rho:+.2f}; {note}",
    )


def _trend_p(d: np.ndarray, rho: float) -> float:
    """One-sided p of Spearman's rho: exact for few layers, else from 10,000 permutations."""
    n = len(d)
    ranks = d.argsort().argsort()
    if n <= _EXACT:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        orders = np.stack([np.random.default_rng(i).permutation(n) for i in range(10_000)])
    depth = np.arange(n) - (n - 1) / 2
    null = (ranks[orders] - (n - 1) / 2) @ depth / (depth @ depth)
    at_least = int((null >= rho - 1e-9).sum())
    # The enumeration holds the observed order itself; a sample does not.
    return at_least / len(orders) if n <= _EXACT else (1 + at_least) / (1 + len(orders))


def _length(similarity: pd.DataFrame, head: pd.Series) -> Claim:
    cut = similarity[similarity["prompts"].str.startswith("first ")].iloc[0]
    corrected = similarity[(similarity["prompts"] == "all") & (similarity["measure"] == "null_corrected")].iloc[0]
    matched = similarity[(similarity["prompts"] == "length-matched") & (similarity["measure"] == "cosine")]
    note = f"the {cut['prompts']} of {int(cut['n'])} prompts; whole prompts {head['d_pairs']:.2f}; whole and corrected for "
    note += f"random routing of their lengths {corrected['d_pairs']:.2f} (fewer tokens are also noisier)"
    if len(matched):
        row = matched.iloc[0]
        note += f"; {int(row['n'])} length-matched prompts {row['d_pairs']:.2f} ({row['d_low']:.2f} to {row['d_high']:.2f})"
    return Claim(
        "Cohen's d at equal lengths",
        float(cut["d_pairs"]),
        interval=_interval(cut, "d"),
        null=0.0,
        p=float(cut["p"]),
        verdict=beyond_chance(float(cut["p"])),
        note=note,
    )


def _identity(nulls: pd.DataFrame) -> Claim:
    null, d = nulls.loc["same token reshuffled"], float(nulls.loc["measured routing", "d_pairs"])
    enough = _as_far(nulls, "same token reshuffled")
    words = "token identity explains all of it" if enough else f"token identity explains {null['d_pairs'] / d:.0%} of it"
    return Claim(
        "Cohen's d beyond token identity",
        d - float(null["d_pairs"]),
        interval=(d - float(null["d_pairs_high"]), d - float(null["d_pairs_low"])),
        null=0.0,
        p=float(null["p"]),
        verdict="explained by a trivial cue" if enough else "measured",
        note=f"d {d:.2f} against {null['d_pairs']:.2f}: {words}; {null['note']}",
    )


def _twin(nulls: pd.DataFrame) -> Claim:
    row = nulls.loc["random model"]
    more = row["trained_d"] > row["d_pairs"]
    return Claim(
        "Cohen's d on prompt tokens, beside a random model",
        float(row["trained_d"]),
        null=float(row["d_pairs"]),
        verdict="measured" if more else "explained by a trivial cue",
        note=f"untrained weights of the same architecture separate the prompts {'less' if more else 'as well'}: "
        "they route by token and position alone",
    )


def _experts(experts: pd.DataFrame) -> Claim:
    carrying = experts[experts["p_family"].map(significant)]
    by_category = carrying["category"].value_counts()
    best = experts.loc[experts["eta2"].idxmax()]
    listing = ", ".join(f"{name} {n}" for name, n in by_category.items()) or "none"
    return Claim(
        "experts that tell categories apart",
        f"{len(carrying)} of {len(experts)}",
        null=0,
        p=float(best["p_family"]),
        verdict="measured" if len(carrying) else "explained by chance",
        note="family-wise over all experts and layers: in 95 % of shuffles none would; by favourite category: "
        f"{listing}. Strongest: "
        f"layer {int(best['layer'])} expert {int(best['expert'])}, chosen {best['lift']:.1f} times as often for "
        f"{best['category']} (eta² {best['eta2']:.2f}, which p is of)",
    )
