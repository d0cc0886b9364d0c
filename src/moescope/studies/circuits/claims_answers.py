"""From measured effects to cases: what neurons say of whether the model's own answer is right."""

from __future__ import annotations

import pandas as pd

from moescope.studies.circuits.answers import CONFIDENCE, EVERYTHING, PLACES
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

_STATEMENTS = {
    CONFIDENCE: "than the answer's own log-probability and entropy",
    EVERYTHING: "than its log-probability, entropy, length, words and difficulty together",
}


def answer_claims(answers: pd.DataFrame, beyond: pd.DataFrame, settings: CircuitSettings) -> list[Claim | Case]:
    """For each answered task: how often it is right, and what a circuit adds to the answer's own confidence."""
    claims: list[Claim | Case] = []
    for name in dict.fromkeys(answers["task"]):
        every = answers.query("task == @name and difficulty == 'all'").iloc[0]
        parts = answers.query("task == @name and difficulty != 'all'")
        by_level = "".join(f"; {row['difficulty']} {row['right']:.1%} of {row['n']}" for _, row in parts.iterrows())
        claims.append(
            Claim(
                f"{name}: share of the questions that the model answers rightly",
                float(every["right"]),
                id="H19",
                interval=(float(every["low"]), float(every["high"])),
                control=Control("its commonest answer, share of all", float(every["commonest_share"])),
                words=f"{every['n']} questions, {every['tokens']:.1f} tokens an answer; commonest {every['commonest']!r}"
                f"{by_level}",
            )
        )
        size = f"{settings.k} neuron{'s' if settings.k > 1 else ''}"
        rivals = beyond.query("task == @name").set_index("rival")
        for rival, than in _STATEMENTS.items():
            row = rivals.loc[rival]
            value, low, high = (float(row[column]) for column in ("gain", "gain_low", "gain_high"))
            both = float(row["both_auroc"])
            others = "; ".join(
                f"with {other} {one['rival_auroc']:.3f} to {one['both_auroc']:.3f}"
                for other, one in rivals.iterrows()
                if other not in _STATEMENTS
            )
            alone = float(row["rival_auroc"])
            against = f"{rival} alone (AUROC {alone:.3f}{', less than a guess, for which it counts' if alone < 0.5 else ''})"
            drawn = (
                f"{row['n_draws']} permutations among answers that the rival holds for alike"
                if row["n_draws"]
                else "no permutations"
            )
            claims.append(
                Case(
                    f"{name}: {size} tell more of whether the answer is right {than}",
                    both,
                    Effect(value, low, high, against, settings.margin, float(row["p"]), kind="trivial cue"),
                    id="H19",
                    interval=(max(0.0, both - value + low), min(1.0, both - value + high)),
                    control=Control(f"{rival} alone", alone),
                    family=f"{name}: answers",
                    words=f"AUROC of both together, read {PLACES[row['at']]}; the interval is that of the gain; neurons alone "
                    f"{row['circuit_auroc']:.3f}; {others}; {drawn}",
                )
            )  # fmt: skip
    return claims
