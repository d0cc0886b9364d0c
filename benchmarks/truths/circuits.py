"""Planted truths of one task's circuit: the same cross-validation, scorer, rivals and verdicts as the study's, on made rows."""

from __future__ import annotations

import numpy as np

from benchmarks.truths.harness import Truth
from moescope.select.nested import nested_cv
from moescope.select.ranking import fold_class_sums, random_sets
from moescope.select.widening import interval_widening
from moescope.stats import Difference
from moescope.studies.circuits.cues import Cues
from moescope.studies.circuits.depth import EVEN, probe_hits
from moescope.studies.circuits.features import Columns
from moescope.studies.circuits.geometry import rotated, rotations
from moescope.studies.circuits.scorer import Scorer
from moescope.study.verdicts import Case, Effect, verdicts
from moescope.tasks import dealt_folds
from moescope.types import Claim, Site

K, MARGIN, N_FOLDS = 4, 0.03, 5
EXPLAINED = frozenset({"chance", "trivial cue", "none found", None})


class Rows:
    """N rows of 24 neurons, of which the first three may tell the class, and what the study measures on them."""

    def __init__(self, n: int, seed: int, gap: float = 0.0, share: float = 0.5, x: np.ndarray | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.y = self.rng.permutation((np.arange(n) < share * n).astype(np.int64))
        self.x = self.rng.normal(size=(n, 24)).astype(np.float32)
        self.x[:, :3] += gap * (self.y - 0.5)[:, None]
        groups = np.arange(n)
        divisions = [dealt_folds(self.y, groups, N_FOLDS, self.rng) for _ in range(4)]
        self.folds = divisions[0]
        (widening,) = interval_widening(self.x, self.y, groups, divisions, (K,))
        self.scorer = Scorer(self.y, groups, seed, float(widening))

    def cv(self, k: int = K, x: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Hits (N,) with classes counted alike, and the neurons chosen in each fold (F, k)."""
        found = nested_cv(self.x if x is None else x, self.y, self.folds, (k,))
        return found.even[0], found.selected

    def cue(self, right: float) -> Cues:
        """Ten cues of which one is right so often, and independent of the neurons given the class."""
        n = len(self.y)
        said = {f"nothing {i}": self.rng.integers(0, 2, (N_FOLDS, n)) for i in range(9)}
        told = np.where(self.rng.random(n) < right, self.y, 1 - self.y)
        return Cues({**said, "cue": np.tile(told, (N_FOLDS, 1))}, self.y, self.folds)

    def chance(self) -> Effect:
        return effect(self.scorer.gap(self.cv()[0], 0.5), "chance")

    def handful(self, cues: Cues) -> Claim:
        hits, selected = self.cv()
        both, bits = cues.with_circuit(self.x, selected, "lda")
        alone = cues.chosen_hits()
        beyond, seen = self.scorer.gap(both, alone), self.scorer.bits(bits, alone, MARGIN) > 0
        rivals = (effect(beyond, "the best cue", kind="trivial cue", seen=seen),)
        return judged(self.chance(), self.scorer.balanced(hits), rivals)


def effect(found: Difference, against: str, **options: object) -> Effect:
    p = None if options.get("no_worse") else found.p
    return Effect(found.value, found.low, found.high, against, MARGIN, p, **options)  # type: ignore[arg-type]


def judged(decides: Effect, measured: float = 0.0, rivals: tuple[Effect, ...] = ()) -> Claim:
    return verdicts([Case("made", measured, decides, rivals=rivals)])[0]


def adds_to_a_cue(n: int, seed: int) -> Claim:
    rows = Rows(n, seed, 1.1)
    return rows.handful(rows.cue(0.85))


def is_the_cue(n: int, seed: int) -> Claim:
    rows = Rows(n, seed)
    cues = rows.cue(0.85)
    rows.x[:, 0] += 8 * cues.said["cue"][0]
    return rows.handful(cues)


def weak(n: int, seed: int) -> Claim:
    return judged(Rows(n, seed, 0.5).chance())


def noise(n: int, seed: int) -> Claim:
    return judged(Rows(n, seed).chance())


def rare_class(n: int, seed: int) -> Claim:
    return judged(Rows(n, seed, 0.7, 0.1).chance())


def few_neurons_are_the_unit(n: int, seed: int) -> Claim:
    return _unit(Rows(n, seed, 1.2), n, seed)


def wide_and_distributed(n: int, seed: int) -> Claim:
    rows = Rows(n, seed)
    rows.x += 0.5 * rows.rng.choice([-1, 1], 24) * (rows.y - 0.5)[:, None]
    rows.x[:, :2] = 20 * rows.rng.normal(size=(n, 2))
    return _unit(rows, n, seed)


def _unit(rows: Rows, n: int, seed: int) -> Claim:
    columns = Columns((Site("resid", 0),), (24,))
    level = (rows.x - rows.x.mean(0)) / rows.x.std(0)
    turned = [rows.cv(x=rotated(level, columns, rotations(columns, 100 * seed + i)))[0] for i in range(20)]
    gap = rows.scorer.gap(rows.cv()[0], np.mean(turned, axis=0), spread=rows.scorer.spread(np.stack(turned)))
    return judged(effect(gap, "random bases", kind="none found"))


def two_suffice(n: int, seed: int) -> Claim:
    rows = Rows(n, seed)
    rows.x[:, :2] += 2.4 * (rows.y - 0.5)[:, None]
    return _two(rows)


def two_do_not_suffice(n: int, seed: int) -> Claim:
    rows = Rows(n, seed)
    rows.x += 0.7 * (rows.y - 0.5)[:, None]
    return _two(rows)


def _two(rows: Rows) -> Claim:
    probe = probe_hits(rows.x, rows.y, rows.folds)[EVEN]
    hits, _ = rows.cv(2)
    beats = effect(rows.scorer.gap(hits, 0.5), "chance")
    return judged(effect(rows.scorer.gap(hits, probe), "the probe", no_worse=True), 0.0, (beats,))


def as_good_as_random_neurons(n: int, seed: int) -> Claim:
    """Every neuron tells as much as every other, so that the ten that are chosen are ten of many."""
    rows = Rows(n, seed)
    rows.x += 0.5 * (rows.y - 0.5)[:, None]
    sums = fold_class_sums(rows.x, rows.y, rows.folds)
    assert sums.n_features == 24
    sets = random_sets(rows.rng, 24, K, 20)
    others = np.mean([nested_cv(np.ascontiguousarray(rows.x[:, s]), rows.y, rows.folds, (K,)).even[0] for s in sets], axis=0)
    return judged(effect(rows.scorer.gap(rows.cv()[0], others), "random neurons"))


HOLDS = frozenset({("holds", None), ("holds", "none found")})
FAILS = frozenset({("contradicted", e) for e in EXPLAINED})
OPEN = frozenset({("inconclusive", None)})
TRUTHS = [
    Truth("circuit adds to an independent cue", HOLDS, FAILS | {("holds", "trivial cue")}, (100, 300, 1000), adds_to_a_cue),
    Truth("circuit is the cue", frozenset({("holds", "trivial cue")}), HOLDS, (100, 400, 1600), is_the_cue),
    Truth("weak circuit, accuracy .63", HOLDS, FAILS, (40, 200, 800), weak),
    Truth("noise", FAILS, HOLDS, (40, 400, 3000), noise),
    Truth("three neurons, one row in ten of a class", HOLDS, FAILS, (200, 600, 2000), rare_class),
    Truth("few neurons are the unit", HOLDS, FAILS, (100, 300, 1000), few_neurons_are_the_unit),
    Truth("distributed code and two wide coordinates", FAILS | OPEN, HOLDS, (100, 300, 1000), wide_and_distributed),
    Truth("two neurons hold all", HOLDS, FAILS, (100, 400, 2000), two_suffice),
    Truth("two neurons of a code in all", FAILS, HOLDS, (100, 300, 800), two_do_not_suffice),
    Truth("circuit among equals", FAILS | OPEN, HOLDS, (100, 400, 2000), as_good_as_random_neurons),
]
