"""What a pruning study says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moescope.stats import group_bootstrap
from moescope.study.paired import beyond_sets
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

UNIT = "nats a token"


def prune_claims(table: pd.DataFrame, headline: list[Case]) -> list[Claim | Case]:
    """Those on the mask that is handed out, then one of each other criterion and ratio, which is shown and not judged."""
    judged = {case.statement for case in headline}
    others = [_shown(row, table) for row in table.query("criterion != 'random'").to_dict("records")]
    return [*headline, *(c for c in others if not any(s.startswith(c.statement) for s in judged))]


def mask_cases(
    criterion: str, ratio: float, own: np.ndarray, random: np.ndarray, groups: np.ndarray, *, margin: float, seed: int
) -> list[Case]:
    """Does the mask cost less than random ones, and is what it costs within the margin?

    Args:
        own: (N,) loss added on each text, nats a token; random: (R, N), the same under random masks.
        groups: (N,) the texts' documents.
    """
    name = f"pruning {ratio:.1%} by {criterion}"
    against = f"random masks ({len(random)})"
    spared = beyond_sets(own, random, groups, against, margin, seed, alternative=-1, unit=UNIT)
    # losses are no proportions: where none changed there is no doubt for Wilson's interval to add
    low, high = group_bootstrap(own, groups, seed=seed) if own.any() else (0.0, 0.0)
    control = Control("random masks, mean", float(random.mean()))
    return [
        Case(
            f"{name}: costs less than random masks do",
            float(own.mean()),
            spared,
            interval=(low, high),
            control=control,
            words=f"loss added, {UNIT}, experts banned and none retrained; p is the larger of that over masks "
            "and that over documents",
        ),
        Case(
            f"{name}: costs no more than {margin:g} {UNIT}",
            float(own.mean()),
            Effect(
                0.0 - float(own.mean()), 0.0 - high, 0.0 - low, "the whole model", margin, no_worse=True, share=False, unit=UNIT
            ),
            interval=(low, high),
            control=control,
        ),
    ]


def _shown(row: dict[str, Any], table: pd.DataFrame) -> Claim:
    null = table.query("criterion == 'random' and ratio == @row['ratio']").iloc[0]
    return Claim(
        f"pruning {row['ratio']:.1%} by {row['criterion']}",
        row["effect"],
        interval=(row["low"], row["high"]),
        control=Control("random masks, mean", float(null["effect"])),
        words=f"loss added, {UNIT}; beside the mask that is handed out, and not judged",
    )
