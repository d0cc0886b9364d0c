"""What a steering study says, in words and with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from moescope.studies.steer.experts_match import MATCHED
from moescope.study.paired import interval_p, joined
from moescope.study.verdicts import Case, Effect, Reading, reading
from moescope.types import Claim, Control

if TYPE_CHECKING:
    from moescope.studies.steer.export import Export
    from moescope.studies.steer.steering import Steering

UNIT = "nats a token"
FAMILY = 2
"""claims on a steering's target that are judged together"""


def steering_claims(
    steering: Steering, effects: pd.DataFrame, margin: float, alpha: float, others: pd.DataFrame | None = None
) -> list[Claim | Case]:
    """With a target: whether it is hurt (or helped), and more than other text, which are judged together; the other
    categories are shown. Without one every category is judged.

    Args:
        others: rows of the table ``others``, where the target is a task never seen: what helps it must then go beyond
            each of these too.
    """
    rows = effects.query("steering == @steering.name")
    first = rows[rows["match"] == rows["match"].iloc[0]]
    if steering.target is None:
        return [_moved(steering, row, margin) for row in first.to_dict("records")]
    boosts = [] if others is None else others.query("steering == @steering.name").to_dict("records")
    judged = [
        _target(steering, found.to_dict("records"), margin, alpha, [] if category == "selectivity" else boosts)
        for category, found in rows[rows["target"]].groupby("category", sort=False)
    ]
    return [*judged, *(_shown(steering, row) for row in first[~first["target"]].to_dict("records"))]


_MATCHED = {"overall": "over all text", "target": "in the category"}


def _target(steering: Steering, rows: list[dict[str, Any]], margin: float, alpha: float, others: list[dict[str, Any]]) -> Case:
    """One case of all matchings: the first decides, the others are rivals, for an expert that is used more is missed more.

    Beside ``others`` the claim is that all are surpassed, so the comparison that speaks least for it decides.
    """
    verb, sign = ("hurts", 1) if steering.aim == "harm" else ("helps", -1)
    alone = rows[0]["category"] == "selectivity"
    what = f"{verb} {steering.target} more than other text" if alone else f"{verb} {steering.target}"
    own = _effect(sign, rows[0], "", "the model as it is", margin, kind="none found")
    beside = [
        _effect(
            sign,
            row,
            "excess_",
            f"random ones {'' if _unmatched([row]) else 'matched in usage '}{_MATCHED[row['match']]}",
            margin,
        )
        for row in rows
    ]
    # where random sets do the opposite, that alone makes an excess: what is claimed must be there in itself
    deciding = beside[0] if reading(own, own.p, alpha) == "shown" else own
    if others:
        beside += [own, *(_beyond(row, margin) for row in others)]
        deciding = min(beside, key=lambda e: (_LEAST_FIRST.index(reading(e, e.p, alpha)), -(e.p or 0.0)))
    rivals = tuple(e for e in beside if e is not deciding)
    return Case(
        f"{steering.name}: {what}, beyond matched random ones{' and the same of other tasks' if others else ''}",
        rows[0]["effect"],
        deciding,
        id="S8",
        interval=(rows[0]["low"], rows[0]["high"]),
        control=Control("random ones, mean", rows[0]["random_mean"]),
        rivals=rivals,
        not_run=_unmatched(rows),
        family=f"steering: {steering.name}",
        words=f"change of the loss, {UNIT}; {_random(rows)}; p {'beyond these ' if others else ''}is the larger of that over "
        "sets and that over documents",
        details={"target": True},
    )


_LEAST_FIRST: tuple[Reading, ...] = ("opposite", "absent", "unclear", "shown")


def _beyond(row: dict[str, Any], margin: float) -> Effect:
    """By how much less loss a boost leaves than that by the prompts of another category."""
    against = f"that by as many prompts of {row['prompts_of']} ({row['effect']:+.3f})"
    low, high = row["beyond_low"], row["beyond_high"]
    return Effect(row["beyond"], low, high, against, margin, row["p"], share=False, unit=UNIT, kind="none found")


def _moved(steering: Steering, row: dict[str, Any], margin: float) -> Case:
    sign = 1 if row["excess"] >= 0 else -1
    return Case(
        f"{steering.name}: changes the loss on {row['category']}, beyond matched random ones",
        row["effect"],
        _effect(sign, row, "excess_", f"{'' if _unmatched([row]) else 'matched '}random ones, in either direction", margin),
        id="S8",
        interval=(row["low"], row["high"]),
        control=Control("random ones, mean", row["random_mean"]),
        not_run=_unmatched([row]),
        family=f"steering: {steering.name}",
        words=f"from {row['baseline']:.3f} {UNIT}; {_random([row])}",
        details={"target": False},
    )


def _shown(steering: Steering, row: dict[str, Any]) -> Claim:
    return Claim(
        f"{steering.name}: loss on {row['category']}",
        row["effect"],
        interval=(row["low"], row["high"]),
        control=Control("random ones, mean", row["random_mean"]),
        words=f"change from {row['baseline']:.3f} {UNIT}; {_random([row])}; no target of it, and not judged",
        details={"target": False},
    )


def export_claim(written: Export, engine: str, kind: str) -> Claim:
    """How far what was exported is from the edits that were measured."""
    names = sorted({change.tensor.rpartition(".")[2] for change in written.patch.changes})
    fewer = ", ".join(f"{name}={value}" for name, value in written.patch.config.items())
    return Claim(
        f"the checkpoint for {engine} computes what the edits do",
        written.difference,
        control=Control("the model without the edits", written.untouched),
        words=f"norm of the difference of the logits over theirs, {written.tokens:,} tokens, read again by plain transformers; "
        f"{len(written.patch.changes)} tensors changed ({', '.join(names)}){f', config {fewer}' if fewer else ''}; a "
        f"checkpoint of type {kind}, for whatever loads that; beyond rounding it would have been refused: no interval",
    )


def _effect(sign: int, row: dict[str, Any], what: str, against: str, margin: float, **options: Any) -> Effect:
    """``effect`` of a row, or its ``excess_`` over random sets, whose spread then widens the interval."""
    value = sign * row[what.rstrip("_") or "effect"]
    low, high = sorted((sign * row[f"{what}low"], sign * row[f"{what}high"]))
    p = interval_p(value, low, high)
    if what:
        sets = sorted(sign * (row["effect"] - row[f"random_{end}"]) for end in ("low", "high"))
        low, high = joined(value, (low, high), (sets[0], sets[1]))
        p = max(p, min(1.0, 2 * min(row["p_harm"], row["p_help"])))
    return Effect(value, low, high, against, margin, p, share=False, unit=UNIT, **options)


def _unmatched(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """Controls that no random set is: one that is used as much, or is of like norm."""
    return tuple(
        f"random ones used as much {_MATCHED[row['match']]} (those that there are: {row['usage_ratio']:.2f} times as much)"
        for row in rows
        if not 1 / MATCHED <= row["usage_ratio"] <= MATCHED
    )


def _random(rows: list[dict[str, Any]]) -> str:
    return "; ".join(
        f"{row['n_random']} random ones {row['random_mean']:+.3f} [{row['random_low']:+.3f}, {row['random_high']:+.3f}], "
        f"usage or norm ratio {row['usage_ratio']:.2f}"
        for row in rows
    )
