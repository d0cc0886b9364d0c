"""What a pruning study says: is the checkpoint worth having?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from moescope.stats import group_bootstrap
from moescope.study.paired import beyond_sets, paired_effect
from moescope.study.verdicts import Case, Effect
from moescope.types import Claim, Control, Outcome

UNIT = "nats a token"
_RIVALS = ("random", "8-bit", "4-bit", "mean output", "unguarded")


def recommend(kept: Claim, spared: Claim, cheaper: Claim) -> Claim:
    """Whether the checkpoint is worth having, from the verdicts on what it costs, also beside random masks and beside the same
    bytes saved by rounding: ``measured`` says what to do."""
    told: tuple[str, Outcome, str]
    if kept.outcome == "contradicted":
        told = ("do not prune so much", "contradicted", f"too much is lost: {kept.words}")
    elif cheaper.outcome == "contradicted":
        told = ("round the weights instead", "contradicted", f"that saves the same bytes for less: {cheaper.words}")
    elif kept.outcome == "holds" and cheaper.outcome == "holds":
        which = (
            "" if spared.outcome == "holds" else "; which experts are left out hardly matters here: random ones cost as little"
        )
        told = ("use the pruned checkpoint", "holds", f"{kept.words}{which}")
    else:
        open_case = kept if kept.outcome != "holds" else cheaper
        told = ("undecided", "inconclusive", open_case.words)
    what, outcome, why = told
    words = f"{what}: {why}; a decision, of which the claims below are the evidence with their intervals"
    return Claim("recommendation, that the pruned checkpoint is worth having", what, outcome=outcome, words=words)


def prune_claims(table: pd.DataFrame, headline: Sequence[Claim]) -> list[Claim]:
    """Those on the checkpoint, then one of each other criterion and ratio, which is shown and not judged."""
    judged = {claim.statement for claim in headline}
    others = [_shown(row, table) for row in table.query("criterion not in @_RIVALS").to_dict("records")]
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
    interval = change(own, groups, seed)
    control = Control("random masks, mean", float(random.mean()))
    return [
        Case(
            f"{name}: costs less than random masks do",
            float(own.mean()),
            spared,
            interval=interval,
            control=control,
            words=f"loss added, {UNIT}, none retrained; p is the larger of that over masks and that over documents",
        ),
        _within(f"{name}: costs no more than {margin:g} {UNIT}", own, groups, margin, seed, control=control),
    ]


def bytes_case(
    criterion: str,
    ratio: float,
    own: np.ndarray,
    rounded: np.ndarray,
    groups: np.ndarray,
    *,
    bits: int,
    margin: float,
    seed: int,
) -> Case:
    """Does the mask cost no more than the same bytes saved by rounding weights, both (N,) loss added on each text?"""
    against = f"{bits}-bit weights that save the same bytes"
    effect = paired_effect(rounded, own, groups, against, margin, seed, no_worse=True, share=False, unit=UNIT)
    return Case(
        f"pruning {ratio:.1%} by {criterion}: costs no more than the same bytes saved by {bits}-bit weights",
        effect.value,
        effect,
        interval=(effect.low, effect.high),
        control=Control(against, float(rounded.mean())),
        words=f"what those add less what pruning adds, {UNIT}; as many experts are rounded (nearest of {2**bits - 1} levels, a "
        "scale for 32 weights) as save that many bytes of 16-bit weights",
    )


def elsewhere_case(
    criterion: str, ratio: float, domain: str, own: np.ndarray, groups: np.ndarray, margin: float, seed: int
) -> Case:
    """Is what the mask costs on text of other categories within the margin?"""
    name = f"pruning {ratio:.1%} by {criterion} on {domain}: costs no more than {margin:g} {UNIT} on other text"
    return _within(name, own, groups, margin, seed)


def guard_claim(guarded: Sequence[tuple[int, int]], experts: int, *, on: bool, without: float | None, own: float) -> Claim:
    """Which super experts there are, and what the mask would cost without the guard where it changes it."""
    named = ", ".join(f"{layer}:{expert}" for layer, expert in sorted(guarded)) or "none"
    if not on:
        said = "the guard is off"
    elif not guarded:
        said = "so the guard changes nothing"
    elif without is None:
        said = "kept by their score, too: the guard changes nothing"
    else:
        said = f"without the guard the same criterion adds {without:.3g} {UNIT}, with it {own:.3g}"
    return Claim(
        "super experts, which stay whatever their score",
        len(guarded),
        words=f"layer:expert {named}, of {experts}: largest outputs beyond the 99.5th percentile of all experts and a tenth of "
        f"the largest, in the first three quarters of the layers (Su et al. 2025); {said}; counted, so without an interval",
    )


def change(own: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval over documents of a mean change of loss."""
    # losses are no proportions: where none changed there is no doubt for Wilson's interval to add
    return group_bootstrap(own, groups, seed=seed) if own.any() else (0.0, 0.0)


def _within(name: str, own: np.ndarray, groups: np.ndarray, margin: float, seed: int, control: Control | None = None) -> Case:
    low, high = change(own, groups, seed)
    value = float(own.mean())
    effect = Effect(
        0.0 - value, 0.0 - high, 0.0 - low, "the whole model", margin, no_worse=True, share=False, unit=UNIT
    )  # fmt: skip
    return Case(name, value, effect, interval=(low, high), control=control)


def _shown(row: dict[str, Any], table: pd.DataFrame) -> Claim:
    null = table.query("criterion == 'random' and ratio == @row['ratio']").iloc[0]
    return Claim(
        f"pruning {row['ratio']:.1%} by {row['criterion']}",
        row["effect"],
        interval=(row["low"], row["high"]),
        control=Control("random masks, mean", float(null["effect"])),
        words=f"loss added, {UNIT}; beside the checkpoint, and not judged",
    )
