"""What a study of neuron choice says: is it worth its bytes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from moescope.intervene.quality import UNIT, Quality
from moescope.studies.sparsify.frontier import FILE, of_way, plain_name
from moescope.studies.sparsify.methods import ANOTHER, CHANCE, PLANES
from moescope.studies.sparsify.settings import PLAIN, Format, SparsifySettings
from moescope.study.verdicts import Case, Effect, verdicts
from moescope.types import Claim, Control, Outcome

_FAMILY = "choice of neurons"
_CALIBRATED = (
    "these are rounded to the nearest: a calibrated quantiser, which was not run, loses less (GPTQ on OPT of 125M to 2.7B at 4 "
    "bits, a scale a row: 3 to 57 % of what rounding adds to perplexity, arXiv:2210.17323)"
)


def recommend(kept: Claim, cheaper: Claim, saved: str) -> Claim:
    """Whether the sparse model is worth having: ``measured`` says what to do.

    Args:
        kept: the verdict on what it loses.
        cheaper: the verdict on the best plain weights of no more bytes.
        saved: what it reads, in words.
    """
    told: tuple[str, Outcome, str]
    if kept.outcome == "contradicted":
        told = ("do not choose so few", "contradicted", f"too much is lost: {kept.words}")
    elif cheaper.outcome == "contradicted":
        told = ("round the weights instead", "contradicted", f"plain weights of no more bytes lose no more: {cheaper.words}")
    elif kept.outcome == "holds" and cheaper.outcome == "holds":
        told = ("use the sparse model", "holds", f"{saved}; {kept.words}")
    else:
        told = ("undecided", "inconclusive", (kept if kept.outcome != "holds" else cheaper).words)
    what, outcome, why = told
    words = f"{what}: {why}; a decision, of which the claims below are the evidence with their intervals"
    return Claim("recommendation, that the sparse model is worth having", what, outcome=outcome, words=words)


def sparsify_claims(
    frontier: pd.DataFrame,
    qualities: Mapping[str, Quality],
    form: Format,
    settings: SparsifySettings,
    equality: float,
    unit: str,
    seed: int,
    copy: str | None = None,
) -> list[Claim]:
    """The claims, the recommendation first.

    Args:
        unit: over what intervals are: documents or windows.
        copy: how the weights were quantised before they were read; None where they never were.
    """
    here = qualities[of_way(PLANES, form.share)]
    row = _row(frontier, PLANES, form.share)
    judge = _Judge(here, qualities, form, settings, seed)
    cases = [
        _kept(here, row, form, settings, unit),
        judge.plain(frontier, row, copy),
        judge.of_the_token(),
        *([judge.oracle()] if of_way("oracle", form.share) in qualities else []),
        *(judge.rival(name, frontier, row) for name in settings.rivals if name not in ("oracle", "static")),
    ]
    kept, cheaper, *more = verdicts(cases, settings.alpha)
    saved = f"a token reads {row['bytes']:.1%} of the bytes of 16-bit MLP weights"
    return [
        recommend(kept, cheaper, saved),
        kept,
        cheaper,
        *more,
        Claim(
            "MLP bytes that a token reads, of those of 16-bit weights",
            float(row["bytes"]),
            words=f"{form.choose} of {form.bits} bits of gate and up, and of {row['used']:.1%} of the neurons the rest and "
            "down, with scales and norms; counted, so without an interval",
        ),
        Claim(
            "every neuron at work: relative difference of the logits",
            equality,
            outcome="identity",
            words="root mean square over held-out text, between the model that was written and the dense model of the same "
            "codes; rounding, so without an interval",
        ),
    ]


def _kept(here: Quality, row: Any, form: Format, settings: SparsifySettings, unit: str) -> Case:
    lost = Effect(-here.rise, -here.high, -here.low, "the original", settings.tolerance, no_worse=True)
    return Case(
        f"choosing {form.share:.0%} of the neurons: perplexity rises by no more than {settings.tolerance:.1%}",
        here.rise,
        lost,
        interval=(here.low, here.high),
        family=_FAMILY,
        words=f"to {here.perplexity:.2f} on {here.tokens:,} held-out tokens of {len(set(here.units.tolist()))} {unit}s; "
        f"KL {here.kl:.3g} {UNIT}, the same top token on {here.agreement:.1%}",
        details={"bytes": float(row["bytes"])},
    )


class _Judge:
    """The written model beside others, window by window."""

    def __init__(
        self, here: Quality, qualities: Mapping[str, Quality], form: Format, settings: SparsifySettings, seed: int
    ) -> None:
        self.here, self.qualities, self.form, self.settings, self.seed = here, qualities, form, settings, seed

    def beside(self, name: str, against: str, **options: Any) -> Effect:
        """By how much another loses more."""
        return self.here.below(self.qualities[name], against, self.settings.margin, self.seed, **options)

    def plain(self, frontier: pd.DataFrame, row: Any, copy: str | None) -> Case:
        """Against the plain weights of no more bytes that lose least."""
        formats = frontier[frontier["method"].isin([FILE, *(plain_name(*bits) for bits in PLAIN)])].sort_values("bytes")
        rivals = formats[formats["bytes"] <= row["bytes"]]
        rivals = rivals if len(rivals) else formats.iloc[:1]
        best = rivals.sort_values("loss").iloc[0]
        also = formats[formats["loss"] <= self.here.loss]
        least = also.iloc[0] if len(also) else None
        says = (
            f"the least of plain weights that lose no more are {least['method']}, {least['bytes']:.1%} of the bytes"
            if least is not None
            else "no plain weights lose so little"
        )
        of_copy = (
            f"; the model is a quantised copy ({copy}), so that {FILE} is its own codes, at no loss, and rounding them again "
            "is a second rounding"
            if copy is not None
            else ""
        )
        effect = self.beside(str(best["method"]), _plain_words(str(best["method"])))
        return Case(
            "choosing neurons loses less than plain weights of no more bytes",
            effect.value,
            effect,
            interval=(effect.low, effect.high),
            control=Control(_plain_words(str(best["method"])), float(best["rise"])),
            family=_FAMILY,
            words=f"{row['bytes']:.1%} of the bytes of 16-bit weights beside {best['bytes']:.1%}; perplexity rises by "
            f"{self.here.rise:.2%} beside {best['rise']:.2%}; {says}{of_copy}; {_CALIBRATED}",
        )

    def of_the_token(self) -> Case:
        """Against as many neurons at random; beyond another token's choice and a fixed one."""
        share = self.form.share
        effect = self.beside(of_way(CHANCE, share), "neurons at random")
        rivals = [self.beside(of_way(ANOTHER, share), "the choice by another token's input")]
        if of_way("static", share) in self.qualities:
            rivals.append(self.beside(of_way("static", share), "the same neurons for every token", kind="trivial cue"))
        return Case(
            "which neurons work is of the token",
            effect.value,
            effect,
            interval=(effect.low, effect.high),
            control=Control("neurons at random", self.qualities[of_way(CHANCE, share)].rise),
            rivals=tuple(rivals),
            family=_FAMILY,
            words="loss of as many neurons of each layer, paired",
        )

    def oracle(self) -> Case:
        share, margin = self.form.share, self.settings.margin
        name = of_way("oracle", share)
        # that it is no worse has a p of its own, from the interval; that of no difference is another
        effect = replace(self.beside(name, "the oracle", no_worse=True), p=None)
        return Case(
            f"choosing by {self.form.choose} bits loses no more than {margin:g} {UNIT} beside the oracle",
            effect.value,
            effect,
            interval=(effect.low, effect.high),
            control=Control("the oracle", self.qualities[name].rise),
            family=_FAMILY,
            words="the oracle is as many neurons that contribute most, of the same codes; a bound, since it must compute all",
        )

    def rival(self, name: str, frontier: pd.DataFrame, row: Any) -> Case:
        """Against another way at the share at which it loses least for no more bytes, or, where all read more, at the same."""
        lines = frontier[frontier["method"] == name]
        fewer = lines[lines["bytes"] <= row["bytes"]]
        best = (fewer if len(fewer) else lines[lines["share"] == self.form.share]).sort_values("loss").iloc[0]
        line = of_way(name, float(best["share"]))
        effect = self.beside(line, name)
        return Case(
            f"choosing by {self.form.choose} bits loses less than {name}",
            effect.value,
            effect,
            interval=(effect.low, effect.high),
            control=Control(line, self.qualities[line].rise),
            family=_FAMILY,
            words=f"at the share of {best['share']:.0%}, where of what was measured {name} loses least for "
            f"{'no more' if len(fewer) else 'the fewest'} bytes: {best['bytes']:.1%} of those of 16-bit weights",
        )


def _plain_words(name: str) -> str:
    return "the file's own codes" if name == FILE else f"{name} weights"


def _row(frontier: pd.DataFrame, method: str, share: float) -> Any:
    return frontier[(frontier["method"] == method) & (frontier["share"] == share)].iloc[0]


def budget_table(losses: Mapping[str, float], counts: Mapping[str, Sequence[int]], kept: str) -> pd.DataFrame:
    """Table ``budgets``."""
    return pd.DataFrame(
        [
            {"budgets": name, "loss": loss, "least": min(counts[name]), "most": max(counts[name]), "kept": name == kept}
            for name, loss in losses.items()
        ]
    )
