"""Planted truths of two tasks, of interventions and of languages: what the circuits study must say of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import norm

from benchmarks.truths.harness import Truth
from moescope.select.ranking import divergence, fold_class_sums, rank
from moescope.studies.circuits.causal import PROBE, ablation_row
from moescope.studies.circuits.causal_run import interference_row
from moescope.studies.circuits.claims_causal import ablation_claims, erasure_claims, interference_claims
from moescope.studies.circuits.claims_pairs import cross_claims, language_claims, overlap_claim, own_coordinates_claim
from moescope.studies.circuits.erasure import erasure_rows
from moescope.studies.circuits.features import Columns, Features
from moescope.studies.circuits.overlap import overlap_row, permuted_rankings
from moescope.studies.circuits.pairs import cross_row
from moescope.studies.circuits.scorer import Scorer
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.verdicts import Case, verdicts
from moescope.tasks import split_half
from moescope.types import Claim, Example, Site, Task

_WIDTH = 1600  # of which permuted labels share none of ten in 94 % of draws
_SETTINGS = CircuitSettings(ablate="mean")
_K = _SETTINGS.k


def _judged(case: Case | Claim) -> Claim:
    return verdicts([case])[0]


def _features(n: int, planted: range, gap: float | np.ndarray, seed: int, name: str) -> Features:
    """Noise, and the class in the coordinates ``planted``; rows in pairs, one of each class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, _WIDTH))
    x[:, list(planted)] += gap * (y[:, None] - 0.5)
    groups = (np.arange(n) // 2).astype(str)
    task = Task(name, tuple(Example("", int(c), g) for c, g in zip(y, groups, strict=True)), ("a", "b"), source="made here")
    columns = Columns((Site("resid", 0),), (_WIDTH,))
    return Features(task, columns, x.astype(np.float32), np.zeros((n, 1), np.float32), y, groups, y, seed)


def _ranking(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return rank(divergence(*fold_class_sums(x, y, np.zeros(len(y), np.int64)).total(), sigma="pooled"))


def _overlap(n: int, seed: int, gap: float, *, same: bool) -> pd.DataFrame:
    """The overlap at K = 10 of two tasks of ten neurons each, their own or the same."""
    a = _features(n, range(_K), gap, 2 * seed, "a")
    b = _features(n, range(_K) if same else range(_K, 2 * _K), gap, 2 * seed + 1, "b")
    halves = []
    for task in (a, b):
        drawn = [split_half(task.y, task.groups, seed + i) for i in range(5)]
        halves.append([tuple(_ranking(task.x[side], task.y[side]) for side in (half, ~half)) for half in drawn])
    nulls = [permuted_rankings(task, "pooled", n=99, k=_K, seed=seed) for task in (a, b)]
    row = overlap_row(_ranking(a.x, a.y), _ranking(b.x, b.y), *halves, *nulls, _K)  # type: ignore[arg-type]
    return pd.DataFrame([{"task_a": "a", "task_b": "b", **row}])


def none_shared(n: int, seed: int) -> Claim:
    """Two tasks of their own neurons share none of ten, as permuted labels do."""
    return _judged(overlap_claim(_overlap(n, seed, 2.0, same=False), _SETTINGS))


def all_shared(n: int, seed: int) -> Claim:
    return _judged(overlap_claim(_overlap(n, seed, 2.0, same=True), _SETTINGS))


def circuits_of_their_own(n: int, seed: int) -> Claim:
    return _judged(own_coordinates_claim(_overlap(n, seed, 2.0, same=False), _SETTINGS))


def circuits_of_noise(n: int, seed: int) -> Claim:
    return _judged(own_coordinates_claim(_overlap(n, seed, 0.0, same=False), _SETTINGS))


def one_circuit_for_both(n: int, seed: int) -> Claim:
    return _judged(own_coordinates_claim(_overlap(n, seed, 2.0, same=True), _SETTINGS))


def _refit(n: int, seed: int, circuit: float, random: float, own: float) -> Claim:
    """Held-out hits with the given chances: of the source's circuit, of random neurons of its layers, of the target's own."""
    rng = np.random.default_rng(seed)
    y, groups = np.arange(n) % 2, np.arange(n) // 2
    hard = rng.normal(size=n)  # what is hard for one set of neurons is hard for another

    def hits(chance: float) -> np.ndarray:
        found = 0.6 * hard + 0.8 * rng.normal(size=n)
        return np.asarray(found < norm.ppf(chance))

    judge, drawn = Scorer(y, groups, seed), np.stack([hits(random) for _ in range(100)])
    rows = [cross_row(name, hits(chance), drawn, judge) for name, chance in (("refit", circuit), ("own", own))]
    rows.append({"method": "refit_layer_matched", "value": random})
    (case,) = cross_claims("a", "b", pd.DataFrame(rows).set_index("method"), _SETTINGS)
    return _judged(case)


def refit_below_random(n: int, seed: int) -> Claim:
    """Neurons that refit to 58 % where random ones of the same layers give 72 %."""
    return _refit(n, seed, 0.58, 0.72, 0.9)


def refit_above_random(n: int, seed: int) -> Claim:
    return _refit(n, seed, 0.85, 0.65, 0.9)


def refit_of_what_nothing_reads(n: int, seed: int) -> Claim:
    """At chance, as the target's own circuit is."""
    return _refit(n, seed, 0.5, 0.5, 0.5)


def _ablated(n: int, seed: int, circuit: float, random: float, off: float) -> dict[str, pd.DataFrame]:
    """A probe right on 90 % of the texts, of which an intervention spoils the given share: on task, at random, off task."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n)

    def spoiled(clean: np.ndarray, share: float) -> np.ndarray:
        return clean * (rng.random(len(clean)) >= share)

    clean, other = (rng.random((2, n)) < 0.9).astype(float)
    scores = np.stack([clean, spoiled(clean, circuit), *(spoiled(clean, random) for _ in range(199))])
    main = ablation_row("a", _K, "mean", PROBE, scores, groups, ratio=1.0)
    direction = ablation_row("a", 0, "direction", PROBE, scores[:2], groups) | dict.fromkeys(
        ("gap", "gap_low", "gap_high"), 0.0
    )
    beside = interference_row("a", "b", other, spoiled(other, off), groups, 0.5)
    own = {**main, "task": "b"}
    return {
        "ablation": pd.DataFrame([main, direction, own, {**direction, "task": "b"}]),
        "interference": pd.DataFrame([beside]),
    }


def _claim(which: int, circuit: float, random: float, off: float) -> Callable[[int, int], Claim]:
    def draw(n: int, seed: int) -> Claim:
        tables = _ablated(n, seed, circuit, random, off)
        if which < 0:
            return _judged(interference_claims(tables["interference"], tables["ablation"], _SETTINGS)[0])
        only = {name: table[table["task"] == "a"] for name, table in tables.items()}
        return _judged(ablation_claims(only, _SETTINGS, "at the final token")[which])

    return draw


def _erased(effect: float) -> Callable[[int, int], Claim]:
    def draw(n: int, seed: int) -> Claim:
        """Of six layers one at which erasure spoils the given share; permuted labels spoil 3 % at each."""
        rng = np.random.default_rng(seed)
        clean = (rng.random(n) < 0.9).astype(float)
        erased = clean * (rng.random((6, 40, n)) >= 0.03)
        erased[2, 0] = clean * (rng.random(n) >= effect)
        rows = erasure_rows("a", range(6), PROBE, clean, erased, np.arange(n))
        return _judged(erasure_claims(pd.DataFrame(rows), _SETTINGS)[0])

    return draw


def _language(accuracy: float) -> Callable[[int, int], Claim]:
    def draw(n: int, seed: int) -> Claim:
        rng = np.random.default_rng(seed)
        judge = Scorer(np.arange(n) % 2, np.arange(n) // 2, seed)
        gap = judge.gap(rng.random(n) < accuracy, judge.chance)
        row = {
            "task": "a",
            "accuracy": gap.value + 0.5,
            "low": gap.low + 0.5,
            "high": gap.high + 0.5,
            "chance": 0.5,
            "p": gap.p,
        }
        pairs = [("de", "de"), ("en", "en"), ("de", "en")]
        frame = pd.DataFrame([{**row, "train_language": a, "test_language": b} for a, b in pairs])
        return _judged(language_claims(frame, _SETTINGS)[0])

    return draw


def _truth(
    name: str,
    right: tuple[str, str | None],
    wrong: list[tuple[str, str | None]],
    draw: Callable[[int, int], Claim],
    sizes: tuple[int, ...] = (60, 200, 1000),
) -> Truth:
    return Truth(name, frozenset({right}), frozenset(wrong), sizes, draw)


_FEW, _MANY = (40, 100, 200), (200, 800, 2000)
_HOLDS: list[tuple[str, str | None]] = [("holds", None), ("holds", "none found"), ("holds", "chance"), ("reproduced", None)]
_FAILS: list[tuple[str, str | None]] = [("contradicted", None), ("contradicted", "chance")]

TRUTHS = [
    _truth(
        "two circuits share none of ten, nor do permuted labels", ("holds", "chance"), [*_FAILS, _HOLDS[1]], none_shared, _FEW
    ),
    _truth("two tasks live in the same ten neurons", ("contradicted", None), _HOLDS, all_shared, _FEW),
    _truth("two circuits of their own, across halves", ("holds", None), _FAILS, circuits_of_their_own, _FEW),
    _truth("two rankings of noise, across halves", ("contradicted", "chance"), _HOLDS, circuits_of_noise, _FEW),
    _truth("one circuit for both, across halves", ("contradicted", "chance"), _HOLDS, one_circuit_for_both, _FEW),
    _truth("a refit at 58 % where random neurons give 72 %", ("holds", "none found"), _FAILS, refit_below_random),
    _truth("a refit at 85 % where random neurons give 65 %", ("contradicted", None), _HOLDS, refit_above_random),
    _truth(
        "a refit at chance of what nothing reads", ("holds", "chance"), [*_FAILS, _HOLDS[1]], refit_of_what_nothing_reads, _MANY
    ),
    _truth("a circuit that its task needs", ("holds", None), _FAILS, _claim(0, 0.25, 0.02, 0.02)),
    _truth("a circuit that is not used", ("contradicted", "chance"), _HOLDS, _claim(0, 0.02, 0.02, 0.02)),
    _truth("harm that is the task's own", ("holds", "none found"), _FAILS, _claim(1, 0.25, 0.02, 0.02)),
    _truth("harm that is everywhere", ("contradicted", None), _HOLDS, _claim(1, 0.1, 0.02, 0.1), _MANY),
    _truth("two pathways that do not meet", ("holds", "none found"), _FAILS, _claim(-1, 0.25, 0.02, 0.0)),
    _truth("two pathways that meet", ("contradicted", None), _HOLDS, _claim(-1, 0.25, 0.02, 0.2)),
    _truth(
        "a circuit that does nothing does not interfere", ("holds", "chance"), [*_FAILS, _HOLDS[1]], _claim(-1, 0.0, 0.0, 0.0)
    ),
    _truth("a class that one layer's erasure takes out", ("holds", None), _FAILS, _erased(0.3)),
    _truth("a class that erasure does not touch", ("contradicted", "chance"), _HOLDS, _erased(0.03)),
    _truth("a circuit that speaks the other language", ("holds", None), _FAILS, _language(0.8)),
    _truth("a circuit that does not", ("contradicted", "chance"), _HOLDS, _language(0.5), _MANY),
]
