"""Every interval that is printed, on planted arrays of which the value is known, or is the mean over the draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import norm

from benchmarks.truths.distill import _uses
from benchmarks.truths.pairs import _features, _ranking
from benchmarks.truths.routine import Drawn, Routine
from benchmarks.truths.signatures import _prompts
from moescope.routing.classify import score
from moescope.routing.separation import beyond as beyond_null
from moescope.routing.separation import cells_of, clustered, estimate, estimates, pairs_between, without_each
from moescope.routing.similarity import similarity
from moescope.select.nested import nested_cv
from moescope.select.widening import interval_widening
from moescope.stats import bootstrap_sums, class_weights, expanded_percentiles, group_bootstrap, wilson
from moescope.studies.circuits.causal import PROBE, ablation_row
from moescope.studies.circuits.overlap import overlap_row
from moescope.studies.circuits.pairs import _auroc_intervals, cross_row
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.single import N_DIVISIONS
from moescope.studies.circuits.spread import apart
from moescope.studies.distill.categories import category_case
from moescope.studies.distill.comparisons import log_interval, log_ratio
from moescope.studies.signatures.structure import depth_trend, mean_preference, silhouette, spread
from moescope.studies.steer.claims import _effect as steer_effect
from moescope.studies.steer.effects import _compared, _selectivity
from moescope.studies.transfer.alignment import rsa
from moescope.study.paired import above_chance, beyond, beyond_sets, paired_effect
from moescope.study.verdicts import Effect, beyond_draws
from moescope.tasks import dealt_folds, split_half

NAN = float("nan")
TEMPLATES, PROMPTS = (4, 10, 40), (20, 60, 120)


def grouped(n: int, rng: np.random.Generator) -> np.ndarray:
    """(rows,) the group of each row: ``n`` groups of one to five rows."""
    return np.repeat(np.arange(n), rng.integers(1, 6, n))


def common(groups: np.ndarray, rng: np.random.Generator, share: float = 0.6) -> np.ndarray:
    """(rows,) standard normal, of whose variance ``share`` is the group's."""
    of_group = rng.normal(size=groups.max() + 1)[groups]
    return np.asarray(np.sqrt(share) * of_group + np.sqrt(1 - share) * rng.normal(size=len(groups)))


def hits(rate: float | np.ndarray, hard: np.ndarray, rng: np.random.Generator, share: float = 0.5) -> np.ndarray:
    """(rows,) bool, right with chance ``rate``; what is ``hard`` (rows,) for one is hard for another."""
    found = np.sqrt(share) * hard + np.sqrt(1 - share) * rng.normal(size=len(hard))
    return np.asarray(found < norm.ppf(rate))


def of(effect: Effect, planted: float = NAN) -> Drawn:
    return effect.value, effect.low, effect.high, planted


def _wilson(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.05, 0.95)
    found = int(rng.binomial(n, share))
    return found / n, *wilson(found, n), share


def _mean(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    groups = grouped(n, rng)
    values = common(groups, rng)
    return float(values.mean()), *group_bootstrap(values, groups), 0.0


def _hits(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    groups = grouped(n, rng)
    right = hits(0.8, common(groups, rng, 1.0), rng)
    return float(right.mean()), *group_bootstrap(right.astype(float), groups), 0.8


def _f1(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    groups = grouped(n, rng)
    y = rng.integers(0, 3, len(groups))
    said = np.where(hits(0.7, common(groups, rng, 1.0), rng), y, rng.integers(0, 3, len(groups)))
    found = score(y, said, groups)
    return found.macro_f1, found.f1_low, found.f1_high, NAN


def _perplexity(n: int, seed: int) -> Drawn:
    excess = 0.02 + 0.05 * np.random.default_rng(seed).normal(size=n)
    low, high = group_bootstrap(excess)
    return tuple(np.expm1([excess.mean(), low, high, 0.02]))


def _ratio_of_sums(n: int, seed: int) -> Drawn:
    """Loss added a token, by documents: as where a student takes a layer's place."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(50, 500, n).astype(float)
    sums = np.stack([tokens * (0.1 + 0.05 * rng.normal(size=n)), tokens], axis=1)
    drawn = bootstrap_sums(sums)
    whole = sums.sum(0)
    return float(whole[0] / whole[1]), *expanded_percentiles(drawn[:, 0] / drawn[:, 1], n), 0.1


def _paired(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    groups = grouped(n, rng)
    first = common(groups, rng)
    return of(paired_effect(first + 0.3 + common(groups, rng), first, groups, "", 0.03, 0, share=False), 0.3)


def _paired_hits(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    groups = grouped(n, rng)
    hard = common(groups, rng)
    a, b = (hits(rate, hard, rng).astype(float) for rate in (0.8, 0.7))
    return of(paired_effect(a, b, groups, "", 0.03, 0), 0.1)


def _lopsided(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
    """Groups of four rows, classes one to three: (hard, y, groups)."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n), 4)
    return common(groups, rng), np.tile([1, 0, 0, 0], n), groups, rng


def _above_chance(n: int, seed: int) -> Drawn:
    hard, y, groups, rng = _lopsided(n, seed)
    right = hits(np.where(y, 0.7, 0.9), hard, rng)
    return of(above_chance(right, y, groups, 0.03, 0), 0.3)


def _beyond(n: int, seed: int) -> Drawn:
    hard, y, groups, rng = _lopsided(n, seed)
    a, b = hits(np.where(y, 0.7, 0.9), hard, rng), hits(np.where(y, 0.8, 0.6), hard, rng)
    return of(beyond(a, b, y, groups, "", 0.03, 0), 0.1)


def sets(n: int, seed: int, shift: float, number: int = 99, *, luck: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """What a set of neurons does to ``n`` texts, and ``number`` random sets: sets differ, and texts, and both together."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=n)
    every = luck * rng.normal(size=(number + 1, 1)) + text + 0.5 * rng.normal(size=(number + 1, n))
    return every[0] + shift, every[1:]


def _beyond_sets(n: int, seed: int) -> Drawn:
    own, random = sets(n, seed, 0.4)
    return of(beyond_sets(own, random, np.arange(n), "", 0.03, 0), 0.4)


def _beyond_draws(n: int, seed: int) -> Drawn:
    found, *null = np.random.default_rng(seed).gamma(4, size=n + 1)
    return of(beyond_draws(found + 2, null, "", 0.1), 2.0)


def _apart(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(2):
        values = rng.exponential(size=n)
        parts.append((float(values.mean()), *group_bootstrap(values)))
    return *apart(*parts)[:3], 0.0


def _nested(width: int, gap: float) -> Callable[[int, int], Drawn]:
    def draw(n: int, seed: int) -> Drawn:
        """Three neurons of many tell the class; the interval of the study, of a cross-validated accuracy."""
        rng = np.random.default_rng(seed)
        y, groups = rng.permutation(np.arange(n) % 2), np.arange(n)
        x = rng.normal(size=(n, width)).astype(np.float32)
        x[:, :3] += gap * (y - 0.5)[:, None]
        divisions = [dealt_folds(y, groups, 5, rng) for _ in range(N_DIVISIONS)]
        right = nested_cv(x, y, divisions[0], (5,)).even[0]
        (widening,) = interval_widening(x, y, groups, divisions, (5,))
        return float(right.mean()), *Scorer(y, groups, 0, float(widening)).interval(right), NAN

    return draw


def _gap(n: int, seed: int) -> Drawn:
    hard, y, groups, rng = _lopsided(n, seed)
    a, b = hits(np.where(y, 0.7, 0.9), hard, rng), hits(np.where(y, 0.8, 0.6), hard, rng)
    return *Scorer(y, groups).gap(a, b)[:3], 0.1


def crossed(n: int, seed: int, lift: float) -> dict[str, float]:
    """Refit neurons beside 99 random sets of their layers, which are as good as each other up to luck."""
    rng = np.random.default_rng(seed)
    y, hard = np.arange(n) % 2, rng.normal(size=n)
    luck = 0.15 * rng.normal(size=100)
    luck[0] += lift
    drawn = np.stack([hits(norm.cdf(z), hard, rng) for z in luck])
    return cross_row("refit", drawn[0], drawn[1:], Scorer(y, np.arange(n)))


def _cross(n: int, seed: int) -> Drawn:
    row = crossed(n, seed, 0.3)
    return row["gap"], row["gap_low"], row["gap_high"], NAN


def _ablation(n: int, seed: int) -> Drawn:
    own, random = sets(n, seed, -0.4)
    row = ablation_row("a", 10, "mean", PROBE, np.stack([np.zeros(n), own, *random]), np.arange(n), ratio=1.0)
    return row["gap"], row["gap_low"], row["gap_high"], 0.4


def _auroc(which: int) -> Callable[[int, int], Drawn]:
    def draw(n: int, seed: int) -> Drawn:
        rng = np.random.default_rng(seed)
        y = np.arange(n) % 2
        scores, planted = rng.normal(size=n) + 1.0 * y, float(norm.cdf(np.sqrt(0.5)))
        folded, (signed, low, high, _) = _auroc_intervals(scores, y, np.arange(n), 0)
        return (signed, low, high, planted - 0.5) if which else (signed + 0.5, *folded, planted)

    return draw


def _overlap_gap(n: int, seed: int) -> Drawn:
    """Ten neurons of each task, seven of them the same, from plain to faint: at any N some are about to be found."""
    halves, full = [], []
    strengths = np.geomspace(1.2, 0.2, 10)
    for task in (_features(n, range(10), strengths, 2 * seed, "a"), _features(n, range(3, 13), strengths, 2 * seed + 1, "b")):
        drawn = [split_half(task.y, task.groups, seed + i) for i in range(5)]
        halves.append([tuple(_ranking(task.x[side], task.y[side]) for side in (half, ~half)) for half in drawn])
        full.append(_ranking(task.x, task.y))
    row = overlap_row(full[0], full[1], *halves, np.stack(full), np.stack(full), 10)  # type: ignore[arg-type]
    return row["gap"], row["gap_low"], row["gap_high"], NAN


def _separation(n: int, seed: int) -> Drawn:
    x, cells = _prompts(n, seed, 1.5)
    return *estimates(pairs_between(similarity(x), cells), cells)["d"][:3], NAN


def _separation_beyond(n: int, seed: int) -> Drawn:
    x, cells = _prompts(n, seed, 0.0)
    plan, rng = np.eye(x.shape[1])[cells.y[cells.of]], np.random.default_rng(seed + 1)
    nulls = [pairs_between(similarity(x + 0.8 * plan + 0.2 * rng.normal(size=x.shape)), cells) for _ in range(5)]
    return *beyond_null(pairs_between(similarity(x + 2 * plan), cells), nulls, cells)["d"][:3], NAN


def _silhouette(n: int, seed: int) -> Drawn:
    x, cells = _prompts(n, seed, 1.5)
    return *silhouette(similarity(x), cells, cells.labels(2, seed))[:3], NAN


def _trend(n: int, seed: int) -> Drawn:
    d, left = [], []
    for layer, strength in enumerate(np.linspace(0.8, 2, 10)):
        x, cells = _prompts(n, 100 * seed + layer, float(strength))
        pairs = pairs_between(similarity(x), cells)
        d.append(estimates(pairs, cells)["d"].value)
        left.append(without_each(pairs, cells)["d"])
    return *depth_trend(np.array(d), np.array(left), cells)[:3], NAN


def _loaded(n: int, seed: int, share: np.ndarray) -> Drawn:
    """Experts that get ``share`` (16,) of the tokens, each prompt about so."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(200, rng.dirichlet(60 * share, size=n)).astype(float)[:, None]
    null = np.random.default_rng(0).multinomial(200 * n, np.full(16, 1 / 16), size=20).astype(float)[:, None]
    return *spread(counts, null, cells_of(np.arange(n) % 3, None, "prompt"))[:3], NAN


def _load(n: int, seed: int) -> Drawn:
    return _loaded(n, seed, np.linspace(1, 3, 16) / 32)


def _even_load(n: int, seed: int) -> Drawn:
    return _loaded(n, seed, np.full(16, 1 / 16))


def _preference(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    words = np.eye(3)[y] @ np.random.default_rng(0).normal(size=(3, 16))
    cells = cells_of(y, None, "prompt")
    (value, left), (twin, without) = (mean_preference(s * words + rng.normal(size=(n, 16)), cells) for s in (0.7, 0.4))
    return *estimate(value - twin, left - without, cells)[:3], NAN


def _clustered(n: int, seed: int) -> Drawn:
    hard, y, groups, rng = _lopsided(n, seed)
    weights = class_weights(y)
    return *clustered(weights * (hits(np.where(y, 0.7, 0.9), hard, rng) - 0.5), groups)[:3], 0.3


def errors(n: int, rng: np.random.Generator, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """(3 seeds, n documents) of two students: documents differ far more than students do."""
    size = np.exp(rng.normal(0, 0.7, n))
    own = rng.normal(0, 0.15, (2, 1, n)) + rng.normal(0, 0.05, (2, 3, n))
    return size * np.exp(own[0] + gain), size * np.exp(own[1])


def _log_ratio(n: int, seed: int) -> Drawn:
    found = log_ratio(*errors(n, np.random.default_rng(seed), 0.3))
    return found.value, *found.interval, 0.3


def _contrast(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    found = log_ratio(*errors(n, rng, 0.3)) - log_ratio(*errors(n, rng, 0.1), seed=1)
    return found.value, *found.interval, 0.2


def _seeds(n: int, seed: int) -> Drawn:
    values = np.exp(-1 + 0.05 * np.random.default_rng(seed).normal(size=n))
    return float(np.exp(np.log(values).mean())), *log_interval(values), float(np.exp(-1))


def _kinds(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    case = category_case("s", _uses(n, rng, 0.6), _uses(n, rng, 0.2), 0.1, "", n_permutations=19, seed=0)
    return of(case.rivals[0])


def _rsa(n: int, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    both = rng.normal(size=(n, 8)) + np.eye(8)[y]
    a, b = (similarity(both + rng.normal(size=both.shape)) for _ in range(2))
    found = rsa(a, b, y, n_permutations=2)
    return found.rho, found.low, found.high, NAN


def _steered(n: int, seed: int) -> Drawn:
    own, random = sets(n, seed, 0.4)
    return of(steer_effect(1, _compared(own, random, np.arange(n), 0).row(), "excess_", "", 0.02), 0.4)


def _selective(n: int, seed: int) -> Drawn:
    found = {str(i): _compared(*sets(n, 10_000 * i + seed, 0.3 * (i == 0), 19, luck=0.0), np.arange(n), 0) for i in range(3)}
    chosen = _selectivity(found, "0")
    return chosen.effect, *chosen.interval, 0.3


ROUTINES = [
    Routine("Wilson's, of a share", "interval", _wilson),
    Routine("bootstrap over groups, mean", "interval", _mean),
    Routine("bootstrap over groups, hits", "interval", _hits),
    Routine("bootstrap over groups, macro F1", "interval", _f1),
    Routine("bootstrap over windows, perplexity", "interval", _perplexity, (8, 32, 128)),
    Routine("bootstrap over documents, loss a token", "interval", _ratio_of_sums, (12, 50, 200)),
    Routine("paired difference", "interval", _paired),
    Routine("paired difference of hits", "interval", _paired_hits),
    Routine("balanced accuracy above chance", "interval", _above_chance),
    Routine("balanced accuracy beyond another", "interval", _beyond),
    Routine("beyond random sets, texts and sets drawn", "interval", _beyond_sets),
    Routine("beyond draws of a null", "interval", _beyond_draws, (39, 199, 999)),
    Routine("difference of two measurements (Zou and Donner)", "interval", _apart),
    Routine("nested cross-validation, 64 features", "interval", _nested(64, 0.9), (40, 100, 400)),
    Routine("nested cross-validation, 1,000 features", "interval", _nested(1000, 0.9), (40, 100, 400)),
    Routine("balanced gap of a circuit", "interval", _gap),
    Routine("refit beside random neurons", "interval", _cross),
    Routine("ablation beside random sets", "interval", _ablation),
    Routine("AUROC above one half", "interval", _auroc(1)),
    Routine("AUROC, sign-free", "interval", _auroc(0)),
    Routine("overlap of halves less that across", "interval", _overlap_gap, (60, 160, 400), wide=400),
    Routine("routing separation, d", "interval", _separation, TEMPLATES, wide=4),
    Routine("routing separation beyond a null, d", "interval", _separation_beyond, TEMPLATES),
    Routine("silhouette", "interval", _silhouette, TEMPLATES, wide=4),
    Routine("trend with depth", "interval", _trend, TEMPLATES, wide=40),
    Routine("load beyond balanced routing", "interval", _load),
    Routine("load beyond balanced routing, none", "interval", _even_load, wide=400),
    Routine("experts' preference beyond the twin's", "interval", _preference, (40, 150, 600)),
    Routine("mean of weighted hits, jackknife", "interval", _clustered),
    Routine("ratio of two students' errors", "interval", _log_ratio, (15, 60, 400)),
    Routine("contrast of two ratios", "interval", _contrast, (15, 60, 400)),
    Routine("error over seeds, t", "interval", _seeds, (3, 5, 10)),
    Routine("experts' kinds beyond the untrained", "interval", _kinds, (24, 60, 160), wide=24),
    Routine("representational similarity", "interval", _rsa, PROMPTS, wide=20),
    Routine("steering beyond random sets", "interval", _steered),
    Routine("steering, target less others", "interval", _selective),
]
