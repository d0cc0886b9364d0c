"""Verdicts are made here and nowhere else: evidence in, outcome, explanation and words out.

A study measures *effects*, each with its interval and a margin (the smallest effect of interest), and hands in *cases*: one
effect that decides against chance, and the rivals that might explain it. Whether an effect is there, or is shown to be smaller
than the margin, or neither, is decided by :func:`reading` alone; absence is tested (two one-sided tests, Schuirmann 1987), not
concluded from a large p. The p-values of the cases of one family are adjusted together (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import norm

from moescope.errors import InputError
from moescope.stats import holm
from moescope.types import Claim, Control, Explanation, Outcome, Published

ALPHA = 0.05
"""The level of every test, unless the settings of a study say otherwise."""
POWER = 0.8
"""With which the smallest effect that could have been shown would have been."""

Reading = Literal["shown", "absent", "opposite", "unclear"]


def significant(p: float | None, alpha: float = ALPHA) -> bool:
    """Whether ``p`` is known and at most ``alpha``."""
    return p is not None and not math.isnan(p) and p <= alpha


def check_draws(draws: int, family: int, parameter: str, alpha: float = ALPHA, *, sides: int = 1) -> None:
    """Refuse, before any work, a number of draws with which no p of a family could fall to ``alpha`` after Holm.

    Args:
        sides: 2 where p is twice the smaller tail (:func:`beyond_draws`), which ``draws`` draws cannot push below
            ``2 / (1 + draws)``.

    Raises:
        InputError: fewer than ``sides * family / alpha - 1``.
    """
    least = math.ceil(sides * family / alpha - 1 - 1e-9)
    if draws < least:
        said = f"{family} claims judged together" if family > 1 else "a single claim"
        raise InputError(f"{draws} draws cannot show anything at {alpha:g} for {said}; give at least {least}", parameter)


@dataclass(frozen=True)
class Effect:
    """One comparison: by how much what is claimed goes beyond what stands against it. Above 0 speaks for the claim.

    Attributes:
        low, high: 95 % interval of ``value``.
        against: what stands against it, in words that follow "than" or "beyond".
        p: two-sided, that there is no effect; None: taken from the interval.
        margin: smallest effect of interest, in the unit of ``value``. Where the claim is that nothing is lost
            (``no_worse``), the largest loss that counts as none.
        kind: what explains the figure where the effect is absent.
        seen: a finer measure of the same comparison shows an effect, so that its absence is not claimed.
        share: ``value`` is a difference of shares, written in points.
    """

    value: float
    low: float
    high: float
    against: str
    margin: float
    p: float | None = None
    _: KW_ONLY
    kind: Explanation = "chance"
    no_worse: bool = False
    seen: bool = False
    share: bool = True
    unit: str = ""

    def figure(self, value: float, *, sign: bool = True) -> str:
        """A value of this effect without its unit: points for shares, else three figures."""
        plus = "+" if sign else ""
        return f"{100 * value:{plus}.1f}" if self.share else f"{value:{plus}.3g}"

    def said(self, value: float | None = None, *, sign: bool = True) -> str:
        """A value of this effect as it is written, by default its own."""
        number = self.figure(self.value if value is None else value, sign=sign)
        return f"{number} {'points' if self.share else self.unit}".strip()

    def bound(self, level: float, *, upper: bool) -> float:
        """One-sided bound at ``level``, from the normal with the width that this side of the interval has."""
        side = self.high - self.value if upper else self.low - self.value
        return self.value + side * float(norm.ppf(level) / norm.ppf(0.975))

    @property
    def spread(self) -> str:
        return f"{self.said()} ({self.figure(self.low)} to {self.figure(self.high)})"

    def could_have_shown(self, alpha: float = ALPHA) -> float:
        """The smallest true effect that an interval of this width shows with :data:`POWER`."""
        scale = float((norm.ppf(1 - alpha / 2) + norm.ppf(POWER)) / norm.ppf(0.975))
        return (self.high - self.low) / 2 * scale


def reading(effect: Effect, p: float | None = None, alpha: float = ALPHA) -> Reading:
    """Whether an effect is there.

    ``shown``: above 0 with ``p`` (or its interval) at ``alpha``. ``absent``: below the margin, tested one-sidedly at ``alpha``.
    ``opposite``: below 0 by more than the margin. For ``no_worse`` the claim is that the loss stays within the margin, and
    ``absent`` means that it is shown to exceed it.
    """
    if any(map(math.isnan, (effect.value, effect.low, effect.high))):
        return "unclear"
    low, high = effect.bound(1 - alpha, upper=False), effect.bound(1 - alpha, upper=True)
    if effect.no_worse:
        return "shown" if low > -effect.margin else "absent" if high < -effect.margin else "unclear"
    if high < -effect.margin:
        return "opposite"
    if high < effect.margin:
        return "unclear" if effect.seen else "absent"
    two_sided = effect.bound(1 - alpha / 2, upper=False)
    beyond = significant(p, alpha) if p is not None else two_sided > 0
    return "shown" if beyond and effect.value > 0 else "unclear"


@dataclass(frozen=True)
class Case:
    """A claim before its verdict.

    Attributes:
        effect: what decides, against chance or against the one thing that the statement names.
        rivals: what may explain it though it is there: each effect is what is left beyond that rival. While that is undecided
            the claim is inconclusive, and its words say that the effect itself is shown.
        leak: what near-duplicates on both sides of the splits would add to a figure that was measured with them apart.
        not_run: controls that could not run, each with why; no sentence then claims that they were beaten.
        gate: why no verdict may be given at all (students that lose to a linear map), else empty.
        same: model, data and protocol are those of the source, so that the published figure can be reproduced.
        family: claims that are judged together; empty for one that is judged alone.
        words: facts that stand behind the verdict's own words.
    """

    statement: str
    measured: float | str
    effect: Effect
    id: str = ""
    published: Published | None = None
    interval: tuple[float, float] | None = None
    control: Control | None = None
    rivals: tuple[Effect, ...] = ()
    leak: Effect | None = None
    not_run: tuple[str, ...] = ()
    gate: str = ""
    same: bool = False
    family: str = ""
    words: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def p(self) -> float | None:
        effect = self.effect
        if effect.p is not None and not math.isnan(effect.p):
            return effect.p
        if not effect.no_worse:
            return None
        side = effect.value - effect.low
        if math.isnan(side):
            return None
        room = effect.value + effect.margin
        return float(norm.sf(room / side * float(norm.ppf(0.975)) if side > 0 else math.copysign(math.inf, room)))


def verdicts(cases: Iterable[Case | Claim], alpha: float = ALPHA) -> list[Claim]:
    """Claims in the order of the cases; p-values adjusted within each family. Claims pass through."""
    given = list(cases)
    adjusted: dict[int, float] = {}
    for family in {c.family for c in given if isinstance(c, Case) and c.family}:
        members = [(i, c.p) for i, c in enumerate(given) if isinstance(c, Case) and c.family == family and not c.gate]
        known = [(i, p) for i, p in members if p is not None]
        adjusted |= dict(zip([i for i, _ in known], holm([p for _, p in known]).tolist(), strict=True))
    return [c if isinstance(c, Claim) else verdict(c, adjusted.get(i, c.p), alpha) for i, c in enumerate(given)]


def verdict(case: Case, p_adjusted: float | None, alpha: float = ALPHA) -> Claim:
    """The claim that a case supports."""
    outcome, explanation, said, told = _decided(case, p_adjusted, alpha)
    if (
        case.leak is not None
        and outcome in ("contradicted", "inconclusive")
        and reading(case.leak, case.leak.p, alpha) == "shown"
    ):
        explanation, said = "leakage", f"{said}; {case.leak.against} add {case.leak.spread}"
        told.pop("by", None)
    if case.not_run and outcome != "undertrained":
        said += f"; not run: {'; '.join(case.not_run)}"
    return Claim(
        statement=case.statement,
        measured=case.measured,
        id=case.id,
        published=case.published,
        interval=case.interval,
        control=case.control,
        p=case.p,
        p_adjusted=p_adjusted,
        family=case.family,
        outcome=outcome,
        explanation=explanation,
        words=f"{said}; {case.words}" if case.words else said,
        details={**case.details, "alpha": alpha, "margin": case.effect.margin, **told},
    )


def _decided(case: Case, p: float | None, alpha: float) -> tuple[Outcome, Explanation | None, str, dict[str, Any]]:
    """Outcome, explanation and words; and for the answer in short ``by``, what explains the figure, or ``more``, how many times
    as much text could settle it."""
    effect = case.effect
    if case.gate:
        return "undertrained", None, case.gate, {}
    found = reading(effect, None if effect.no_worse else p, alpha)
    readings = [(rival, reading(rival, rival.p, alpha)) for rival in case.rivals]
    undecided = [rival for rival, state in readings if state == "unclear"]
    wide = [effect, *undecided] if found == "unclear" else undecided or [effect]
    if effect.no_worse and found == "shown" and case.family and not significant(p, alpha):
        found = "unclear"  # the family's adjustment takes back what the test alone would give
    if found == "unclear":
        return "inconclusive", None, _unclear(effect, alpha), _more(wide, alpha)
    if found in ("absent", "opposite"):
        explains = _explains(effect, found)
        told = {"by": effect.against} if explains else {}
        return "contradicted", effect.kind if explains else None, _failed(effect, found), told
    if effect.no_worse:
        said = f"{effect.spread} beside {effect.against}: a loss of {effect.said(effect.margin, sign=False)} is excluded"
    else:
        said = f"{effect.spread} more than {effect.against}"
    for rival, state in readings:
        if state in ("absent", "opposite"):
            told = {"by": rival.against} if rival.kind != "none found" else {}
            return "holds", rival.kind, f"{said}; but {_failed(rival, state)}", told
    if undecided:
        beyond = _listed([rival.against for rival in undecided])
        why = "; ".join(_unclear(rival, alpha) for rival in undecided)
        words = f"the effect itself is shown ({said}); whether it goes beyond {beyond} is undecided: {why}"
        return "inconclusive", None, words, _more(wide, alpha)
    if readings:
        said += "; beyond " + _listed([f"{rival.against} {rival.said()}" for rival, _ in readings])
    outcome, against = _published(case)
    return outcome, "none found" if readings else None, said + against, {}


def _more(effects: Sequence[Effect], alpha: float) -> dict[str, float]:
    wide = [(e.could_have_shown(alpha) / e.margin) ** 2 for e in effects if e.margin > 0]
    most = max(wide, default=math.nan)
    return {"more": most} if most > 1 else {}


def _explains(effect: Effect, found: Reading) -> bool:
    """Whether what stands against an effect explains the figure: not where a loss is shown, nor where it fits so badly."""
    return not effect.no_worse and found == "absent" and effect.kind != "none found"


def _unclear(effect: Effect, alpha: float) -> str:
    if math.isnan(effect.value):
        return f"nothing to compare with {effect.against}"
    if effect.no_worse:
        return (
            f"{effect.spread} beside {effect.against}: a loss of {effect.said(effect.margin, sign=False)} is neither shown nor "
            f"excluded"
        )
    least = effect.said(effect.could_have_shown(alpha), sign=False)
    return f"{effect.spread} more than {effect.against}: neither an effect nor its absence; {least} could have been shown"


def _failed(effect: Effect, found: Reading) -> str:
    if effect.no_worse:
        return f"{effect.spread} beside {effect.against}: more is lost than {effect.said(effect.margin, sign=False)}"
    if found == "opposite":
        return f"{effect.spread}: less than {effect.against}"
    return f"{effect.spread} more than {effect.against}: {effect.said(effect.margin, sign=False)} or more is excluded"


def _published(case: Case) -> tuple[Outcome, str]:
    """Whether what holds is the published figure: within the interval that predicts it, both figures' widths in it."""
    if not case.same or case.published is None or case.interval is None:
        return "holds", ""
    value, measured = case.published.value, case.measured
    if isinstance(value, str) or isinstance(measured, str):
        return "holds", ""
    here = (case.interval[1] - case.interval[0]) / 2
    half = math.hypot(here, here if case.published.half_width is None else case.published.half_width)
    if abs(measured - value) <= half:
        return "reproduced", f"; the published {value:.3g} lies within ± {half:.2g}"
    if abs(measured) < abs(value) - case.effect.margin:
        return "weaker", f"; the published {value:.3g} is larger by more than {case.effect.margin:.2g}"
    return "holds", f"; the published {value:.3g} lies outside ± {half:.2g}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def beyond_draws(
    value: float, draws: Sequence[float] | np.ndarray, against: str, margin: float, *, alternative: int = 1, **options: Any
) -> Effect:
    """The effect of a figure over draws of its null, with an interval from the order of ``value - draws``.

    Between the draws that are r-th from either end, with r the whole part of ``0.025 (P + 1)``, a further draw falls with a
    chance of 95 % at least, exactly so where that number is whole (39, 199 and 999 draws): a prediction interval without a
    distribution (Wilks 1941). Fewer than 39 draws do not reach so far, and their whole range is given.

    Args:
        draws: (P,), the figure under the null.
        alternative: 1: larger speaks for the claim; -1: smaller does.

    The p is two-sided, ``2 min(P(null >= value), P(null <= value))``, and never 0 (Phipson and Smyth 2010).
    """
    null = np.asarray(draws, dtype=float)
    tie = 1e-9 * max(1.0, abs(value))
    upper = (1 + int((null >= value - tie).sum())) / (1 + len(null))
    lower = (1 + int((null <= value + tie).sum())) / (1 + len(null))
    gaps = np.sort(alternative * (value - null))
    outermost = max(1, int(0.025 * (1 + len(gaps)) + 1e-9))
    low, high = gaps[outermost - 1], gaps[-outermost]
    p = min(1.0, 2 * min(upper, lower))
    return Effect(float(gaps.mean()), float(low), float(high), against, margin, p, **options)


def untested(claim: Claim, why: str) -> Claim:
    """``claim`` as one that could not be tested, with the reason."""
    return replace(claim, outcome="not tested", explanation=None, words=why)
