"""Planted truths of the uses: early exits and routers beside a surface cue, a conversion's loss, a mask beside random ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.truths.harness import Truth
from moescope.intervene.quality import Quality
from moescope.stats import group_bootstrap
from moescope.studies.convert.claims import quality_cases
from moescope.studies.exit.claims import known_case
from moescope.studies.prune.claims import mask_cases
from moescope.studies.route.claims import naming_case
from moescope.study.verdicts import Case, verdicts
from moescope.types import Claim

_HOLDS = frozenset({("holds", "none found")})
_CUE = frozenset({("holds", "trivial cue")})
_NOT = frozenset({("contradicted", "chance"), ("contradicted", None)})
_BESIDE: dict[str, Callable[..., Case]] = {
    "exit": lambda right, cue, y, n: known_case("planted", right, cue, y, np.arange(n), "a cue", margin=0.03, seed=0),
    "route": lambda right, cue, y, n: naming_case(
        "the task is named", right, cue, y, np.arange(n), "a cue", margin=0.03, seed=0
    ),
}


def _judged(*cases: Case) -> Claim:
    return verdicts(cases)[0]


def beside_cue(use: str, model: float, cue: float, *, same: float = 0.0, classes: int = 2) -> Callable[[int, int], Claim]:
    """A model right in the share ``model`` of rows and a cue in the share ``cue``, on n rows that judge.

    Args:
        same: share of rows on which the cue says what the model says.
    """

    def draw(n: int, seed: int) -> Claim:
        rng = np.random.default_rng(seed)
        y = np.arange(n) % classes
        right = rng.random(n) < model
        other = np.where(rng.random(n) < same, right, rng.random(n) < cue)
        return _judged(_BESIDE[use](right, other, y, n))

    return draw


def loss(rise: float, spread: float) -> Callable[[int, int], Claim]:
    """A conversion whose perplexity rises by ``rise``, n windows, tolerance 5 %."""

    def draw(n: int, seed: int) -> Claim:
        excess = np.log1p(rise) + spread * np.random.default_rng(seed).normal(size=n)
        low, high = np.expm1(group_bootstrap(excess))
        here = Quality("converted", 3.0, 20.0, 0.1, 0.9, float(np.expm1(excess.mean())), low, high, 512 * n, tuple(excess))
        return _judged(quality_cases(here, {}, alike="", tolerance=0.05, margin=0.02, seed=0)[0])

    return draw


def mask(spared: float, kinds: float) -> Callable[[int, int], Claim]:
    """A mask that costs ``spared`` nats a token less than random masks, which differ by ``kinds``; n documents."""

    def draw(n: int, seed: int) -> Claim:
        rng = np.random.default_rng(seed)
        texts = 0.3 + 0.1 * rng.normal(size=n)
        random = texts + kinds * rng.normal(size=(99, 1)) + 0.05 * rng.normal(size=(99, n))
        own = texts - spared + (kinds * rng.normal() if not spared else 0.0) + 0.05 * rng.normal(size=n)
        return _judged(mask_cases("reap", 0.25, own, random, np.arange(n), margin=0.02, seed=0)[0])

    return draw


TRUTHS = [
    Truth("exit: the cue says what the model says", _CUE, _NOT, (50, 200, 400), beside_cue("exit", 0.85, 0.85, same=1.0)),
    Truth("exit: as good as the cue, on other rows", _CUE, _HOLDS | _NOT, (200, 600, 2090), beside_cue("exit", 0.85, 0.85)),
    Truth("exit: the model knows much more", _HOLDS, _CUE | _NOT, (50, 200, 400), beside_cue("exit", 0.95, 0.60)),
    Truth(
        "exit: 85 % beside a cue of 80 %",
        _HOLDS,
        _CUE | _NOT,
        (200, 600, 2090),
        beside_cue("exit", 0.85, 0.80),
    ),
    Truth(
        "exit: model and cue know nothing",
        frozenset({("contradicted", "chance")}),
        _HOLDS | _CUE,
        (50, 400, 2090),
        beside_cue("exit", 0.5, 0.5),
    ),
    Truth(
        "route: a bag of words names as well", _CUE, _NOT, (50, 200, 400), beside_cue("route", 0.97, 0.97, same=1.0, classes=4)
    ),
    Truth("route: named where no cue tells", _HOLDS, _CUE | _NOT, (50, 200, 400), beside_cue("route", 0.95, 0.30, classes=4)),
    Truth(
        "convert: a rise of 1 %",
        frozenset({("holds", None)}),
        frozenset({("contradicted", None)}),
        (8, 32, 128),
        loss(0.01, 0.05),
    ),
    Truth(
        "convert: a rise of 30 %",
        frozenset({("contradicted", None)}),
        frozenset({("holds", None)}),
        (8, 32, 128),
        loss(0.30, 0.10),
    ),
    Truth("prune: spares much", frozenset({("holds", None)}), _NOT, (8, 32, 128), mask(0.15, 0.02)),
    Truth(
        "prune: another random mask",
        frozenset({("contradicted", "chance"), ("inconclusive", None)}),
        frozenset({("holds", None)}),
        (8, 32, 128),
        mask(0.0, 0.02),
    ),
]
