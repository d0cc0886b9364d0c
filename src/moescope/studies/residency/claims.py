"""What a residency study says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from moescope.routing.separation import Estimate
from moescope.stats import bootstrap_sums, expanded_percentiles
from moescope.studies.residency.cached import NAMES, POPULAR, UNIFORM, Cached, Outcome
from moescope.studies.residency.placed import CONTIGUOUS, FITTED, Placed
from moescope.studies.residency.settings import ResidencySettings
from moescope.study.paired import interval_over, paired_effect
from moescope.study.verdicts import Case, Effect, beyond_draws, untested
from moescope.types import Claim, Control

FAMILY = "what to hold, and where"
_NO_DOMAINS = "needs requests of two categories or more, with some of each in both halves"
_NO_MODEL = "needs the model, whose next router reads what this layer's experts are given: --model"


def residency_claims(
    found: Cached, placed: list[Placed], settings: ResidencySettings, n_experts: int, bits: int, seed: int, *, looked: bool
) -> list[Claim | Case]:
    """Locality, pinning, the distance from the optimum, shift, lookahead, placement, and the cheapest alternative."""
    return [
        _locality(found, settings, seed),
        _pinning(found, settings, seed),
        _distance(found, seed),
        _shift(found, settings, seed),
        _lookahead(found, settings, seed, looked=looked),
        *(_placement(one, settings, first=i == 0) for i, one in enumerate(placed)),
        _alternative(found.capacity, n_experts, bits),
    ]


def _case(statement: str, own: Outcome, effect: Effect, seed: int, control: Control, words: str = "", **case: Any) -> Case:
    return Case(
        statement,
        float(own.hits.mean()),
        effect,
        interval=_known(interval_over(own.hits, own.groups, seed)),
        control=control,
        family=FAMILY,
        words=words,
        **case,
    )


def _known(ends: tuple[float, float]) -> tuple[float, float] | None:
    return None if np.isnan(ends[0]) else ends


def _against(own: Outcome, other: Outcome, against: str, settings: ResidencySettings, seed: int, **options: Any) -> Effect:
    """Hit rate of one less that of the other, on the same requests."""
    a, b = own.hits, other.hits
    gap = float(a.mean() - b.mean())
    if np.array_equal(a, b):  # no shares of single answers, of which none would leave a doubt
        return Effect(gap, gap, gap, against, settings.margin, **options)
    if len(np.unique(own.groups)) < 2:
        return Effect(gap, float("nan"), float("nan"), against, settings.margin, **options)
    effect = paired_effect(a, b, own.groups, against, settings.margin, seed, **options)
    return replace(effect, p=None) if effect.no_worse else effect  # whose p is of the margin, not of nought


def _locality(found: Cached, settings: ResidencySettings, seed: int) -> Case:
    c, against = found.capacity, "under a uniform router of the same tokens"
    own, drawn = found.found["lru", c], found.found[f"{UNIFORM}, {NAMES['lru']}", c]
    return _case(
        f"Tokens come back to the experts of the tokens before (hit rate of the {c} last used of a layer)",
        own,
        _against(own, drawn, against, settings, seed),
        seed,
        Control(f"{UNIFORM}, the same rule", float(drawn.hits.mean())),
        f"{own.loads.mean():.3g} experts loaded a token where {drawn.loads.mean():.3g} would be",
    )


def _pinning(found: Cached, settings: ResidencySettings, seed: int) -> Case:
    c = found.capacity
    own, other = found.found["static", c], found.found["lru", c]
    return _case(
        f"Pinning the {c} experts of a layer that other requests used most beats keeping those last used (hit rate)",
        own,
        _against(own, other, NAMES["lru"], settings, seed, kind="none found"),
        seed,
        Control(NAMES["lru"], float(other.hits.mean())),
    )


def _distance(found: Cached, seed: int) -> Claim:
    c, best = found.capacity, found.best
    own, least = found.found[best, c], found.found["belady", c]
    statement = "Loads of the best rule that an engine could run, over the fewest possible"
    if not least.loaded.sum():
        return untested(Claim(statement, "no loads"), "nothing had to be loaded at all")
    drawn = found.found[f"{UNIFORM}, {NAMES['belady']}", c], found.found[f"{UNIFORM}, {NAMES['lru']}", c]
    ends = None
    names, unit = np.unique(own.groups, return_inverse=True)
    if len(names) > 1:
        sums = bootstrap_sums(np.stack([np.bincount(unit, one.loaded) for one in (own, least)], 1), seed=seed)
        ends = expanded_percentiles(sums[:, 0] / np.maximum(sums[:, 1], 1), len(names))
    uniform = drawn[1].loaded.sum() / max(drawn[0].loaded.sum(), 1)
    return Claim(
        statement,
        float(own.loaded.sum() / least.loaded.sum()),
        interval=ends,
        control=Control(f"{UNIFORM}, {NAMES['lru']}", float(uniform)),
        words=f"{NAMES[best]}, chosen on the requests that fit: {own.loads.mean():.3g} experts a token where knowing the "
        f"future would load {least.loads.mean():.3g} ({c} held a layer)" + ("" if ends else "; no interval of a single group"),
    )


def _shift(found: Cached, settings: ResidencySettings, seed: int) -> Case | Claim:
    statement = "What one domain pins serves another as well (hit rate when pinned by all other categories)"
    if len(found.categories) < 2:
        return untested(Claim(statement, "one domain"), _NO_DOMAINS)
    own, other = _all(found.own), _all(found.others)
    against = "pinned by the same category"
    worst = int(np.argmax([a.hits.mean() - b.hits.mean() for a, b in zip(found.own, found.others, strict=True)]))
    return _case(
        statement,
        other,
        _against(other, own, against, settings, seed, no_worse=True),
        seed,
        Control(against, float(own.hits.mean())),
        f"{len(found.categories)} categories, each served alone; most is lost on {found.categories[worst]}: "
        f"{found.others[worst].hits.mean():.1%} where its own pins give {found.own[worst].hits.mean():.1%}",
    )


def _all(parts: list[Outcome]) -> Outcome:
    joined_parts = {
        name: np.concatenate([getattr(one, name) for one in parts]) for name in ("needed", "loaded", "late", "tokens", "groups")
    }
    return Outcome(**joined_parts, by_layer=np.mean([one.by_layer for one in parts], axis=0))


def _lookahead(found: Cached, settings: ResidencySettings, seed: int, *, looked: bool) -> Case | Claim:
    statement = "The next layer's router, asked one layer early, has experts loaded in time (hit rate)"
    if not looked:
        return untested(Claim(statement, "no model"), _NO_MODEL)
    own, other, often = (found.found[name, found.capacity] for name in ("lookahead", "lru", POPULAR))
    return _case(
        statement,
        own,
        _against(own, other, f"{NAMES['lru']} without it", settings, seed, kind="none found"),
        seed,
        Control(NAMES["lru"], float(other.hits.mean())),
        f"{own.loads.mean():.3g} experts loaded a token where {other.loads.mean():.3g} would be: a wrong guess costs its bytes",
        rivals=(_against(own, often, "guessing those that other requests used most", settings, seed, kind="trivial cue"),),
    )


def _placement(one: Placed, settings: ResidencySettings, *, first: bool) -> Case | Claim:
    statement = f"Placing experts over {one.devices} devices by the load of other requests lightens the busiest one"
    own, plain = one.values[FITTED], one.values[CONTIGUOUS]
    words = (
        f"busiest device's load over the mean, mean over layers; in a batch of {settings.tokens} tokens "
        f"{one.batch[FITTED]:.3f} where {one.batch[CONTIGUOUS]:.3f}"
    )
    control = Control("contiguous placement", plain.value)
    if not first:
        return Claim(statement, own.value, interval=_ends(own), control=control, words=f"{words}; beside the first, not judged")
    margin = settings.margin_imbalance
    gain = one.gain
    random = beyond_draws(own.value, one.random, f"random placements ({len(one.random)})", margin, alternative=-1, share=False)
    effect = Effect(gain.value, gain.low, gain.high, "the contiguous placement", margin, _p(gain), share=False)
    return Case(
        statement, own.value, effect, interval=_ends(own), control=control, rivals=(random,), family=FAMILY, words=words
    )


def _ends(known: Estimate) -> tuple[float, float] | None:
    return None if np.isnan(known.low) else (known.low, known.high)


def _p(known: Estimate) -> float | None:
    return None if np.isnan(known.p) else known.p


def _alternative(capacity: int, n_experts: int, bits: int) -> Claim:
    left = bits * capacity / n_experts
    fitting = [b for b in (8, 4) if b <= left]
    said = (
        f"{fitting[0]}-bit weights of all experts fit there, and nothing is ever loaded" if fitting else "not even 4 bits fit"
    )
    return Claim(
        "Cheapest alternative: bits a weight if the same memory held all experts",
        left,
        words=f"{capacity} of {n_experts} experts of {bits} bits; {said}; arithmetic, without an interval; what fewer bits "
        "cost is a question for `moescope convert` and `moescope prune`",
    )
