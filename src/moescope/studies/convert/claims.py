"""What a conversion says: does it pay?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from moescope.studies.convert.quality import Quality
from moescope.studies.convert.settings import Counts
from moescope.studies.convert.tuning import RANDOM, STATIC, TUNED, Tuning
from moescope.types import Claim

LEAST = 1.05  # a speed-up below this is not worth another checkpoint


@dataclass(frozen=True)
class Recommendation:
    """``keep_dense`` and why, in one sentence."""

    keep_dense: bool
    text: str


def recommend(rise: float, speed: pd.DataFrame | None, tolerance: float) -> Recommendation | None:
    """None where no speed was measured: a conversion is only worth having if it is faster."""
    if speed is None:
        return None
    best = best_runs(speed)
    gains = [f"{w} {s:.2f}×" for w, s in best.items() if s >= LEAST]
    first = best["batch 1"]
    reasons = []
    if rise > tolerance:
        reasons.append(f"perplexity rises by {rise:.1%}, more than the {tolerance:.1%} allowed")
    if not gains:
        reasons.append(f"it is not faster ({first:.2f}× at batch 1)")
    if reasons:
        also = f" (it would be faster: {', '.join(gains)})" if gains else ""
        return Recommendation(True, f"keep dense: {' and '.join(reasons)}{also}")
    return Recommendation(False, f"use the converted model: faster at {', '.join(gains)}, perplexity {rise:+.1%}")


def best_runs(speed: pd.DataFrame) -> dict[str, float]:
    """Workload -> the converted model's speed-up over dense under its fastest implementation."""
    runs = speed[speed["runner"] != "dense"]
    return {str(w): float(rows["speedup"].max()) for w, rows in runs.groupby("workload", sort=False)}


def convert_claims(
    counts: Counts,
    share: float,
    equality: float,
    qualities: Sequence[Quality],
    frontier: pd.DataFrame,
    speed: pd.DataFrame | None,
    ceilings: dict[str, dict[str, float]],
    advice: Recommendation | None,
    tuning: Tuning | None = None,
) -> list[Claim]:
    """The claims of a conversion; the null of its perplexity is a random split at the same number of active experts.

    Where the conversion was fine-tuned its perplexity is that of the tuned model, and the controls are tuned alike.
    """
    original = qualities[0]
    tuned = _row(frontier, TUNED, counts.active) is not None
    here = next(q for q in qualities if q.name == _row(frontier, TUNED if tuned else "converted", counts.active)["contender"])
    others = {}
    for kind, after in (("random", RANDOM), ("static", STATIC)):
        row = _row(frontier, after, counts.active) if tuned else None
        others[kind] = row if row is not None else _row(frontier, kind, counts.active)
    details: dict[str, Any] = {kind: row["rise"] for kind, row in others.items() if row is not None}
    beside = ", ".join(f"{_WORDS[kind]} {rise:+.1%}" for kind, rise in details.items())
    claims = [
        Claim(
            "recommendation",
            "not measured" if advice is None else "keep dense" if advice.keep_dense else "use the converted model",
            note="speed was not measured, without which there is nothing to recommend" if advice is None else advice.text,
        ),
        Claim(
            "MLP weights active on a token, of the dense model's",
            share,
            note=f"{counts.active} of {counts.experts} experts, {counts.shared} of them shared, and the router",
        ),
        Claim(
            "all experts active: relative difference of the logits",
            equality,
            verdict="identity",
            note="root mean square over held-out text, in the checkpoint's dtype"
            + ("; of the split before fine-tuning, after which it is another model" if tuned else ""),
        ),
        Claim(
            "rise in perplexity",
            here.rise,
            interval=(here.low, here.high),
            null=details.get("random"),
            note=f"from {original.perplexity:.2f} to {here.perplexity:.2f} on {here.tokens:,} held-out tokens"
            + (f"; at the same share{', fine-tuned alike' if tuned else ''}: {beside}" if beside else ""),
            details=details,
        ),
        Claim("KL(original ‖ converted), nats per token", here.kl, note=f"same top token on {here.agreement:.1%} of tokens"),
    ]
    if tuning is not None:
        claims += _tuning_claims(tuning, _row(frontier, "converted", counts.active), tuned)
    if speed is not None:
        for workload, gain in best_runs(speed).items():
            most, reading = ceilings[workload]["ceiling"], ceilings[workload]["ceiling_reading"]
            note = f"by multiply-adds at most {most:.2f}× (this is {gain / most:.0%} of it), by weights read {reading:.2f}×"
            claims.append(Claim(f"speed-up over dense, {workload}", gain, note=note))
    return claims


def _tuning_claims(tuning: Tuning, before: Any, tuned: bool) -> list[Claim]:
    run = tuning.runs[TUNED]
    claims = [
        Claim("rise in perplexity before fine-tuning", before["rise"], interval=(before["low"], before["high"])),
        Claim(
            "fine-tuning: KL(original ‖ converted) on validation text",
            run.after,
            note=f"from {run.before:.4f}, at step {run.best_step} of {run.history[-1]['step']}, learning rate {run.rate:g}"
            if tuned
            else f"no step came below the {run.before:.4f} of before (learning rate {run.rate:g}): the untuned model is kept",
        ),
        Claim(
            "the original fine-tuned alike: KL before the first step",
            tuning.dense,
            verdict="identity",
            note="the original is what is learnt from, the text's own next tokens are not: tuned alike it stays itself, "
            "and no gain above is the text's",
        ),
    ]
    return claims


_WORDS = {"random": "random split", "static": "static pruning"}


def _row(frontier: pd.DataFrame, kind: str, active: int) -> Any:
    rows = frontier[(frontier["kind"] == kind) & (frontier["active"] == active)]
    return rows.iloc[0] if len(rows) else None
