"""What a pruning study says."""

from __future__ import annotations

from typing import Any

import pandas as pd

from moescope.study.verdicts import beyond_chance, significant
from moescope.types import Claim


def prune_claims(table: pd.DataFrame) -> list[Claim]:
    """One claim for each criterion and ratio, beside random experts at that ratio."""
    return [_claim(row, table) for row in table.query("criterion != 'random'").to_dict("records")]


def _claim(row: dict[str, Any], table: pd.DataFrame) -> Claim:
    null = table.query("criterion == 'random' and ratio == @row['ratio']").iloc[0]
    word = "less than" if significant(row["p"]) else "no less than"
    return Claim(
        name=f"pruning {row['ratio']:.1%} by {row['criterion']}: loss added",
        measured=row["effect"],
        interval=(row["low"], row["high"]),
        null=float(null["effect"]),
        p=row["p"],
        verdict=beyond_chance(row["p"]),
        note=f"costs {word} random experts do ({int(null['masks'])} masks); nats a token, experts banned, none retrained",
    )
