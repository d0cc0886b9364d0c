"""Claims on telling the category from the signature: beyond guessing, beyond the best cue, beyond what groups leak."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import pandas as pd

from moescope.routing.separation import Estimate
from moescope.routing.subject import Subject
from moescope.studies.signatures import published
from moescope.studies.signatures.classifications import STREAM, Told
from moescope.studies.signatures.rivals import effect_of
from moescope.studies.signatures.settings import SignatureSettings
from moescope.study.verdicts import Case, reading
from moescope.types import Claim, Control

FAMILY = "routing by category"
"""Family of the claims that ask whether categories are told apart."""
_NOTHING = Estimate(math.nan, math.nan, math.nan, math.nan)
_STATEMENTS = {
    "stratified": "The signature tells the category of held-out prompts (accuracy)",
    "by topic": "The signature tells the category on topics not trained on (accuracy)",
    "by template": "The signature tells the category on templates not trained on (accuracy)",
}


def accuracy_claims(
    accuracy: pd.DataFrame, told: Mapping[str, Told], subject: Subject, settings: SignatureSettings, *, same: bool
) -> list[Claim | Case]:
    """The published accuracy and macro F1 in stratified folds, and the accuracy under the grouped splits."""
    head = told["stratified"].row
    permuted = accuracy[accuracy["kind"] == "null"]
    words = ""
    if len(permuted):
        words = f"labels permuted {float(permuted.iloc[0]['accuracy']):.1%}"
    claims: list[Claim | Case] = [_case("stratified", told, subject, settings, words, same=same)]
    claims.append(
        Claim(
            "Macro F1 of the category",
            float(head["macro_f1"]),
            "S2",
            published.given(published.MACRO_F1),
            (float(head["f1_low"]), float(head["f1_high"])),
            Control("guessing", 1 / len(subject.categories)),
            words="the predictions that the accuracy judges",
        )
    )
    claims += [_case(split, told, subject, settings) for split in ("by topic", "by template") if split in told]
    return claims + ([_beside_stream(told, accuracy, settings)] if told["stratified"].stream else [])


def _beside_stream(told: Mapping[str, Told], accuracy: pd.DataFrame, settings: SignatureSettings) -> Case:
    """Whether the choice tells as much as a probe of what it is made from."""
    found = told["stratified"]
    assert found.stream is not None
    beside, chance = found.stream
    against = "a probe of the residual stream"
    told_apart = reading(
        effect_of(chance, "guessing", settings.margin), None if math.isnan(chance.p) else chance.p, settings.alpha
    )
    if told_apart == "shown":
        effect = effect_of(beside._replace(p=math.nan), against, settings.margin, no_worse=True)
    else:  # a yardstick that is itself not told apart from chance measures nothing
        effect = effect_of(_NOTHING, f"{against}, which is not told apart from chance", settings.margin, no_worse=True)
    probe = accuracy[accuracy["features"] == STREAM].set_index("split")["balanced"]
    level = float(probe["stratified"])
    others = [f"{split} {float(told[split].row['balanced']):.1%} and {float(probe[split]):.1%}" for split in probe.index[1:]]
    return Case(
        "The signature tells the category as well as the residual stream does (balanced accuracy)",
        float(found.row["balanced"]),
        effect,
        interval=None if math.isnan(beside.low) else (level + beside.low, level + beside.high),
        control=Control("the residual stream, mean over tokens, all layers", level),
        words="; ".join(
            [*others, "both by logistic regression in the same folds; difference paired, interval from whole cells"]
        ),
    )


def _case(
    split: str, told: Mapping[str, Told], subject: Subject, settings: SignatureSettings, words: str = "", *, same: bool = False
) -> Case:
    found = told[split]
    rivals, not_run = [], []
    if found.chosen:
        chosen = ", ".join(name for name, _ in Counter(found.chosen).most_common())
        rivals.append(
            effect_of(found.cue, f"the best cue of each training fold ({chosen})", settings.margin, kind="trivial cue")
        )
    else:
        not_run.append("trivial cues (neither texts nor token ids)")
    if subject.texts is None and found.chosen:
        not_run.append("length, bag of words and bigrams (no texts)")
    if subject.trace.tokens is None and found.chosen:
        not_run.append("token ids (the trace has none)")
    if split == "stratified":
        for unit, known in (("topic", subject.topics), ("template", subject.templates)):
            if known is None:
                not_run.append(f"{unit}s not trained on (no {unit}s)")
                continue
            apart = told[f"by {unit}"].chance if f"by {unit}" in told else _NOTHING
            rivals.append(effect_of(apart, f"guessing on {unit}s not trained on", settings.margin, kind="leakage"))
    row = found.row
    parts = [words, f"balanced accuracy decides, {row['balanced']:.1%}; interval from whole {found.unit}"]
    if found.chosen:
        parts.append(f"the chosen cue alone {found.cue_accuracy:.1%}, with the signature {found.both_accuracy:.1%}")
    return Case(
        _STATEMENTS[split],
        float(row["accuracy"]),
        effect_of(found.chance, "guessing", settings.margin),
        "S2",
        published.given(published.ACCURACY) if split == "stratified" else None,
        (float(row["low"]), float(row["high"])),
        Control("the best cue, chosen in the training folds", found.cue_accuracy) if found.chosen else None,
        rivals=tuple(rivals),
        not_run=tuple(not_run),
        same=same,
        family=FAMILY,
        words="; ".join(part for part in parts if part),
    )
