"""Every p under its null, and every promise at its boundary, on planted arrays."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd

from benchmarks.truths.distill import _uses
from benchmarks.truths.intervals import TEMPLATES, common, crossed, errors, grouped, hits, sets
from benchmarks.truths.routine import Drawn, Routine
from benchmarks.truths.signatures import _prompts
from moescope.errors import InputError
from moescope.routing.separation import clustered, estimates, pairs_between, two_sided, without_each
from moescope.routing.similarity import similarity
from moescope.select.nested import nested_cv
from moescope.select.null import permutation_max
from moescope.select.widening import interval_widening
from moescope.stats import (
    benjamini_hochberg,
    class_weights,
    group_bootstrap,
    holm,
    overlap_p,
    paired_bootstrap_difference,
    permutation_p,
    permuted_label_matrix,
)
from moescope.stats.conformal import binomial_p, conformal_p, conformal_risk_control, hoeffding_bentkus_p, learn_then_test
from moescope.studies.circuits.erasure import erasure_rows
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.single import N_DIVISIONS
from moescope.studies.circuits.spread import apart, between
from moescope.studies.distill.categories import category_case
from moescope.studies.distill.comparisons import log_ratio
from moescope.studies.route.claims import _asked
from moescope.studies.signatures.rivals import apart as separated_apart
from moescope.studies.signatures.settings import SignatureSettings
from moescope.studies.signatures.structure import depth_trend, silhouette
from moescope.studies.steer.claims import _effect as steer_effect
from moescope.studies.steer.effects import _compared
from moescope.studies.transfer.alignment import rsa
from moescope.study.paired import above_chance, beyond, beyond_sets, paired_effect
from moescope.study.verdicts import Case, Effect, beyond_draws, reading
from moescope.tasks import dealt_folds

_MARGIN = 0.03
_DRAWS = 199


def _p(value: float | None) -> Drawn:
    assert value is not None
    return (float(value),)


def _permuted(mixed: bool) -> Callable[[int, int], Drawn]:
    def draw(n: int, seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        groups = grouped(n, rng)
        y = rng.integers(0, 2, len(groups) if mixed else n)
        y = y if mixed else y[groups]
        x = common(groups, rng) + (rng.normal(size=n)[groups] if mixed else 0)
        labels = permuted_label_matrix(y, groups, _DRAWS, rng)
        weights = [x @ (row - row.mean()) for row in (y, *labels)]
        return _p(permutation_p(weights[0], weights[1:]))

    return draw


def _max(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 60)).astype(np.float32), rng.permutation(np.arange(n) % 2)
    return _p(permutation_max(x, y, n_permutations=_DRAWS, seed=seed).p.min())


def _flips(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    groups = grouped(n, rng)
    return _p(paired_bootstrap_difference(common(groups, rng), common(groups, rng), groups, seed=seed).p)


def _among_draws(n: int, seed: int) -> Drawn:
    found, *null = np.random.default_rng(seed).gamma(4, size=n + 1)
    return _p(beyond_draws(found, null, "", 0.1).p)


def _two_sided(n: int, seed: int) -> Drawn:
    found, *null = np.random.default_rng(seed).gamma(4, size=n + 1)
    return _p(two_sided(found, np.array(null)))


def _even(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
    """Groups of four rows, classes one to three: (hard, y, groups)."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n), 4)
    return common(groups, rng), np.tile([1, 0, 0, 0], n), groups, rng


def _guessing(n: int, seed: int) -> Drawn:
    hard, y, groups, rng = _even(n, seed)
    return _p(above_chance(hits(0.5, hard, rng), y, groups, _MARGIN, 0).p)


def _hits(n: int, seed: int) -> Drawn:
    hard, _, groups, rng = _even(n, seed)
    a, b = (hits(0.8, hard, rng).astype(float) for _ in range(2))
    return _p(paired_effect(a, b, groups, "", _MARGIN, seed).p)


def _balanced(n: int, seed: int) -> Drawn:
    hard, y, groups, rng = _even(n, seed)
    a, b = (hits(0.8, hard, rng) for _ in range(2))
    return _p(beyond(a, b, y, groups, "", _MARGIN, seed).p)


def _beyond_sets(n: int, seed: int) -> Drawn:
    return _p(beyond_sets(*sets(n, seed, 0.0, _DRAWS), np.arange(n), "", _MARGIN, 0).p)


def _steered(n: int, seed: int) -> Drawn:
    found = _compared(*sets(n, seed, 0.0, _DRAWS), np.arange(n), 0)
    return _p(steer_effect(1, found.row(), "excess_", "", 0.02).p)


def _gap(n: int, seed: int) -> Drawn:
    hard, y, groups, rng = _even(n, seed)
    a, b = (hits(0.8, hard, rng) for _ in range(2))
    return _p(Scorer(y, groups).gap(a, b).p)


def _gap_to_chance(n: int, seed: int) -> Drawn:
    hard, y, groups, rng = _even(n, seed)
    return _p(Scorer(y, groups).gap(hits(0.5, hard, rng), 0.5).p)


def _circuit_of_noise(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    y, groups = rng.permutation(np.arange(n) % 2), np.arange(n)
    x = rng.normal(size=(n, 64)).astype(np.float32)
    divisions = [dealt_folds(y, groups, 5, rng) for _ in range(N_DIVISIONS)]
    right = nested_cv(x, y, divisions[0], (5,)).even[0]
    (widening,) = interval_widening(x, y, groups, divisions, (5,))
    return _p(Scorer(y, groups, 0, float(widening)).gap(right, 0.5).p)


def _cross(n: int, seed: int) -> Drawn:
    return _p(crossed(n, seed, 0.0)["p"])


def _apart(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(2):
        values = rng.exponential(size=n)
        parts.append((float(values.mean()), *group_bootstrap(values)))
    return _p(apart(*parts).p)


def _between(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    groups = grouped(n, rng)
    return _p(between(common(groups, rng), common(groups, rng), groups).p)


def _clustered(n: int, seed: int) -> Drawn:
    hard, y, groups, rng = _even(n, seed)
    return _p(clustered(class_weights(y) * (hits(0.5, hard, rng) - 0.5), groups).p)


def _separation(n: int, seed: int) -> Drawn:
    x, cells = _prompts(n, seed, 0.0)
    return _p(separated_apart(similarity(x), cells, SignatureSettings(n_permutations=_DRAWS), seed).p)


def _silhouette(n: int, seed: int) -> Drawn:
    x, cells = _prompts(n, seed, 0.0)
    return _p(silhouette(similarity(x), cells, cells.labels(_DRAWS, seed)).p)


def _trend(n: int, seed: int) -> Drawn:
    d, left = [], []
    for layer in range(10):
        x, cells = _prompts(n, 100 * seed + layer, 1.0)
        pairs = pairs_between(similarity(x), cells)
        d.append(estimates(pairs, cells)["d"].value)
        left.append(without_each(pairs, cells)["d"])
    return _p(depth_trend(np.array(d), np.array(left), cells).p)


def _log_ratio(n: int, seed: int) -> Drawn:
    return _p(log_ratio(*errors(n, np.random.default_rng(seed), 0.0)).p)


def _erasure(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    clean = (rng.random(n) < 0.9).astype(float)
    erased = clean - np.abs(rng.normal(0.1, 0.05, (6, 1 + _DRAWS, 1))) + 0.05 * rng.normal(size=(6, 1 + _DRAWS, n))
    rows = pd.DataFrame(erasure_rows("a", range(6), "probe", clean, erased, np.arange(n)))
    return _p(rows.loc[rows["effect"].idxmin(), "p_worst"])


def _kinds(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    uses = _uses(n, rng, 0.0)
    return _p(category_case("s", uses, uses, 0.1, "", n_permutations=_DRAWS, seed=seed).effect.p)


def _rsa(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    a, b = (similarity(rng.normal(size=(n, 8))) for _ in range(2))
    return _p(rsa(a, b, np.arange(n) % 3, n_permutations=_DRAWS, seed=seed).p)


def _family(adjust: Callable[[np.ndarray], np.ndarray]) -> Callable[[int, int], Drawn]:
    return lambda n, seed: _p(adjust(np.random.default_rng(seed).random(n)).min())


def _overlap(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    a, b = (rng.permutation(n)[:10] for _ in range(2))
    return _p(overlap_p(len(np.intersect1d(a, b)), 10, n))


def _bound(n: int, seed: int) -> Drawn:
    losses = np.random.default_rng(seed).beta(0.4, 3.6, n)
    return _p(float(hoeffding_bentkus_p(losses.mean(), n, 0.1)))


def _binomial(n: int, seed: int) -> Drawn:
    return _p(float(binomial_p((np.random.default_rng(seed).random(n) < 0.1).mean(), n, 0.1)))


_RISKS = np.linspace(0.01, 0.25, 25)


def _promised(binary: bool) -> Callable[[int, int], Drawn]:
    def draw(n: int, seed: int) -> Drawn:
        """1 where the candidate that was chosen loses more than the tenth that was promised at delta 0.1."""
        rng = np.random.default_rng(seed)
        losses = (rng.random(n)[:, None] < _RISKS).astype(float)
        if not binary:
            losses = (losses + (rng.random(n)[:, None] < _RISKS)) / 2
        try:
            chosen = learn_then_test(losses, 0.1, 0.1, binary=binary).candidate
        except InputError:
            return (0.0,)
        return (float(_RISKS[chosen] > 0.1),)

    return draw


def _controlled(n: int, seed: int) -> Drawn:
    """True risk of what conformal risk control chose for a tenth."""
    losses = (np.random.default_rng(seed).random(n)[:, None] < _RISKS).astype(float)
    try:
        return (float(_RISKS[conformal_risk_control(losses, 0.1).candidate]),)
    except InputError:
        return (0.0,)


def _stranger(n: int, seed: int) -> Drawn:
    new, *known = np.random.default_rng(seed).gamma(2, size=n + 1)
    return _p(float(conformal_p(known, [new])[0]))


def _asked_rate(n: int, seed: int) -> Drawn:
    """Prompts called unknown by a router that was calibrated on n prompts of each of three tasks."""
    rng, rate = np.random.default_rng(seed), 0.1
    y = np.repeat(np.arange(3), n)
    called = [conformal_p(rng.random(n), rng.random(n)) <= rate for _ in range(3)]
    router = SimpleNamespace(owner=y, rate=rate)
    return _p(beyond_draws(float(np.mean(called)), _asked(router, y, seed), "", _MARGIN).p)  # type: ignore[arg-type]


def _at_margin(n: int, seed: int, sign: int) -> Effect:
    """Hits that differ by the margin, in truth."""
    rng = np.random.default_rng(seed)
    hard, groups = rng.normal(size=2 * n), np.arange(2 * n) // 2
    a, b = (hits(rate, hard, rng).astype(float) for rate in (0.8 + sign * 0.1, 0.8))
    return paired_effect(a, b, groups, "", 0.1, 0)


def _no_worse(n: int, seed: int) -> Drawn:
    effect = _at_margin(n, seed, -1)
    return _p(Case("s", 0.0, Effect(*(effect.value, effect.low, effect.high), "", 0.1, no_worse=True)).p)


def _equivalent(n: int, seed: int) -> Drawn:
    return (float(reading(_at_margin(n, seed, 1)) == "absent"),)


ROUTINES = [
    Routine("labels permuted within groups", "exact p", _permuted(True)),
    Routine("labels permuted between groups", "exact p", _permuted(False)),
    Routine("largest divergence of 60 neurons", "exact p", _max),
    Routine("two methods exchanged by groups", "exact p", _flips),
    Routine("among draws of a null", "exact p", _among_draws, (199, 499, 999)),
    Routine("among draws of a null, from their middle", "exact p", _two_sided, (199, 499, 999)),
    Routine("balanced accuracy above chance", "p", _guessing),
    Routine("two predictors' hits", "safe p", _hits),
    Routine("two predictors' balanced accuracy", "p", _balanced),
    Routine("beyond random sets", "safe p", _beyond_sets),
    Routine("steering beyond random sets", "safe p", _steered),
    Routine("gap of two circuits", "p", _gap),
    Routine("gap of a circuit to chance", "p", _gap_to_chance),
    Routine("circuit of noise, nested cross-validation", "safe p", _circuit_of_noise, (40, 100, 400)),
    Routine("refit beside random neurons", "p", _cross),
    Routine("difference of two measurements", "p", _apart),
    Routine("difference on the same texts", "p", _between),
    Routine("mean of weighted hits, jackknife", "p", _clustered),
    Routine("routing separation, whole cells permuted", "exact p", _separation, TEMPLATES),
    Routine("silhouette, whole cells permuted", "exact p", _silhouette, TEMPLATES),
    Routine("trend with depth", "safe p", _trend, TEMPLATES),
    Routine("ratio of two students' errors", "p", _log_ratio, (15, 60, 400)),
    Routine("erasure, worst of six layers", "exact p", _erasure),
    Routine("experts' kinds, documents shuffled", "exact p", _kinds, (24, 60, 160)),
    Routine("representational similarity", "exact p", _rsa, (20, 40, 80)),
    Routine("Holm's, of a family of nulls", "p", _family(holm), (2, 5, 20)),
    Routine("Benjamini and Hochberg's, of nulls", "exact p", _family(benjamini_hochberg), (2, 5, 20)),
    Routine("overlap of two tens, hypergeometric", "safe p", _overlap, (40, 100, 400)),
    Routine("risk at its bound, Hoeffding and Bentkus", "safe p", _bound, (50, 200, 800)),
    Routine("risk at its bound, exact binomial", "safe p", _binomial, (50, 200, 800)),
    Routine("Learn then Test, losses 0 and 1", "risk", _promised(True), (50, 200, 800), 0.1),
    Routine("Learn then Test, losses between", "risk", _promised(False), (50, 200, 800), 0.1),
    Routine("conformal risk control", "mean", _controlled, (50, 200, 800), 0.1),
    Routine("conformal p of a new prompt", "exact p", _stranger, (199, 499, 999)),
    Routine("prompts called unknown as asked", "safe p", _asked_rate, (40, 100, 400)),
    Routine("no loss, at the margin", "p", _no_worse),
    Routine("absence claimed at the margin", "risk", _equivalent),
]
