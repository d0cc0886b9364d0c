"""What a conversion says: does it pay?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from moescope.intervene.quality import BYTES, EIGHT, Quality
from moescope.studies.convert.bounds import BOUNDS, FOUR, NEURONS, ORACLE
from moescope.studies.convert.equality import Equality
from moescope.studies.convert.refit import REFIT
from moescope.studies.convert.settings import ConvertSettings, Counts
from moescope.studies.convert.tuning import TUNED, Tuning
from moescope.study.verdicts import Case, Effect, verdicts
from moescope.types import Claim, Control, Outcome

_FAMILY = "conversion"
LEAST = 1.05  # a speed-up below this is not worth another checkpoint


def recommend(kept: Claim, speed: pd.DataFrame | None) -> Claim:
    """Whether the conversion is worth having: ``measured`` says what to do, from the verdict on what it loses.

    What is settled is said whatever was not measured: where too much is lost, no clock is asked; a model that is not faster is
    not worth a checkpoint, however good it is.
    """
    gains = best_runs(speed) if speed is not None else {}
    faster = ", ".join(f"{w} {s:.2f}×" for w, s in gains.items() if s >= LEAST)
    slow = f"it is not faster ({gains['batch 1']:.2f}× at batch 1)" if gains and not faster else ""
    told: tuple[str, Outcome, str]
    if kept.outcome == "contradicted" or slow:
        lost = f"too much is lost: {kept.words}" if kept.outcome == "contradicted" else ""
        also = f" (it would be faster: {faster})" if faster else ""
        told = ("keep dense", "contradicted", f"{' and '.join(filter(None, (slow, lost)))}{also}")
    elif not gains:
        told = ("not settled", "not tested", f"speed was not measured, and what is lost does not settle it alone: {kept.words}")
    elif kept.outcome == "inconclusive":
        told = ("undecided", "inconclusive", f"faster at {faster}, but {kept.words}")
    else:
        told = ("use the converted model", "holds", f"faster at {faster}; {kept.words}")
    what, outcome, why = told
    words = f"{what}: {why}; a decision, of which the claims below are the evidence with their intervals"
    return Claim("recommendation, that the converted model is worth having", what, id="M6", outcome=outcome, words=words)


def best_runs(speed: pd.DataFrame) -> dict[str, float]:
    """Workload -> the converted model's speed-up over dense under its fastest implementation."""
    runs = speed[speed["runner"] != "dense"]
    return {str(w): float(rows["speedup"].max()) for w, rows in runs.groupby("workload", sort=False)}


def quality_cases(
    here: Quality, others: dict[str, Quality], *, alike: str, tolerance: float, margin: float, seed: int
) -> list[Case]:
    """Is what is lost within the tolerance, and is it less than the controls lose at the same share of weights?

    Args:
        others: ``random`` (split) and ``static`` (pruning), where they were made.
        alike: words for how they were treated.
    """

    def beside(name: str, **options: Any) -> Effect:
        return here.below(others[name], f"{_WORDS[name]}{alike}", margin, seed, **options)

    rises = {name: quality.rise for name, quality in others.items()}
    said = ", ".join(f"{_WORDS[name]} {rise:+.1%}" for name, rise in rises.items())
    control = Control(f"{_WORDS['random']}{alike}", rises["random"]) if "random" in rises else None
    lost = Effect(0.0 - here.rise, 0.0 - here.high, 0.0 - here.low, "the dense model", tolerance, no_worse=True)
    cases = [
        Case(
            f"perplexity rises by no more than {tolerance:.1%}",
            here.rise,
            lost,
            id="M6",
            interval=(here.low, here.high),
            control=control,
            family=_FAMILY,
            words=f"to {here.perplexity:.2f} on {here.tokens:,} held-out tokens of {len(here.excess)} windows"
            + (f"; at the same share{alike}: {said}" if said else ""),
            details=dict(rises),
        )
    ]
    if "random" in others and len(here.excess) > 1:
        effect = beside("random")
        cases.append(
            Case(
                "the conversion loses less than its controls at the same share",
                effect.value,
                effect,
                interval=(effect.low, effect.high),
                control=control,
                rivals=(beside("static", kind="trivial cue"),) if "static" in others else (),
                family=_FAMILY,
                words="loss of the random split less the conversion's, paired by window",
            )
        )
    return cases


def eight_case(here: Quality, eight: Quality, share: float, margin: float, seed: int) -> Case:
    """Does the conversion, which reads ``share`` of the MLPs' weights on a token, lose less than 8 bits of all?"""
    effect = here.below(eight, "8-bit weights", margin, seed)
    return Case(
        "the conversion loses less than 8-bit weights",
        effect.value,
        effect,
        interval=(effect.low, effect.high),
        family=_FAMILY,
        words=f"the dense model's MLPs rounded to 8 bits read {BYTES:.0%} of the bytes of 16-bit weights on every token, and "
        f"perplexity rises by {eight.rise:.2%} ({eight.low:.2%} to {eight.high:.2%}); the conversion reads {share:.0%} on one "
        f"token alone, and it rises by {here.rise:.1%}",
    )


def refit_case(here: Quality, before: Quality, margin: float, seed: int) -> Case:
    """Do the refitted down projections lose less than the dense model's own, in the same experts?"""
    effect = here.below(before, "the dense model's projections", margin, seed)
    return Case(
        "the refitted down projections lose less than the dense model's own",
        effect.value,
        effect,
        interval=(effect.low, effect.high),
        family=_FAMILY,
        words=f"same experts and router; perplexity rises by {here.rise:.1%} ({here.low:.1%} to {here.high:.1%}), and by "
        f"{before.rise:.1%} without",
    )


def convert_claims(
    counts: Counts,
    share: float,
    equality: Equality,
    qualities: Sequence[Quality],
    frontier: pd.DataFrame,
    speed: pd.DataFrame | None,
    ceilings: dict[str, dict[str, float]],
    settings: ConvertSettings,
    seed: int,
    tuning: Tuning | None = None,
) -> list[Claim]:
    """The claims of a conversion, the recommendation first.

    Where the conversion was refitted or fine-tuned its perplexity is that of what came of it, and so is its controls'.
    """
    by_name = {q.name: q for q in qualities}

    def last(*kinds: str) -> Quality | None:
        """The first of ``kinds`` that there is at the chosen number."""
        rows = (_row(frontier, kind, counts.active) for kind in kinds)
        return next((by_name[row["contender"]] for row in rows if row is not None), None)

    steps = [how for how in (TUNED, REFIT) if last(how) is not None]
    tuned, refit = TUNED in steps, REFIT in steps
    before = last("converted")
    here = last(*steps) or before
    assert before is not None
    assert here is not None
    found = {kind: last(*(f"{kind} {how}" for how in steps), kind) for kind in _WORDS}
    others = {kind: quality for kind, quality in found.items() if quality is not None}
    alike = ", fine-tuned alike" if tuned else ", refitted alike" if refit else ""
    cases = quality_cases(here, others, alike=alike, tolerance=settings.tolerance, margin=settings.margin, seed=seed)
    if EIGHT in by_name and len(here.excess) > 1:
        cases.append(eight_case(here, by_name[EIGHT], share, settings.margin, seed))
    mended = last(REFIT)
    if mended is not None and len(here.excess) > 1:
        cases.append(refit_case(mended, before, settings.margin, seed))
    kept, *beside = verdicts(cases, settings.alpha)
    claims = [
        recommend(kept, speed),
        kept,
        *beside,
        Claim(
            "MLP weights active on a token, of the dense model's",
            share,
            words=f"{counts.active} of {counts.experts} experts, {counts.shared} of them shared, and the router; counted, "
            "so without an interval",
        ),
        Claim(
            "all experts active: relative difference of the logits",
            equality.split,
            outcome="identity",
            words="root mean square over held-out text, in the checkpoint's dtype, gates held at one; rounding, so without an "
            f"interval; {equality.gates:.2g} with the router's own gates, which are one to some 1e-5 on the calibration text"
            + (f"; of the split before {_AFTER[steps[-1]]}, after which it is another model" if steps else ""),
        ),
        Claim(
            "KL(original ‖ converted), nats per token",
            here.kl,
            words=f"same top token on {here.agreement:.1%} of tokens; summed over the text, its interval is that of perplexity",
        ),
    ]
    if last(ORACLE) is not None:
        claims.append(_bounds_claim(before, {kind: quality for kind in BOUNDS if (quality := last(kind)) is not None}))
    if tuning is not None:
        claims += _tuning_claims(tuning, mended or before, tuned)
    if speed is not None:
        for workload, gain in best_runs(speed).items():
            most, reading = ceilings[workload]["ceiling"], ceilings[workload]["ceiling_reading"]
            words = (
                f"by multiply-adds at most {most:.2f}× (this is {gain / most:.0%} of it), by weights read {reading:.2f}×; "
                "median of three turns on this machine, too few for an interval"
            )
            claims.append(Claim(f"speed-up over dense, {workload}", gain, words=words))
    return claims


def _bounds_claim(before: Quality, bounds: dict[str, Quality]) -> Claim:
    """What of the loss is the router's, the grouping's, and nobody's."""
    return Claim(
        "rise in perplexity with the experts chosen by their own outputs",
        bounds[ORACLE].rise,
        interval=(bounds[ORACLE].low, bounds[ORACLE].high),
        words=f"nothing refitted: what the grouping alone loses, and with the router {before.rise:+.1%}; by a copy of the "
        f"weights of 4 bits {bounds[FOUR].rise:+.1%}, which no linear router is; as many single neurons, the largest, "
        f"{bounds[NEURONS].rise:+.1%}: what no grouping would lose",
        details={kind: quality.rise for kind, quality in bounds.items()},
    )


def _tuning_claims(tuning: Tuning, before: Quality, tuned: bool) -> list[Claim]:
    run = tuning.runs[TUNED]
    return [
        Claim(
            "rise in perplexity before fine-tuning",
            before.rise,
            interval=(before.low, before.high),
            words="what fine-tuning starts from",
        ),
        Claim(
            "fine-tuning: KL(original ‖ converted) on validation text",
            run.after,
            words=(
                f"from {run.before:.4f}, at step {run.best_step} of {run.history[-1]['step']}, learning rate {run.rate:g}"
                if tuned
                else f"no step came below the {run.before:.4f} of before (learning rate {run.rate:g}): "
                "the untuned model is kept"
            )
            + "; the text that chose the step, so without an interval",
        ),
        Claim(
            "the original fine-tuned alike: KL before the first step",
            tuning.dense,
            outcome="identity",
            words="the original is what is learnt from, the text's own next tokens are not: tuned alike it stays itself, "
            "and no gain above is the text's",
        ),
    ]


_WORDS = {"random": "random split", "static": "static pruning"}
_AFTER = {REFIT: "its down projections were refitted", TUNED: "fine-tuning"}


def _row(frontier: pd.DataFrame, kind: str, active: int) -> Any:
    rows = frontier[(frontier["kind"] == kind) & (frontier["active"] == active)]
    return rows.iloc[0] if len(rows) else None
