"""From evidence to claims: each published statement beside what was measured, what stands against it, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

import pandas as pd

from moescope.routing.separation import Estimate
from moescope.studies.signatures import published
from moescope.studies.signatures.claims_accuracy import FAMILY, accuracy_claims
from moescope.studies.signatures.claims_structure import clusters_claim, depth_claims, experts_claim, load_claims
from moescope.studies.signatures.evidence import HOW, Evidence, interval_of, unit_words
from moescope.studies.signatures.rivals import PAIR, SHUFFLED, TOKEN, TWIN, of_d
from moescope.studies.signatures.separations import LEXICAL
from moescope.study.verdicts import Case, Effect, reading, untested
from moescope.types import Claim, Control

# Of a dense model, whose "experts" are groups of its neurons, or neurons that are chosen.
_OF_GROUPS = {
    "are routed more alike": "activate neurons more alike",
    "Routing follows": "Which neurons are active follows",
    "layers with experts": "layers",
    " with experts": "",
    "Experts": "Groups of neurons",
    "experts": "groups",
    "expert ": "group ",
}
_OF_NEURONS = {
    "are routed more alike": "have neurons chosen more alike",
    "Routing follows": "Which neurons are chosen follows",
    "layers with experts": "layers",
    " with experts": "",
    "Experts": "Neurons",
    "experts": "neurons",
    "expert ": "neuron ",
}
# The two readings of "load balance", by their row in the table of nulls.
BASELINES = {"uniform": "uniform experts", "own counts reshuffled": "reshuffled counts"}


def signature_claims(tables: Mapping[str, pd.DataFrame], found: Evidence) -> list[Claim | Case]:
    """All claims of a signatures study, in the source's order."""
    similarity = tables["similarity"]
    head = similarity[(similarity["measure"] == "cosine") & (similarity["prompts"] == "all")].iloc[0]
    nulls = tables["routing_nulls"].set_index("null")
    claims = [
        *_cosines(head, tables["category_similarity"], found),
        _separation(head, found),
        *([_beyond_twin(found)] if "random model" in found.beyond else []),
        _cut(similarity, found),
        *accuracy_claims(tables["routing_accuracy"], found.told, found.subject, found.settings, same=found.same),
        *(_order(head, nulls, name, found) for name in BASELINES),
        *depth_claims(tables["routing_layers"], found),
        clusters_claim(found),
        # A group's activity is measured over its usual one, which makes an even load, and neurons have no capacity.
        *([] if found.grouped else load_claims(tables["routing_load"], tables["overflow"], found)),
        _beyond_tokens(nulls, found),
        experts_claim(tables["experts"], found),
    ]
    words = _OF_NEURONS if found.chosen else _OF_GROUPS
    return [_in_words(claim, words) for claim in claims] if found.grouped else claims


def _in_words(claim: Claim | Case, words: Mapping[str, str]) -> Claim | Case:
    """A claim on a dense model, in which nothing is routed: of its neurons or groups of them, in their words."""

    def told(text: str) -> str:
        return reduce(lambda said, pair: said.replace(*pair), words.items(), text)

    said: dict[str, Any] = {name: getattr(claim, name) for name in ("statement", "measured", "words")}
    said = {name: told(text) if isinstance(text, str) else text for name, text in said.items()}
    if isinstance(claim, Case):
        said["effect"] = replace(claim.effect, against=told(claim.effect.against))
    if claim.control is not None:
        name, value = claim.control.name, claim.control.value
        said["control"] = Control(told(name), told(value) if isinstance(value, str) else value)
    return replace(claim, **said)


def _cosines(head: pd.Series, means: pd.DataFrame, found: Evidence) -> list[Claim]:
    note = f"all pairs, as published; {unit_words(found.subject.cells())}. Its height follows from the number of tokens"
    own, other = means[means["category"] == means["other"]], means[means["category"] != means["other"]]
    record = published.RECORD
    span = "{:.2f}–{:.2f}".format
    ranges = "; ".join(span(part["cosine"].min(), part["cosine"].max()) for part in (own, other))
    low = own.loc[own["cosine"].idxmin(), "category"]
    source = published.given(f"{span(*record['within_range'])}; {span(*record['across_range'])}")
    return [
        Claim(
            f"Cosine of two prompts {where}",
            float(head[name]),
            "S1",
            published.given(value),
            interval_of(head, name),
            words=note,
        )
        for name, where, value in (
            ("within", "of one category", published.WITHIN),
            ("across", "of different categories", published.ACROSS),
        )
    ] + [
        Claim(
            "Cosine by category, lowest to highest: within; across",
            ranges,
            "S1",
            source,
            words=f"least alike within: {low}; no interval: extremes of the categories' means",
        )
    ]


def _separation(head: pd.Series, found: Evidence) -> Case:
    cells = found.subject.cells()
    d = Estimate(*(float(head[name]) for name in ("d", "d_low", "d_high", "p")))
    words = (
        f"measured over all pairs, as published, judged without pairs of one {cells.unit}; " if cells.unit != "prompt" else ""
    )
    return Case(
        "Prompts of one category are routed more alike than prompts of different ones (Cohen's d)",
        float(head["d_pairs"]),
        of_d(d, SHUFFLED, found.settings, "chance"),
        "S1",
        published.given(published.D),
        interval_of(head, "d_pairs"),
        rivals=found.rivals,
        not_run=found.not_run,
        same=found.same,
        family=FAMILY,
        words=words + unit_words(cells),
    )


def _beyond_twin(found: Evidence) -> Case:
    """A claim of its own: that prompts are told apart stands or falls by chance, how much of it was learnt by this."""
    beyond = found.beyond["random model"]["d"]
    return Case(
        "Prompts are separated by category more than in an untrained twin (Cohen's d)",
        beyond.value,
        of_d(beyond, TWIN, found.settings),
        "S1",
        interval=(beyond.low, beyond.high),
        words="on prompt tokens, which both models read",
    )


def _cut(similarity: pd.DataFrame, found: Evidence) -> Case:
    row = similarity[similarity["prompts"].str.startswith("first ")].iloc[0]
    d = Estimate(*(float(row[name]) for name in ("d", "d_low", "d_high", "p")))
    words = f"the {row['prompts']} of {int(row['n'])} prompts; fewer tokens are also noisier"
    matched = similarity[(similarity["prompts"] == "length-matched") & (similarity["measure"] == "cosine")]
    if len(matched):
        other = matched.iloc[0]
        words += f"; {int(other['n'])} length-matched prompts {other['d']:.2f} ({other['d_low']:.2f} to {other['d_high']:.2f})"
    return Case(
        "Prompts cut to one length are separated by category (Cohen's d)",
        d.value if d.value == d.value else float(row["d_pairs"]),
        of_d(d, SHUFFLED, found.settings, "chance"),
        "S1",
        interval=interval_of(row, "d"),
        words=words,
    )


def _order(head: pd.Series, nulls: pd.DataFrame, name: str, found: Evidence) -> Case:
    over, margin = found.beyond[name], found.settings.margin
    within, across = over["within"], over["across"]
    below = Estimate(-across.value, -across.high, -across.low, across.p)

    def weight(e: Estimate) -> float:
        return e.value / max(e.value - e.low, 1e-12)

    least = min((within, below), key=weight)  # both must hold, so the weaker decides
    baseline = float(nulls.loc[name, "within"])
    values = [("across", float(head["across"])), ("within", float(head["within"])), (BASELINES[name], baseline)]
    values.sort(key=lambda pair: pair[1])
    words = ", ".join(f"{what} {value:.3f}" for what, value in values)
    p = max(within.p, below.p)
    effect = Effect(
        least.value,
        least.low,
        least.high,
        f"load balance ({BASELINES[name]}), from which both cosines must stand apart",
        margin,
        None if pd.isna(p) else p,
        share=False,
    )
    if reading(effect, effect.p, found.settings.alpha) == "opposite":
        which = "of one category lie below" if least is within else "of different categories lie above"
        words += (
            f"; the null does not fit, and explains nothing: even prompts {which} it, since the tokens of a text go together"
        )
    return Case(
        f"Load balance ({BASELINES[name]}) lies between the cosines across and within categories",
        " < ".join(what for what, _ in values),
        effect,
        "S3",
        published.given(published.ORDER),
        control=Control(f"load balance: {BASELINES[name]}", baseline),
        family=HOW,
        words=f"{words}; the interval is of that distance",
    )


def _beyond_tokens(nulls: pd.DataFrame, found: Evidence) -> Claim | Case:
    statement = "Routing follows the category beyond the identity of the tokens (Cohen's d)"
    token, pair = LEXICAL
    if token not in found.beyond:
        why = next(words for words in found.not_run if words.startswith(token))
        return untested(Claim(statement, "not measured", "S7"), f"not run: {why}")
    left = found.beyond[token]["d"]
    d, null = float(nulls.loc[token, "measured_d"]), float(nulls.loc[token, "d"])
    return Case(
        statement,
        left.value,
        of_d(left, TOKEN, found.settings),
        "S7",
        interval=None if pd.isna(left.low) else (left.low, left.high),
        control=Control("choices dealt out among equal tokens", null),
        rivals=(of_d(found.beyond[pair]["d"], PAIR, found.settings),) if pair in found.beyond else (),
        not_run=tuple(words for words in found.not_run if words.startswith(pair)),
        family=FAMILY,
        words=f"d {d:.2f} against {null:.2f}; {nulls.loc[token, 'note']}",
    )
