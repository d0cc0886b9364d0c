"""What a robustness study says, in words and with intervals."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from moescope.stats import wilson
from moescope.studies.robustness.attack import Attack
from moescope.studies.robustness.settings import RobustnessSettings
from moescope.study.paired import paired_effect
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

_CHANGES, _SEARCH = "changes that keep the meaning", "searched suffixes"


def robustness_claims(
    changes: pd.DataFrame, known: Effect, attack: Attack | None, settings: RobustnessSettings, seed: int = 0
) -> list[Claim | Case]:
    """One claim per change, then those on the search.

    Args:
        known: what the monitor knows of unchanged prompts beyond chance, without which there is nothing to lose.
    """
    claims = [_change(row, known, settings.margin) for row in changes.to_dict("records")]
    return claims if attack is None else [*claims, *attack_cases(attack, settings, seed)]


def _change(row: dict[str, Any], known: Effect, margin: float) -> Claim | Case:
    lost = row["accuracy_after"] - row["accuracy_before"]
    interval = (row["accuracy_change_low"], row["accuracy_change_high"])
    statement = f"{row['change']}: the monitor names as many prompts rightly as before"
    words = (
        f"its answer flips for {row['flips']:.1%} [{row['flips_low']:.1%}, {row['flips_high']:.1%}]; signatures move "
        f"{row['relative']:.2f} [{row['relative_low']:.2f}, {row['relative_high']:.2f}] of the distance within a category "
        f"({row['corrected_relative']:.2f} null-corrected); {row['unmoved']:.0%} do not move"
    )
    control = Control("before the change", row["accuracy_before"])
    if row["change"] == "identity":
        said = f"no text is changed: the control that must give nought; {words}; by construction, so without an interval"
        return Claim(statement, lost, control=control, outcome="identity", words=said)
    return Case(
        statement,
        lost,
        Effect(lost, *interval, "the prompts as they are", margin, no_worse=True),
        id="S9",
        interval=interval,
        control=control,
        rivals=(dataclasses.replace(known, against=f"{known.against}, by the monitor before the change"),),
        family=_CHANGES,
        words=f"accuracy {row['accuracy_before']:.1%} to {row['accuracy_after']:.1%}; {words}",
    )


def attack_cases(attack: Attack, settings: RobustnessSettings, seed: int) -> list[Case]:
    """Does a search do more than as many random suffixes, to the monitor's answer and to its margin?"""
    n = len(attack.clean)
    flipped = {name: (getattr(attack, name) < 0).astype(float) for name in ("first", "random", "search")}
    rate = {name: float(hits.mean()) for name, hits in flipped.items()}
    rows, against = np.arange(n), f"the best of {settings.queries} random suffixes"
    what = f"{settings.suffix_tokens} tokens, {settings.queries} queries"
    odds = {"share": False, "unit": "nats"}
    further = paired_effect(attack.random, attack.search, rows, against, settings.odds_margin, seed, **odds)
    medians = ", ".join(
        f"{name} {np.median(values):+.2f}"
        for name, values in (
            ("clean", attack.clean),
            ("one random", attack.first),
            ("best random", attack.random),
            ("searched", attack.search),
        )
    )
    return [
        Case(
            f"a searched suffix flips the monitor more often than random ones ({what})",
            rate["search"],
            paired_effect(flipped["search"], flipped["random"], rows, against, settings.margin, seed),
            id="S9",
            interval=wilson(int(flipped["search"].sum()), n),
            control=Control(against, rate["random"]),
            family=_SEARCH,
            words=f"of {n} prompts that it got right; one random suffix flips {rate['first']:.1%}",
        ),
        Case(
            f"a searched suffix lowers the margin further than random ones ({what})",
            further.value,
            further,
            id="S9",
            interval=(further.low, further.high),
            control=Control("one random suffix", float((attack.random - attack.first).mean())),
            family=_SEARCH,
            words=f"log odds of the true category, medians: {medians}",
        ),
    ]
