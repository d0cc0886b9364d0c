"""What a series of checkpoints says about a circuit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moescope.stats import Difference, Jump
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


def log_steps(steps: Sequence[int]) -> np.ndarray:
    """(T,) log2 of the steps plus one, along which a smooth curve is one that takes a fourfold training to rise."""
    return np.asarray(np.log2(1.0 + np.asarray(steps, float)))


def jump_case(rows: Sequence[dict[str, Any]], task: str, jump: Jump, settings: SearchSettings) -> Case:
    """Whether the circuit's accuracy has a phase transition: a rise that no smooth curve in the logarithm of training has.

    Args:
        rows: of the table ``dynamics``, one per checkpoint.
    """
    before, after = rows[jump.after], rows[jump.after + 1]
    between = f"between steps {before['step']} and {after['step']}"
    against = "a smooth curve has there, whose rise takes a fourfold training or more"
    words = f"{between} the balanced accuracy goes from {before['balanced']:.1%} to {after['balanced']:.1%}"
    if jump.hidden:
        words += "; a larger change lies between checkpoints that are too far apart to tell"
    return Case(
        f"{task}: the circuit forms in a jump, not smoothly",
        jump.rise,
        Effect(jump.size, jump.low, jump.high, against, settings.margin, jump.p, kind="none found", seen=jump.hidden),
        id="H21",
        control=Control("smooth curve", jump.rise - jump.size),
        words=words,
    )
