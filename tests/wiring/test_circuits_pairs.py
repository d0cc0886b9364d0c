"""Two tasks, each with its planted truth, and the word that the study says of the pair."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.study.result import StudyResult
from moescope.types import Claim
from tests.wiring import call
from tests.wiring.planted import lookup_model, task, words_of

WIDTH, NEURON, OTHER = 32, 7, 20


def classes(rows: int) -> np.ndarray:
    return np.random.default_rng(99).permutation(np.arange(rows) % 2)


def said(result: StudyResult, about: str) -> Claim:
    (claim,) = [c for c in result.claims if about in c.statement]
    return claim


def study(*planted: dict[int, float], rows: int = 160, layers: int = 1, width: int = WIDTH, **options: object) -> StudyResult:
    """Tasks A, B, … of words of their own: noise, and the class in some coordinates with the given gaps."""
    y = classes(rows)
    words, tasks = {}, []
    for i, gaps in enumerate(planted):
        x = np.random.default_rng(30 + i).normal(size=(rows, width))
        x[:, WIDTH:] *= 3.2  # as wide as a planted coordinate: what random sets are matched with
        for column, gap in gaps.items():
            x[:, column] += gap * (2 * y - 1)
        own = words_of(x, "abc"[i])
        words |= own
        tasks.append(task([*own], y, name="ABC"[i]))
    return call.circuits(lookup_model(words, layers=layers), *tasks, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def apart() -> StudyResult:
    """A in one neuron, B in another, both switched off too; enough texts to exclude a loss of three points."""
    return study({NEURON: 3.0}, {OTHER: 3.0}, rows=640, width=64, ablate=199, ablate_rows=320)


@pytest.fixture(scope="module")
def fours() -> StudyResult:
    """Two circuits of four neurons of their own, among 96."""
    return study(dict.fromkeys(range(4), 2.0), dict.fromkeys(range(10, 14), 2.0), width=96, k=4)


def test_sharing_nothing_is_explained_by_chance_at_this_k(fours: StudyResult) -> None:
    claim = said(fours, "share no coordinate")
    assert claim.measured == 0
    assert (claim.outcome, claim.explanation) == ("holds", "chance")
    assert "of draws" in claim.words


def test_the_evidence_is_overlap_across_halves(fours: StudyResult) -> None:
    claim = said(fours, "repeats itself on other texts")
    assert claim.outcome == "holds"
    assert "they share at most" in claim.words


def test_pathways_that_do_not_meet_do_not_interfere(apart: StudyResult) -> None:
    for claim in (said(apart, "B does without A's 1 neurons"), said(apart, "A does without B's 1 neurons")):
        assert (claim.outcome, claim.explanation) == ("holds", "none found")
        assert claim.family == "A and B"


def test_harm_on_task_and_none_off_task_is_specific(apart: StudyResult) -> None:
    for name in "AB":
        assert said(apart, f"{name}: switching its 1 neurons off harms a probe").outcome == "holds"
        claim = said(apart, f"{name}: switching its 1 neurons off harms this task more")
        assert (claim.outcome, claim.explanation) == ("holds", "none found")
        assert claim.p_adjusted is not None
        assert claim.p is not None
        assert claim.p_adjusted >= claim.p


@pytest.fixture(scope="module")
def one_neuron() -> StudyResult:
    """Both tasks live in the same neuron of the stream, which three layers carry on; B with the sign turned."""
    return study({NEURON: 3.0}, {NEURON: -3.0}, layers=3, k=3, site="resid")


def test_one_coordinate_in_three_layers_counts_once(one_neuron: StudyResult) -> None:
    row = one_neuron.tables["overlap"].set_index("k").loc[3]
    assert row["distinct_a"] == row["distinct_b"] == row["overlap"] == 1


def test_tasks_of_one_neuron_share_more_than_chance(one_neuron: StudyResult) -> None:
    row = one_neuron.tables["overlap"].set_index("k").loc[3]
    assert row["expected"] < 0.6
    assert row["p_disjoint"] > 0.5


def test_a_circuit_that_carries_the_other_task_does(one_neuron: StudyResult) -> None:
    claim = said(one_neuron, "A's 3 neurons say no more of B")
    assert (claim.outcome, claim.explanation) == ("contradicted", None)
    assert "more than they" in claim.words
    turned = said(one_neuron, "A's classifier, not fitted anew, tells B's classes apart")
    assert turned.outcome == "holds"
    assert turned.measured > 0.9
    assert "the polarity is turned" in turned.words


def test_a_refit_below_random_neurons_is_less_than_they() -> None:
    """All neurons but A's carry B, and one does best."""
    everywhere = {i: 1.0 for i in range(WIDTH) if i != NEURON} | {OTHER: 3.0}
    claim = said(study({NEURON: 3.0}, everywhere, rows=320), "A's 1 neurons say no more of B")
    assert (claim.outcome, claim.explanation) == ("holds", "none found")
    assert "less than they" in claim.words


def test_a_task_that_nothing_reads_says_nothing_of_another() -> None:
    result = study({NEURON: 3.0}, {}, rows=160)
    assert said(result, "A's 1 neurons say no more of B").outcome != "contradicted"
    assert said(result, "A's 1 neurons say no more of B").explanation != "none found"
