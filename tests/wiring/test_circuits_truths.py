"""Planted truths, and the word that the study says of each."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from moescope.studies.circuits import CircuitSettings, control_rows
from moescope.studies.circuits.cues import Cues
from moescope.studies.circuits.single import scorer_of
from moescope.study.result import StudyResult
from moescope.types import Claim
from tests.made_features import QUICK, made_features
from tests.wiring import call
from tests.wiring.planted import lookup_model, squares, task, words_of

WIDTH = 32


def study(x: np.ndarray, y: np.ndarray, texts: list[str] | None = None, **options: Any) -> StudyResult:
    """Texts that are words of their own, each with a row of x as its activations in every layer."""
    texts = [*words_of(x)] if texts is None else texts
    layers = options.pop("layers", 1)
    words = {text.split()[-1]: row for text, row in zip(texts, x, strict=True)}
    groups = options.pop("groups", None)
    return call.circuits(lookup_model(words, layers=layers), task(texts, y, groups), **options)


def said(result: StudyResult, about: str) -> Claim:
    (claim,) = [c for c in result.claims if c.statement.endswith(about)]
    return claim


def classes(rows: int, seed: int, share: float = 0.5) -> tuple[np.random.Generator, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng, rng.permutation((np.arange(rows) < share * rows).astype(int))


def with_full_stop(rows: int, stops: np.ndarray) -> list[str]:
    return [f"w{i:04d}" + "." * int(stop) for i, stop in enumerate(stops)]


@pytest.fixture(scope="module")
def beside_a_cue() -> StudyResult:
    """A neuron that tells 82 %, and a full stop that tells 85 %, independent given the class: together they tell 90 %."""
    rng, y = classes(600, 0)
    x = rng.normal(size=(600, WIDTH))
    x[:, 7] += 0.92 * (2 * y - 1)
    return study(x, y, with_full_stop(600, np.where(rng.random(600) < 0.85, y, 1 - y)), n_label_permutations=99)


def test_a_circuit_that_adds_to_a_cue_is_not_explained_by_it(beside_a_cue: StudyResult) -> None:
    claim = said(beside_a_cue, "tell the classes apart")
    controls = beside_a_cue.tables["controls"].set_index("control")["balanced"]
    assert controls["chosen_cue"] > controls["circuit"] - 0.02
    assert controls["cue_and_circuit"] > controls["chosen_cue"] + 0.02
    assert (claim.outcome, claim.explanation) == ("holds", "none found"), claim.words
    assert claim.p == pytest.approx(1 / 100)
    assert claim.p_adjusted <= 5 / 100
    assert "not run: an untrained twin" in claim.words


def test_a_circuit_that_is_a_cue_is_explained_by_it() -> None:
    rng, y = classes(600, 1)
    stops = np.where(rng.random(600) < 0.85, y, 1 - y)
    x = rng.normal(size=(600, WIDTH))
    x[:, 7] += 8 * (2 * stops - 1)
    claim = said(study(x, y, with_full_stop(600, stops)), "tell the classes apart")
    assert (claim.outcome, claim.explanation) == ("holds", "trivial cue"), claim.words


def test_a_rare_class_is_judged_by_balanced_accuracy() -> None:
    """Three neurons of AUROC 0.8, nine rows in ten of one class: no classifier beats the majority's accuracy.

    A layer computes them from the size of a coordinate whose sign is random, so that no word's embedding tells.
    """
    rng, y = classes(800, 2, 0.1)
    x = rng.normal(size=(800, WIDTH))
    x[:, [3, 11, 20]] *= 0.3
    x[:, 7] = rng.choice([-1, 1], 800) * np.sqrt(np.clip(4 + 1.3 * y + rng.normal(size=800), 0, None))
    words = words_of(x)
    model = lookup_model(words, layers=2)
    squares(model, 1, 7, np.isin(np.arange(WIDTH), [3, 11, 20]) * 1.0)
    result = call.circuits(model, task([*words], y), k=3, ks=(3,), site="resid:1", n_label_permutations=99)
    row = result.tables["controls"].set_index("control").loc["circuit"]
    assert row["accuracy"] < 0.93
    assert row["balanced"] > 0.62
    claim = said(result, "tell the classes apart")
    assert (claim.outcome, claim.explanation) == ("holds", "none found"), claim.words
    assert claim.measured == pytest.approx(row["balanced"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_few_rows_show_neither_an_effect_nor_its_absence(seed: int) -> None:
    """Forty rows and a neuron that tells 65 %."""
    rng, y = classes(40, seed)
    x = rng.normal(size=(40, WIDTH))
    x[:, 7] += 0.39 * (2 * y - 1)
    claim = said(study(x, y, n_label_permutations=99), "tell the classes apart")
    assert claim.outcome == "inconclusive", claim.words
    assert "could have been shown" in claim.words


def test_a_wide_coordinate_without_the_class_does_not_make_neurons_the_unit() -> None:
    """The class lies along a direction of all coordinates; two of twenty times the spread know nothing of it."""
    rng, y = classes(400, 3)
    x = rng.normal(size=(400, WIDTH)) + 0.35 * (2 * y - 1)[:, None] * rng.choice([-1, 1], WIDTH)
    x[:, :2] = 20 * rng.normal(size=(400, 2))
    result = study(x, y, k=4, ks=(4,))
    claim = said(result, "single neurons are the unit")
    assert claim.outcome == "contradicted", claim.words
    assert result.tables["controls"].set_index("control").loc["rotated_basis", "balanced"] > 0.85  # 0.904 was measured


def test_a_class_in_few_neurons_makes_them_the_unit(beside_a_cue: StudyResult) -> None:
    claim = said(beside_a_cue, "single neurons are the unit")
    assert claim.outcome == "holds", claim.words


def test_random_neurons_of_the_same_layers_are_a_claim(beside_a_cue: StudyResult) -> None:
    assert said(beside_a_cue, "more than random ones of their layers").outcome == "holds"


def test_every_task_has_its_claims_with_intervals_or_why_not(beside_a_cue: StudyResult) -> None:
    ids = {c.id for c in beside_a_cue.claims}
    assert ids >= {"H2", "H4", "H5", "H6", "H7", "H8", "H10", "H11", "H12", "H13"}
    for claim in beside_a_cue.claims:
        assert claim.interval or claim.words, claim.statement
    families = {c.statement: c.family for c in beside_a_cue.claims if c.family}
    assert len(families) == 4  # of one layer none can be said to be early
    assert said(beside_a_cue, "keep what all layers know").outcome == "not tested"


def test_a_template_that_hides_the_last_word_is_seen(beside_a_cue: StudyResult) -> None:
    """The model has no attention: at the last token of a fixed template it knows nothing of the text."""
    assert said(beside_a_cue, "not only its last words").outcome != "holds"


def test_one_coordinate_in_all_layers_is_one_neuron() -> None:
    rng, y = classes(200, 4)
    x = 0.1 * rng.normal(size=(200, WIDTH))
    x[:, 7] += 2 * (2 * y - 1)
    result = study(x, y, k=4, ks=(4,), layers=4)
    assert result.tables["depth_range"]["coordinates"].iloc[0] == 1
    assert said(result, "fills several places of the top 10").outcome == "identity"
    assert said(result, "lies in layers of its own").outcome != "holds"
    assert said(result, "opposite signs for the classes").outcome == "identity"
    early = said(result, "keep what all layers know")
    assert early.outcome == "holds", early.words


def test_a_cue_is_chosen_without_the_rows_that_judge_it() -> None:
    """Two hundred cues that say anything: the best of them on the judging rows would be right on two in three."""
    rng, y = classes(200, 6)
    cues = Cues({f"cue {i}": rng.integers(0, 2, (5, 200)) for i in range(200)}, y, np.arange(200) % 5)
    assert cues.chosen_hits().mean() < 0.6


def test_cue_and_circuit_are_fitted_without_the_rows_that_judge_them() -> None:
    rng, y = classes(100, 7)
    cues = Cues({"nothing": np.zeros((5, 100), dtype=int)}, y, np.arange(100) % 5)
    assert cues.with_circuit(rng.normal(size=(100, 16)), np.tile(np.arange(16), (5, 1)), "lda")[0].mean() < 0.62


def test_intervals_are_wider_than_those_of_independent_hits(beside_a_cue: StudyResult) -> None:
    """Noise in many columns: which of them are chosen is chance, so that hits of one cross-validation hang together."""
    features = made_features("weak", {5: 0.5}, rows=80, width=60)
    scorer = scorer_of(features, CircuitSettings(k=4))
    assert 1.2 < scorer.widening <= 1.45 * np.sqrt(5)  # the root of the folds, and a t of one fold
    note = beside_a_cue.tables["controls"].set_index("control").loc["circuit", "note"]
    assert "times those of independent hits" in note


def test_permuted_labels_are_split_into_folds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of one class each: under other labels the folds of the true ones are lopsided."""
    features = made_features("grouped", {}, rows=120)
    groups = np.repeat(np.arange(30), 4).astype(str)
    y = np.repeat(np.arange(30) % 2, 4)
    grouped = dataclasses.replace(features, y=y, groups=groups, folds=np.repeat(np.arange(30) // 2 % 5, 4))
    seen: list[np.ndarray] = []
    monkeypatch.setattr(control_rows, "own_cv", lambda features, *rest, **more: seen.append(features.folds))
    other = np.repeat((np.arange(30) < 15).astype(int), 4)
    control_rows.own_protocol(grouped, grouped.x, QUICK, other)
    control_rows.own_protocol(grouped, grouped.x, QUICK)
    (anew, own) = seen
    np.testing.assert_array_equal(own, grouped.folds)
    assert [int(other[anew == f].sum()) for f in range(5)] == [12] * 5
    assert all(len(set(anew[groups == g])) == 1 for g in groups)


def near_copies(pairs: int, width: int, strength: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Random labels of random words, every text there twice with one word changed, each copy a group of its own."""
    rng, y = classes(pairs, 8)
    x = rng.normal(size=(pairs, width))
    x[:, 3] += strength * (2 * y - 1)
    texts = [f"{' '.join(f'p{i}{c}' for c in 'abcdef')} {copy} w{i:04d}" for i in range(pairs) for copy in ("one", "two")]
    return np.repeat(x, 2, axis=0), np.repeat(y, 2), texts


def test_what_near_duplicates_tell_is_leakage() -> None:
    x, y, texts = near_copies(80, 128)
    result = study(x, y, texts, k=20)
    claim = said(result, "tell the classes apart")
    controls = result.tables["controls"].set_index("control")["balanced"]
    assert controls["near_duplicates_split"] > 0.7
    assert controls["circuit"] < 0.6
    assert claim.outcome in ("contradicted", "inconclusive")
    assert claim.explanation == "leakage", claim.words
    assert "near-duplicate texts on both sides of the splits add" in claim.words
    assert any("leakage: 160 texts" in note for note in result.meta["notes"])
    (rows,) = [r for r in result.rows if r["name"].endswith("circuit")]
    assert rows["judge"] == {"rows": 160, "groups": 80}


def test_a_circuit_that_is_there_without_copies_is_no_leakage() -> None:
    x, y, texts = near_copies(150, 32, strength=1.5)
    claim = said(study(x, y, texts), "tell the classes apart")
    assert (claim.outcome, claim.explanation) == ("holds", "none found"), claim.words


def test_texts_that_cannot_be_kept_apart_decide_nothing() -> None:
    rng, y = classes(60, 9)
    x = rng.normal(size=(60, WIDTH))
    x[:, 3] += 3 * (2 * y - 1)
    texts = [f"{'a b c d e f g' if label else 'h i j k l m n'} w{i:04d}" for i, label in enumerate(y)]
    claim = said(study(x, y, texts), "tell the classes apart")
    assert claim.outcome == "inconclusive"
    assert "too many to be kept apart" in claim.words
