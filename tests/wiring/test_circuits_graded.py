"""A graded label, on activations in which one neuron follows it, an untrained twin or the length does, or nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moescope.errors import InputError
from moescope.select.graded import fit_ridge, graded_cv, graded_sums
from moescope.select.sums import divergence, fold_class_sums
from moescope.study.result import StudyResult
from moescope.tasks.folds import graded_folds
from tests.wiring import call
from tests.wiring.planted import graded, lookup_model, words_of

WIDTH, ROWS, NEURON = 32, 120, 7
Y = np.random.default_rng(3).normal(size=ROWS)


def noise(rows: int = ROWS, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, width))


def controls(result: StudyResult) -> pd.DataFrame:
    return result.tables["graded_controls"].set_index("control")


@pytest.fixture(scope="module")
def planted() -> StudyResult:
    """Every text is a word of its own, so that the neuron, which the untrained twin lacks, is all that follows the label."""
    x = noise()
    x[:, NEURON] += 2 * Y
    words = words_of(x)
    return call.circuits(lookup_model(words), graded([*words], Y), k=2, twin=True, n_label_permutations=99)


def test_the_planted_neuron_is_found_and_explains_what_it_can(planted: StudyResult) -> None:
    assert planted.circuits["made"].neurons[0].index == NEURON
    row = planted.tables["graded_neurons"].query("rank == 1").iloc[0]
    assert row["correlation"] == pytest.approx(2 / np.sqrt(5), abs=0.06)
    assert row["p_family"] == 1 / 20
    assert controls(planted).loc["circuit", "r2"] == pytest.approx(0.8, abs=0.08)
    (case,) = (c for c in planted.claims if c.statement == "made: 2 neurons follow the graded label")
    assert case.p == 1 / 100


@pytest.mark.parametrize(
    "control", ["random_twin_circuit", "random_twin_probe", "random_circuit", "layer_matched_circuit", "fixed_template"]
)
def test_what_lacks_the_planted_neuron_explains_nothing(planted: StudyResult, control: str) -> None:
    assert controls(planted).loc[control, "r2"] < 0.1


def test_permuted_labels_are_not_the_true_ones(planted: StudyResult) -> None:
    assert controls(planted).loc["permuted_labels", "high"] < 0.2


@pytest.mark.parametrize("cue", ["bag of words", "words and bigrams", "final character and token"])
def test_words_that_were_never_met_are_no_cue(planted: StudyResult, cue: str) -> None:
    assert controls(planted).loc[f"surface: {cue}", "r2"] < 0.1


def test_noise_explains_nothing_where_it_is_chosen_in_training_folds() -> None:
    words = words_of(noise(width=256))
    result = call.circuits(lookup_model(words), graded([*words], Y), k=8)
    rows = controls(result)
    assert rows.loc["circuit", "r2"] < 0.02
    assert rows.loc["circuit_global", "r2"] > 0.2, "the optimistic protocol, which has seen the rows that it is judged by"
    assert rows.loc["cue_and_circuit", "r2"] < 0.05
    assert not [c for c in result.claims if c.outcome == "holds"]


def test_a_neuron_that_follows_the_length_is_explained_by_it() -> None:
    """The label is the length of the text, and so is what the neuron says: a real circuit of a leak."""
    lengths = np.random.default_rng(1).integers(1, 30, size=ROWS)
    x = noise()
    x[:, NEURON] += 0.3 * lengths
    words = words_of(x)
    vectors = {"a": np.zeros(WIDTH), **words}
    texts = [" ".join(["a"] * int(n) + [word]) for n, word in zip(lengths, words, strict=True)]
    result = call.circuits(lookup_model(vectors), graded(texts, lengths + 0.5 * Y), k=1)
    assert controls(result).loc["surface: length", "r2"] > 0.95
    (case,) = (c for c in result.claims if c.statement == "made: 1 neuron follows the graded label")
    assert case.outcome == "holds"
    assert case.explanation == "trivial cue"
    assert "(length" in case.words


def test_values_are_permuted_and_dealt_by_group() -> None:
    """Half of the label is the group's, and so is a neuron: what a group shares is no effect within it."""
    groups = np.repeat(np.arange(ROWS // 4), 4)
    level = np.random.default_rng(2).normal(size=ROWS // 4)[groups]
    x = noise()
    x[:, NEURON] += 6 * level
    words = words_of(x)
    result = call.circuits(lookup_model(words), graded([*words], level + 0.2 * Y, groups), k=1, n_label_permutations=99)
    (case,) = (c for c in result.claims if c.statement == "made: 1 neuron follows the graded label")
    assert case.p is not None
    assert case.p > 0.05, "within a group the neuron says nothing"
    folds = graded_folds(level, groups, 5, np.random.default_rng(0))
    assert all(len(np.unique(folds[groups == g])) == 1 for g in np.unique(groups))


def test_two_values_are_two_classes() -> None:
    """|r| is the divergence by the spread of all rows, times the root of the product of the classes' shares."""
    x, y = noise(rows=90, width=50).astype(np.float32), (np.arange(90) % 3 == 0).astype(int)
    none = np.zeros(90, dtype=np.int64)
    r = graded_sums(x, y, none).correlation()
    total = divergence(*fold_class_sums(x, y, none).total(), sigma="total")
    assert np.abs(r) == pytest.approx(total * np.sqrt(2 / 9), rel=1e-5)


def test_a_ridge_in_closed_form_is_scikit_learns() -> None:
    from sklearn.linear_model import Ridge

    x, y = noise(width=200), Y
    ours = fit_ridge(x, y)
    scaled = (x - x.mean(0)) / x.std(0)
    other = Ridge(alpha=ours.penalty * len(y)).fit(scaled, y)
    assert ours.predict(x) == pytest.approx(other.predict(scaled), abs=1e-8)


def test_selection_never_sees_the_fold_that_it_is_judged_by() -> None:
    x, folds = noise(width=64).astype(np.float32), np.arange(ROWS) % 5
    before = graded_cv(x, Y, folds, (4,)).selected
    changed = Y.copy()
    changed[folds == 2] += 100 * x[folds == 2, 3]
    after = graded_cv(x, changed, folds, (4,)).selected
    assert (before[2] == after[2]).all()
    assert (after[[0, 1, 3, 4], 0] == 3).all()


@pytest.mark.parametrize(("option", "how"), [("ablate", 119), ("keep_only", "mean"), ("paths", "mean")])
def test_an_intervention_is_refused_by_name(option: str, how: object) -> None:
    words = words_of(noise(rows=12))
    with pytest.raises(InputError, match=r"'made' has graded labels; an intervention needs classes of texts") as error:
        call.circuits(lookup_model(words), graded([*words], Y[:12]), **{option: how})  # type: ignore[arg-type]
    assert error.value.parameter == option
