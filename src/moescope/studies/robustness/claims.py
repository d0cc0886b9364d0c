"""What a robustness study says, in words and with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moescope.stats import paired_bootstrap_difference, wilson
from moescope.studies.robustness.attack import Attack
from moescope.studies.robustness.settings import RobustnessSettings
from moescope.types import Claim


def robustness_claims(changes: pd.DataFrame, attack: Attack | None, settings: RobustnessSettings, seed: int = 0) -> list[Claim]:
    """One claim per change, then those on the search."""
    claims = [_change_claim(row) for row in changes.to_dict("records")]
    if attack is not None:
        claims += _attack_claims(attack, settings, seed)
    return claims


def _change_claim(row: dict[str, Any]) -> Claim:
    name = row["change"]
    return Claim(
        name=f"{name}: the monitor's answer flips",
        measured=row["flips"],
        interval=(row["flips_low"], row["flips_high"]),
        p=row["p"],
        note=f"signatures move {row['relative']:.2f} [{row['relative_low']:.2f}, {row['relative_high']:.2f}] of the distance "
        f"within a category ({row['corrected_relative']:.2f} null-corrected); {row['unmoved']:.0%} do not move; accuracy "
        f"{row['accuracy_before']:.1%} to {row['accuracy_after']:.1%} (p of that)",
    )


def _attack_claims(attack: Attack, settings: RobustnessSettings, seed: int) -> list[Claim]:
    n = len(attack.clean)
    flipped = {name: getattr(attack, name) < 0 for name in ("first", "random", "search")}
    rate = {name: float(hits.mean()) for name, hits in flipped.items()}
    gained = paired_bootstrap_difference(flipped["search"], flipped["random"], seed=seed)
    deeper = paired_bootstrap_difference(attack.search, attack.random, seed=seed)
    low, high = wilson(int(flipped["search"].sum()), n)
    what = f"{settings.suffix_tokens} tokens, {settings.queries} queries"
    return [
        Claim(
            name=f"a searched suffix flips the monitor ({what})",
            measured=rate["search"],
            interval=(low, high),
            null=rate["random"],
            p=gained.p,
            verdict="measured" if gained.low > 0 else "explained by chance",
            note=f"of {n} prompts that it got right; one random suffix {rate['first']:.1%}, the best of {settings.queries} "
            f"random ones {rate['random']:.1%} (null); search minus that {gained.value:+.1%} "
            f"[{gained.low:+.1%}, {gained.high:+.1%}]",
        ),
        Claim(
            name=f"a searched suffix lowers the margin further than random ones ({what})",
            measured=deeper.value,
            interval=(deeper.low, deeper.high),
            null=0.0,
            p=deeper.p,
            verdict="measured" if deeper.high < 0 else "explained by chance",
            note=f"log odds of the true category, medians: clean {np.median(attack.clean):+.2f}, one random "
            f"{np.median(attack.first):+.2f}, best random {np.median(attack.random):+.2f}, searched "
            f"{np.median(attack.search):+.2f}",
        ),
    ]
