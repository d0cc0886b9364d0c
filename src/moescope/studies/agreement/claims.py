"""What a comparison of two recordings says."""

from __future__ import annotations

from typing import Any

import numpy as np

from moescope.studies.agreement.matched import Agreement
from moescope.study.paired import interval_over, interval_p, joined, paired_effect
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control

CHANCE = "choices dealt out anew among the tokens"
NOISE = "two recordings that should agree"
_NO_YARDSTICK = (
    "needs a yardstick: a third recording that ought to agree with A, such as the same model in another precision or the same "
    "engine once more"
)


def agreement_claims(found: Agreement, noise: Agreement | None, layers: tuple[int, ...], margin: float, seed: int) -> list[Any]:
    """Beyond popularity; beside a yardstick; where it breaks; for how many tokens nothing changes."""
    mean = found.shared.mean(1)
    value, chance = float(mean.mean()), float(found.chance.mean())
    low, high = interval_over(mean, found.unit, seed)
    effect = Effect(
        value - chance, low - chance, high - chance, CHANCE, margin, interval_p(value - chance, low - chance, high - chance)
    )
    n = len(np.unique(found.unit))
    claims: list[Case | Claim] = [
        Case(
            "A and B send a token to the same experts",
            value,
            effect,
            interval=(low, high),
            control=Control(CHANCE, chance),
            words=f"share of a token's experts, mean over {len(layers)} layers and {len(mean):,} tokens of {n} units",
        )
    ]
    statement = "A and B agree as well as two recordings that should agree"
    if noise is None:
        claims.append(Claim(statement, value, interval=(low, high), outcome="not tested", words=_NO_YARDSTICK))
    else:
        claims.append(_beside(statement, found, noise, (value, low, high), margin, seed))
    return [*claims, _first(found, layers), _whole(found, seed)]


def _beside(
    statement: str, found: Agreement, noise: Agreement, own: tuple[float, float, float], margin: float, seed: int
) -> Case:
    _, ours, theirs = np.intersect1d(found.rows, noise.rows, return_indices=True)  # the same tokens of A
    here, there = found.shared[ours].mean(1), noise.shared[theirs].mean(1)
    units = found.unit[ours]
    if len(np.unique(units)) > 1:
        effect = paired_effect(here, there, units, NOISE, margin, seed, no_worse=True)
    else:
        gap = float(here.mean() - there.mean())
        effect = Effect(gap, *joined(gap, (float("nan"),) * 2), NOISE, margin, no_worse=True)
    return Case(
        statement,
        own[0],
        effect,
        interval=own[1:],
        control=Control(NOISE, float(there.mean())),
        words=f"on the {len(ours):,} tokens that all three have",
    )


def _first(found: Agreement, layers: tuple[int, ...]) -> Claim:
    first = found.first
    differs = first < len(layers)
    if not differs.any():
        return Claim("the layer in which most tokens first differ", "none", words="no token differs in any layer")
    counts = np.bincount(first[differs], minlength=len(layers))
    at = int(counts.argmax())
    return Claim(
        "the layer in which most tokens first differ",
        layers[at],
        words=f"{counts[at] / len(first):.1%} of all tokens first differ there, {differs.mean():.1%} somewhere; later layers "
        "read what these wrote; a place, without an interval",
    )


def _whole(found: Agreement, seed: int) -> Claim:
    whole = found.same.all(1).astype(float)
    interval = interval_over(whole, found.unit, seed)
    return Claim(
        "tokens with the very same experts in every layer",
        float(whole.mean()),
        interval=None if np.isnan(interval[0]) else interval,
        words="the effect on the log-probability of what was generated is not known: traces hold none",
    )
