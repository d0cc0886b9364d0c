"""What a series of checkpoints says about a circuit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moescope.stats import Difference
from moescope.studies.circuits.settings import SearchSettings
from moescope.study.verdicts import Case, Effect
from moescope.types import Control


def formation_case(
    rows: Sequence[dict[str, Any]], task: str, gained: Difference, beyond: Effect, settings: SearchSettings
) -> Case:
    """How the last checkpoint stands to the first, and what it adds to the trivial cues, which no checkpoint changes.

    Args:
        rows: of the table ``dynamics``, one per checkpoint. gained: last minus first checkpoint, paired.
        beyond: cue and circuit of the last checkpoint beyond the cue.
    """
    first, last = rows[0], rows[-1]
    half = (first["balanced"] + last["balanced"]) / 2
    formed = next(row["step"] for row in rows if row["balanced"] >= half)
    against = f"the first checkpoint's circuit (step {first['step']}, {first['balanced']:.1%})"
    return Case(
        f"{task}: the circuit forms in training",
        last["balanced"],
        Effect(gained.value, gained.low, gained.high, against, settings.margin, gained.p, kind="none found"),
        id="H21",
        control=Control("first checkpoint", first["balanced"]),
        rivals=(beyond,),
        words=f"balanced accuracy, whose interval is that of the gain; half way between the two at step {formed}",
    )
