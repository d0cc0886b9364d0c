"""Planted truths of the signatures study: similarities, experts, loads and predictions whose verdict is known.

N is the number of templates where prompts have any (three categories share them, four prompts a cell), else of prompts.
"""

from __future__ import annotations

import numpy as np

from benchmarks.truths.harness import Truth, Word
from moescope.routing.classify import cross_validate
from moescope.routing.conditional import conditional
from moescope.routing.separation import (
    Cells,
    Estimate,
    beyond,
    cells_of,
    clustered,
    estimate,
    estimates,
    pairs_between,
    two_sided,
    without_each,
)
from moescope.routing.similarity import similarity
from moescope.stats import class_weights
from moescope.studies.signatures.experts import variance_explained
from moescope.studies.signatures.rivals import SHUFFLED, TOKEN, TWIN, apart, of_d
from moescope.studies.signatures.settings import SignatureSettings
from moescope.studies.signatures.structure import depth_trend, mean_preference, silhouette, spread
from moescope.study.verdicts import Case, Effect, verdicts
from moescope.tasks import group_folds
from moescope.types import Claim

_SETTINGS = SignatureSettings(n_permutations=199)
_DIMENSIONS = 12
_EXPERTS = 16


def _judged(effect: Effect, *rivals: Effect) -> Claim:
    return verdicts([Case("a planted truth", effect.value, effect, rivals=rivals)])[0]


def _prompts(templates: int, seed: int, effect: float, *, own: bool = False) -> tuple[np.ndarray, Cells]:
    """Vectors (N, 12) of prompts and their cells. ``own``: each category is one template, and nothing else."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(3), 4 * templates)
    block = y if own else np.tile(np.repeat(np.arange(templates), 4), 3)
    of_template = rng.normal(size=(block.max() + 1, _DIMENSIONS))
    of_cell = rng.normal(size=(3, block.max() + 1, _DIMENSIONS))
    x = effect * np.eye(_DIMENSIONS)[y] + 0.7 * of_template[block] + 0.5 * of_cell[y, block]
    return x + rng.normal(size=x.shape), cells_of(y, block, "template")


def _separation(n: int, seed: int, effect: float, *, own: bool = False) -> Claim:
    x, cells = _prompts(n, seed, effect, own=own)
    return _judged(of_d(apart(similarity(x), cells, _SETTINGS, seed), SHUFFLED, _SETTINGS, "chance"))


def separated_by_category(n: int, seed: int) -> Claim:
    return _separation(n, seed, 2.0)


def separated_by_nothing(n: int, seed: int) -> Claim:
    return _separation(n, seed, 0.0)


def separated_by_wording(n: int, seed: int) -> Claim:
    return _separation(n, seed, 0.0, own=True)


def _beside_tokens(n: int, seed: int, kept: float) -> Claim:
    """Routing by category, of which a null that keeps what tokens decide keeps the share ``kept``."""
    x, cells = _prompts(n, seed, 0.0)
    rng = np.random.default_rng(seed + 1)
    plan = np.eye(_DIMENSIONS)[cells.y[cells.of]]
    measured = similarity(x + 2.0 * plan)
    nulls = [similarity(x + 2.0 * kept * plan + 0.2 * rng.normal(size=x.shape)) for _ in range(5)]
    d = apart(measured, cells, _SETTINGS, seed)
    left = beyond(pairs_between(measured, cells), [pairs_between(s, cells) for s in nulls], cells)["d"]
    return _judged(of_d(d, SHUFFLED, _SETTINGS, "chance"), of_d(left, TOKEN, _SETTINGS))


def all_of_it_tokens(n: int, seed: int) -> Claim:
    return _beside_tokens(n, seed, 1.0)


def half_of_it_tokens(n: int, seed: int) -> Claim:
    return _beside_tokens(n, seed, 0.4)


def null_that_does_not_fit(n: int, seed: int) -> Claim:
    """Prompts far less alike than random routing, whatever their category."""
    x, cells = _prompts(n, seed, 0.0)
    rng = np.random.default_rng(seed + 1)
    nulls = [similarity(1.0 + 0.3 * rng.normal(size=x.shape)) for _ in range(5)]
    found = beyond(pairs_between(similarity(0.6 + x), cells), [pairs_between(s, cells) for s in nulls], cells)["within"]
    return _judged(Effect(*found[:3], "load balance", _SETTINGS.margin, found.p, share=False))


def _clusters(n: int, seed: int, effect: float) -> Claim:
    x, cells = _prompts(n, seed, effect)
    found = silhouette(similarity(x), cells, cells.labels(199, seed))
    return _judged(Effect(*found[:3], "at the border between two categories", _SETTINGS.margin, found.p, share=False))


def clustered_by_category(n: int, seed: int) -> Claim:
    return _clusters(n, seed, 2.0)


def clustered_by_nothing(n: int, seed: int) -> Claim:
    return _clusters(n, seed, 0.0)


def _trend(n: int, seed: int, strengths: np.ndarray) -> Claim:
    d, left = [], []
    for layer, strength in enumerate(strengths):
        x, cells = _prompts(n, seed * 100 + layer, float(strength))
        pairs = pairs_between(similarity(x), cells)
        d.append(estimates(pairs, cells)["d"].value)
        left.append(without_each(pairs, cells)["d"])
    found = depth_trend(np.array(d), np.array(left), cells)
    return _judged(Effect(*found[:3], "no trend", _SETTINGS.margin_trend, found.p, share=False))


def deeper_is_clearer(n: int, seed: int) -> Claim:
    return _trend(n, seed, np.linspace(0.5, 3, 10))


def deeper_is_fainter(n: int, seed: int) -> Claim:
    return _trend(n, seed, np.linspace(3, 0.5, 10))


def _told(n: int, seed: int, gap: float) -> Claim:
    """A cue that is right in four of five, and a signature that knows the class by ``gap`` standard deviations, or it
    repeats the cue where that is 0."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    cue = np.where(rng.random(n) < 0.8, y, 1 - y)
    x = np.column_stack([gap * y if gap else 10 * cue, np.zeros(n)]) + rng.normal(size=(n, 2))
    alone = np.arange(n)
    folds = group_folds(y, alone, 5, seed)
    said = cross_validate(x, y, folds)
    found = conditional(x, lambda train, held: {"cue": cue[held]}, y, folds, alone, seed)
    weights = class_weights(y)
    chance = clustered(weights * ((said == y) - 0.5), alone)
    more = clustered(weights * ((found.both == y) * 1.0 - (found.cue == y)), alone)
    over = Effect(*chance[:3], "guessing", _SETTINGS.margin, chance.p)
    return _judged(over, Effect(*more[:3], "the best cue", _SETTINGS.margin, more.p, kind="trivial cue"))


def signature_adds_to_a_cue(n: int, seed: int) -> Claim:
    return _told(n, seed, 2.0)


def signature_repeats_a_cue(n: int, seed: int) -> Claim:
    return _told(n, seed, 0.0)


def _experts(n: int, seed: int, trained: float, twin: float) -> Claim:
    """Experts' use by prompts whose words a twin's experts follow with strength ``twin``."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    words = np.eye(3)[y] @ rng.normal(size=(3, _EXPERTS))
    used, other = (strength * words + rng.normal(size=(n, _EXPERTS)) for strength in (trained, twin))
    cells = cells_of(y, None, "prompt")
    (value, left), (beside, without) = mean_preference(used, cells), mean_preference(other, cells)
    null = variance_explained(used, cells.labels(199, seed), cells).mean(1)
    chance = estimate(value - float(null.mean()), left - float(null.mean()), cells)
    more = estimate(value - beside, left - without, cells)
    over = Effect(*chance[:3], SHUFFLED, _SETTINGS.margin, two_sided(value, null))
    return _judged(over, Effect(*more[:3], TWIN, _SETTINGS.margin, more.p, kind="trivial cue"))


def experts_of_a_random_model(n: int, seed: int) -> Claim:
    return _experts(n, seed, 0.7, 0.7)


def experts_beyond_their_twin(n: int, seed: int) -> Claim:
    return _experts(n, seed, 1.0, 0.3)


def _load(n: int, seed: int, popularity: np.ndarray) -> Claim:
    rng = np.random.default_rng(seed)
    shares = popularity / popularity.sum()
    counts = rng.multinomial(200, rng.dirichlet(60 * shares, size=n)).astype(float)[:, None]
    null = rng.multinomial(200 * n, np.full(_EXPERTS, 1 / _EXPERTS), size=20).astype(float)[:, None]
    cells = cells_of(np.arange(n) % 3, None, "prompt")
    found: Estimate = spread(counts, null, cells)
    return _judged(Effect(*found[:3], "balanced routing", _SETTINGS.margin_load, None, no_worse=True))


def load_that_is_spread(n: int, seed: int) -> Claim:
    return _load(n, seed, np.ones(_EXPERTS))


def load_on_a_few(n: int, seed: int) -> Claim:
    return _load(n, seed, 2.0 ** -np.arange(_EXPERTS))


def _words(*words: Word) -> frozenset[Word]:
    return frozenset(words)


_HOLDS = _words(("holds", None), ("holds", "none found"))
_EXPLAINED = _words(("holds", "trivial cue"), ("holds", "chance"), ("holds", "leakage"))
_NOT = _words(("contradicted", None), ("contradicted", "chance"), ("contradicted", "trivial cue"))
_TEMPLATES, _PROMPTS = (4, 10, 40), (40, 150, 600)

TRUTHS = [
    Truth("routed by category, templates shared", _HOLDS, _NOT, _TEMPLATES, separated_by_category),
    Truth("routed by template and cell alone", _words(("contradicted", "chance")), _HOLDS, _TEMPLATES, separated_by_nothing),
    Truth("category is the wording", _words(("inconclusive", None)), _HOLDS | _NOT, (3, 6, 12), separated_by_wording),
    Truth("all of it from tokens", _words(("holds", "trivial cue")), _HOLDS | _NOT, _TEMPLATES, all_of_it_tokens),
    Truth("half of it from tokens", _words(("holds", "none found")), _NOT | _EXPLAINED, _TEMPLATES, half_of_it_tokens),
    Truth("a null far above what it explains", _words(("contradicted", None)), _HOLDS, _TEMPLATES, null_that_does_not_fit),
    Truth("clusters by category", _HOLDS, _NOT, _TEMPLATES, clustered_by_category),
    Truth("no clusters", _NOT, _HOLDS, _TEMPLATES, clustered_by_nothing),
    Truth("deeper layers separate more", _HOLDS, _NOT, _TEMPLATES, deeper_is_clearer),
    Truth("deeper layers separate less", _NOT, _HOLDS, _TEMPLATES, deeper_is_fainter),
    Truth("signature adds to a cue", _words(("holds", "none found")), _NOT | _EXPLAINED, _PROMPTS, signature_adds_to_a_cue),
    Truth("signature repeats a cue", _words(("holds", "trivial cue")), _HOLDS | _NOT, _PROMPTS, signature_repeats_a_cue),
    Truth("experts of a random model", _words(("holds", "trivial cue")), _HOLDS, _PROMPTS, experts_of_a_random_model),
    Truth("experts beyond their twin", _words(("holds", "none found")), _NOT | _EXPLAINED, _PROMPTS, experts_beyond_their_twin),
    Truth("load that is spread", _HOLDS, _NOT, (20, 60, 200), load_that_is_spread),
    Truth("load on a few experts", _NOT, _HOLDS, (20, 60, 200), load_on_a_few),
]
