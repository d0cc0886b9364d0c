"""What a series of checkpoints says about a circuit."""

from __future__ import annotations

import pandas as pd

from moescope.types import Claim


def formation_claim(table: pd.DataFrame, task: str, surface: float) -> Claim:
    """How the last checkpoint stands to the first, beside the best surface baseline, which no checkpoint changes."""
    rows = table[table["task"] == task]
    first, last = rows.iloc[0], rows.iloc[-1]
    half = (float(first["accuracy"]) + float(last["accuracy"])) / 2
    formed = rows.loc[rows["accuracy"] >= half, "step"].iloc[0]
    gained = float(last["low"]) > float(first["high"])
    return Claim(
        name=f"{task}: the circuit forms in training",
        measured=float(last["accuracy"]),
        interval=(float(last["low"]), float(last["high"])),
        null=surface,
        verdict="measured",
        note=f"step {int(first['step'])}: {float(first['accuracy']):.1%}; "
        + (
            f"half of the gain is there at step {int(formed)}"
            if gained
            else "the last checkpoint is not better than the first beyond the interval: no formation seen"
        )
        + "; the null is the best surface baseline",
    )
