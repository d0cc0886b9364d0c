"""What a steering study says, in words and with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from moescope.study.verdicts import beyond_chance, significant
from moescope.types import Claim, Verdict

if TYPE_CHECKING:
    from moescope.studies.steer.steering import Steering


def steering_claims(steering: Steering, effects: pd.DataFrame) -> list[Claim]:
    """One claim per category that is no target, and for a target one per matching and one on its selectivity."""
    rows = effects.query("steering == @steering.name")
    claims = []
    for row in rows.to_dict("records"):
        if row["target"]:
            claims.append(_target_claim(steering, row))
        elif row["match"] == "overall":
            claims.append(_plain_claim(steering, row))
    return sorted(claims, key=lambda c: not c.details["target"])


_MATCHED = {"overall": "usage over all text", "target": "usage in the category"}


def _target_claim(steering: Steering, row: dict[str, Any]) -> Claim:
    verb, p = ("hurts", row["p_harm"]) if steering.aim == "harm" else ("helps", row["p_help"])
    sign = 1 if steering.aim == "harm" else -1
    clear = min(sign * row["excess_low"], sign * row["excess_high"]) > 0 and significant(p)
    matched = f"matched random experts (layer, {_MATCHED[row['match']]})"
    if row["category"] == "selectivity":
        what = f"{steering.name}: {verb} {steering.target} more than other text, beyond {matched}"
    else:
        what = f"{steering.name}: {verb} {steering.target} more than {matched} do"
    verdict: Verdict = "measured" if clear else "explained by chance"
    if not clear:
        answer = "not beyond the interval" if significant(p) else "it does not"
    elif min(sign * row["low"], sign * row["high"]) > 0:
        answer = "it does"
    else:  # random sets do the opposite: that alone makes an excess
        answer = f"only against random ones, in itself it {verb} not"
    effect = f"effect {row['effect']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] nats a token"
    note = f"{answer}: {effect}; {_random(row)}; measured is the excess over their mean; usage ratio {row['usage_ratio']:.2f}"
    return Claim(
        name=what,
        measured=row["excess"],
        interval=(row["excess_low"], row["excess_high"]),
        null=0.0,
        p=p,
        verdict=verdict,
        note=note,
        details={"target": True, "match": row["match"]},
    )


def _plain_claim(steering: Steering, row: dict[str, Any]) -> Claim:
    p = min(1.0, 2 * min(row["p_harm"], row["p_help"]))
    return Claim(
        name=f"{steering.name}: loss on {row['category']}",
        measured=row["effect"],
        interval=(row["low"], row["high"]),
        null=row["random_mean"],
        p=p,
        verdict=beyond_chance(p),
        note=f"change from {row['baseline']:.3f} nats a token; {_random(row)}; p is two-sided",
        details={"target": False, "match": row["match"]},
    )


def _random(row: dict[str, Any]) -> str:
    return f"{row['n_random']} random sets {row['random_mean']:+.3f} [{row['random_low']:+.3f}, {row['random_high']:+.3f}]"
