"""What an atlas says: do experts prefer tokens and categories, on prompts that did not choose these, and beyond what?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moescope.routing.separation import Cells, estimate
from moescope.studies.atlas.held_out import HeldOut, bits
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control, Explanation

TWIN, IDENTITY = "an untrained twin, prompts alone", "token identity"
UNIT = "bits"


@dataclass(frozen=True, eq=False)
class Found:
    """What was confirmed: of all tokens, and beside a twin of the prompts' tokens."""

    whole: HeldOut
    prompt: HeldOut | None
    twin: HeldOut | None
    cells: Cells
    """of the judging sequences"""
    several: bool
    """whether there are two categories or more"""


def atlas_claims(found: Found, margin: float) -> list[Case | Claim]:
    """Tokens, categories, and how many experts have a label."""
    whole, twin = found.whole, (found.prompt, found.twin) if found.prompt is not None and found.twin is not None else None
    claims: list[Case | Claim] = [
        _case(
            "The tokens that reach an expert most on half of the prompts reach it most on the other half (bits)",
            whole.tokens,
            found.cells,
            margin,
            [(bits(twin[0].tokens) - bits(twin[1].tokens), TWIN)] if twin else [],
            Control(TWIN, float(bits(twin[1].tokens)[0])) if twin else None,
        )
    ]
    statement = "The category that uses an expert most on half of the prompts uses it most on the other half (bits)"
    if found.several:
        rivals = [(bits(whole.categories) - bits(whole.identity), IDENTITY)]
        rivals += [(bits(twin[0].categories) - bits(twin[1].categories), TWIN)] if twin else []
        control = Control(IDENTITY, float(bits(whole.identity)[0]))
        claims.append(_case(statement, whole.categories, found.cells, margin, rivals, control))
    else:
        claims.append(Claim(statement, math.nan, outcome="not tested", words="needs prompts of two categories or more"))
    return [*claims, _labelled(found)]


def _case(
    statement: str,
    preference: np.ndarray,
    cells: Cells,
    margin: float,
    rivals: list[tuple[np.ndarray, str]],
    control: Control | None,
) -> Case:
    effect = _effect(bits(preference), cells, margin, "no preference", "chance")
    return Case(
        statement,
        effect.value,
        effect,
        interval=(effect.low, effect.high),
        control=control,
        family="atlas",
        rivals=tuple(_effect(left, cells, margin, name, "trivial cue") for left, name in rivals),
        words=f"{preference.shape[2]} experts together; {preference.shape[1] - 1} {cells.unit}s judge that did not choose",
    )


def _effect(found: np.ndarray, cells: Cells, margin: float, against: str, kind: Explanation) -> Effect:
    value, low, high, p = estimate(float(found[0]), found[1:], cells)
    return Effect(value, low, high, against, margin, p, kind=kind, share=False, unit=UNIT)


def _labelled(found: Found) -> Claim:
    n = len(found.whole.labels)
    own = sum(map(bool, found.whole.labels))
    twin = None if found.twin is None else sum(map(bool, found.twin.labels))
    return Claim(
        "Experts with a label: a token chosen on half of the prompts and confirmed on the other",
        f"{own} of {n}",
        control=None if twin is None else Control(TWIN, f"{twin} of {n}"),
        words="95 % for all candidates of an expert together, tokens counted as independent",
    )
