"""Claims on depth, clusters, load and experts."""

from __future__ import annotations

import pandas as pd

from moescope.studies.signatures import published
from moescope.studies.signatures.evidence import HOW, Evidence, interval_of, unit_words
from moescope.studies.signatures.rivals import SHUFFLED, TWIN, effect_of
from moescope.study.verdicts import Case, Effect, significant, untested
from moescope.types import Claim, Control

_BOTTLENECK = 2.0  # times a fair share
_NAMED = 6  # bottlenecks that words list


def depth_claims(layers: pd.DataFrame, found: Evidence) -> list[Claim | Case]:
    """Whether deeper layers separate more, and where the most does."""
    n = len(layers)
    statement, record = "Deeper layers separate categories more (correlation of d with depth)", published.RECORD
    carrying = layers[layers["p_family"].map(lambda p: significant(p, found.settings.alpha))]
    peak = layers.loc[layers["d"].idxmax()] if layers["d"].notna().any() else layers.iloc[0]
    claims: list[Claim | Case] = []
    if found.trend is None:
        why = "too few layers for a trend" if n < 3 else "every layer separates alike, or none can be judged"
        claims.append(untested(Claim(statement, f"{n} layers", "S4"), why))
    else:
        trend = found.trend
        p = None if pd.isna(trend.p) else trend.p
        effect = Effect(trend.value, trend.low, trend.high, "no trend", found.settings.margin_trend, p, share=False)
        interval = None if pd.isna(trend.low) else (trend.low, trend.high)
        words = f"p is the larger of that of the layers' order and that of the interval over {found.subject.cells().unit}s"
        claims.append(Case(statement, trend.value, effect, "S4", interval=interval, family=HOW, words=words))
    listing = f"{len(carrying)} of {n} layers with experts separate (family-wise p at {found.settings.alpha:g})"
    where = f"layer {int(peak['layer'])}, number {int(layers.index.get_loc(peak.name)) + 1} of {n} with experts"
    claims.append(
        Claim(
            "Number of the layer that separates categories most (layers count from 0)",
            int(peak["layer"]),
            "S4",
            published.given(published.PEAK_LAYER, f"of {record['layers']} layers"),
            words=f"{where}, d {peak['d']:.2f} ({peak['d_low']:.2f} to {peak['d_high']:.2f}); {listing}; no interval: "
            "the place of a maximum",
        )
    )
    return claims


def clusters_claim(found: Evidence) -> Case:
    """Whether prompts cluster by category."""
    e = found.clusters
    p = None if pd.isna(e.p) else e.p
    return Case(
        "Prompts cluster by category (silhouette of their signatures, −1 to 1)",
        e.value if e.value == e.value else "no pair to compare",
        Effect(e.value, e.low, e.high, "at the border between two categories", found.settings.margin, p, share=False),
        "S5",
        interval=None if pd.isna(e.low) else (e.low, e.high),
        family=HOW,
        words=f"cosine distance over all layers, not the map's two dimensions; {unit_words(found.subject.cells())}",
    )


def load_claims(loads: pd.DataFrame, overflow: pd.DataFrame, found: Evidence) -> list[Claim | Case]:
    """Whether the load is spread, who carries most of it, and what experts with a capacity would drop."""
    gap, margin = found.load, found.settings.margin_load
    effective, balanced = float(loads["effective"].mean()), float(loads["balanced_effective"].mean())
    p = None if pd.isna(gap.p) else gap.p
    most = loads.loc[loads["most"].idxmax()]
    over = loads[loads["most_low"] > _BOTTLENECK].sort_values("most", ascending=False)
    named = ", ".join(f"layer {int(r.layer)} expert {int(r.busiest)} ({r.most:.1f})" for r in over.head(_NAMED).itertuples())
    listing = f"surely above {_BOTTLENECK:g} fair shares: {named or 'none'}" + (" and others" if len(over) > _NAMED else "")
    return [
        Case(
            "The load is spread over the experts (effective share of the experts, mean over layers)",
            effective,
            Effect(gap.value, gap.low, gap.high, "balanced routing of as many tokens", margin, None, no_worse=True),
            "S6",
            interval=None if pd.isna(gap.low) else (balanced + gap.low, balanced + gap.high),
            control=Control("balanced routing of as many tokens", balanced),
            family="" if p is None else HOW,
            words=f"the exponential of the load's entropy over the number of experts; entropy {loads['entropy'].min():.3f} to "
            f"{loads['entropy'].max():.3f} of its largest by layer, Gini coefficient {loads['gini'].mean():.3f} where balanced "
            f"routing has {loads['balanced_gini'].mean():.3f}, {int(loads['idle'].sum())} experts never chosen",
        ),
        Claim(
            "Load of the busiest expert, over a fair share",
            float(most["most"]),
            "S6",
            interval=interval_of(most, "most"),
            control=Control("busiest expert under balanced routing of as many tokens", float(most["balanced_most"])),
            words=f"layer {int(most['layer'])} expert {int(most['busiest'])}, the largest of {len(loads)} layers, which the "
            f"interval does not count; {listing}",
        ),
        _overflow(overflow),
    ]


def _overflow(table: pd.DataFrame) -> Claim:
    """Of the largest batch, at the smallest capacity that leaves room."""
    batch = table[table["tokens"] == table["tokens"].max()]
    roomy = batch[batch["capacity_factor"] > 1]
    row = (roomy if len(roomy) else batch).sort_values("capacity_factor").iloc[0]
    low, high = float(row["low"]), float(row["high"])
    return Claim(
        f"Choices that experts of {row['capacity_factor']:g} fair shares would drop, in batches of {int(row['tokens'])} tokens",
        float(row["dropped"]),
        "S6",
        interval=None if pd.isna(low) else (low, high),
        control=Control("uniform router", float(row["uniform"])),
        words=f"under a uniform router {row['uniform']:.1%} ({row['uniform_low']:.1%} to {row['uniform_high']:.1%} of draws); "
        "other capacities and batches stand in the table overflow"
        + ("; no interval of a single template" if pd.isna(low) else ""),
    )


def experts_claim(experts: pd.DataFrame, found: Evidence) -> Case:
    """Whether experts are specialised by category."""
    carrying = experts[experts["p_family"].map(lambda p: significant(p, found.settings.alpha))]
    listing = ", ".join(f"{name} {n}" for name, n in carrying["category"].value_counts().items()) or "none"
    best = experts.loc[experts["eta2"].idxmax()]
    margin = found.settings.margin
    rivals: tuple[Effect, ...] = ()
    not_run = tuple(words for words in found.not_run if words.startswith(TWIN))
    if found.twin_experts is not None:
        rivals = (effect_of(found.twin_experts, TWIN, margin, kind="trivial cue"),)
    return Case(
        "Experts are specialised by category (variance of their use that categories explain)",
        f"{len(carrying)} of {len(experts)} experts",
        effect_of(found.experts, SHUFFLED, margin),
        "S7",
        control=Control("experts of the untrained twin that prefer a category", found.twin_carrying) if rivals else None,
        rivals=rivals,
        not_run=not_run,
        family=HOW,
        words=f"counted family-wise over all experts and layers; by favourite category: {listing}; strongest: layer "
        f"{int(best['layer'])} expert {int(best['expert'])}, chosen {best['lift']:.1f} times as often for {best['category']} "
        f"(eta² {best['eta2']:.2f}); no interval of the count: that of the mean share stands behind the verdict",
    )
