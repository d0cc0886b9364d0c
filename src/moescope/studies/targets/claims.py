"""What a study of reach and targets says."""

from __future__ import annotations

import numpy as np

from moescope.studies.targets.measure import Carried, Reached
from moescope.studies.targets.settings import TargetSettings
from moescope.study.verdicts import Case, Effect, beyond_draws
from moescope.types import Claim, Control

EVEN = "an even router"
_SHUFFLED = "the same with categories permuted among the texts"
_FAMILY = "experts of the categories"


def target_claims(whole: Reached, found: Carried | None, settings: TargetSettings) -> list[Case | Claim]:
    """Reach of this text and of further text like it, beside an even router; then each category's experts."""
    claims: list[Case | Claim] = [_this_text(whole, settings), _further(whole, settings), _beside_even(whole, settings)]
    if found is None:
        said = "needs texts of two categories or more, of several documents each: columns 'category', and 'topic' for these"
        return [*claims, Claim("which experts carry a category", "none", outcome="not tested", words=said)]
    return [*claims, *(_category(found, c, settings) for c in range(len(found.categories)))]


def _what(settings: TargetSettings) -> str:
    every = "every expert" if settings.share == 1 else f"{settings.share:.4g} of all experts"
    return f"{every} with at least {settings.least} token{'s' if settings.least > 1 else ''}"


def _this_text(whole: Reached, settings: TargetSettings) -> Claim:
    row, rates = whole.row, whole.rates
    unseen = f"{rates.unseen} received none" if rates.unseen else "none received nothing"
    return Claim(
        f"share of all experts that this text reaches with at least {settings.least} tokens",
        row["reached"] / row["experts"],
        control=Control(EVEN, whole.even_share),
        words=f"{row['reached']} of {row['experts']} in {rates.tokens:,} tokens of {rates.documents} documents; {unseen}, "
        f"the one with fewest {row['fewest']:,} ({row['even_fewest']:,.0f} by {EVEN}); a count, so without an interval",
    )


def _further(whole: Reached, settings: TargetSettings) -> Case:
    """As a share of what is needed: an expert that is never reached makes that nought, where tokens would be without end."""
    tokens, needed = whole.rates.tokens, whole.needed
    value, low, high = tokens / needed.tokens, tokens / needed.high, tokens / needed.low
    return Case(
        f"other text like this, as long, reaches {_what(settings)}",
        needed.tokens if np.isfinite(needed.tokens) else "no finite number of tokens follows",
        Effect(
            value - 1,
            low - 1,
            high - 1,
            "the tokens that it takes",
            settings.margin,
            kind="none found",
            share=False,
            unit="times",
        ),
        interval=(needed.low, needed.high) if np.isfinite(needed.high) else None,
        control=Control(f"tokens that {EVEN} needs", whole.even),
        words=f"{_needed(whole)}, with probability {settings.sure:g}; this text has {tokens:,}; the interval keeps all "
        "experts' rates over documents, in which counts vary "
        f"{whole.row['spread']:.3g} times as much as those of independent tokens",
    )


def _needed(whole: Reached) -> str:
    needed, rates = whole.needed, whole.rates
    if np.isfinite(needed.tokens):
        return f"needed are {needed.tokens:,.0f} tokens ({needed.low:,.0f} to {needed.high:,.0f})"
    most = float(rates.high[rates.reached == 0].max())
    said = (
        f"no finite number follows for {rates.unseen} experts that were never reached: dead, or rarer than {most * 1e6:,.0f} "
        f"in a million tokens (95 %); at least {needed.low:,.0f} tokens are needed, and one more document is expected to reach "
        f"{rates.new:.2g} of them"
    )
    return said


def _beside_even(whole: Reached, settings: TargetSettings) -> Case:
    needed, even = whole.needed, whole.even
    value, low, high = (1 - even / tokens for tokens in (needed.tokens, needed.low, needed.high))
    return Case(
        f"it takes more tokens than {EVEN} would need",
        value,
        Effect(value, low, high, f"{EVEN} needs", settings.margin),
        interval=(low, high),
        control=Control(EVEN, 0.0),
        words=f"{EVEN} needs {even:,.0f} tokens; one less what an even router of as many experts needs over what this one "
        "does: 0 where they are alike, near 1 where some experts are hardly reached",
    )


def _category(found: Carried, c: int, settings: TargetSettings) -> Case | Claim:
    name, held = found.categories[c], found.held
    statement = f"experts chosen for {name} on one half of the texts receive more of its tokens on the other half"
    if held is None:
        few = f"{name} has {found.cells[c]} cells (category and {found.unit}), too few to be halved"
        return Claim(statement, "none", outcome="not tested", words=few)
    effect = beyond_draws(float(held.gap[c]), held.null[:, c], _SHUFFLED, settings.margin_share)
    rivals: tuple[Effect, ...] = ()
    not_run: tuple[str, ...] = ()
    if held.beyond is None:
        not_run = ("the tokens' identity (no token ids, or none that recurs)",)
    else:
        token = held.beyond[c]
        rivals = (
            Effect(
                token.value,
                token.low,
                token.high,
                "the same tokens elsewhere",
                settings.margin_share,
                token.p,
                kind="trivial cue",
            ),
        )
    carries = int(found.carries(settings.alpha)[c].sum())
    return Case(
        statement,
        float(held.gap[c]),
        effect,
        interval=(effect.low, effect.high),
        control=Control("categories permuted, mean", float(held.null[:, c].mean())),
        rivals=rivals,
        not_run=not_run,
        family=_FAMILY,
        words=f"difference of shares of tokens, mean over {settings.per_layer} experts of each layer; the interval is over "
        f"draws of the null; {carries} experts of all layers carry {name} family-wise; the unit is category and {found.unit}, "
        f"{found.cells[c]} of them",
    )
