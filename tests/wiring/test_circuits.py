"""Controls and splits of the circuits study, each on activations in which only the right wiring gives the planted answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moescope.study.result import StudyResult
from tests.wiring import call
from tests.wiring.planted import UNKNOWN, expects, lookup_model, scramble, squares, task, words_of

WIDTH, ROWS, NEURON = 32, 120, 7
CLASSES = np.random.default_rng(99).permutation(np.arange(ROWS) % 2)
SIGN = 2.0 * CLASSES - 1.0


def noise(seed: int = 0, rows: int = ROWS, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width))


def one_neuron(gap: float = 1.5) -> np.ndarray:
    """Noise, and the class in one coordinate."""
    x = noise()
    x[:, NEURON] += gap * SIGN
    return x


def accuracies(result: StudyResult, name: str = "made") -> pd.Series:
    return result.tables["controls"].query("task == @name").set_index("control")["accuracy"]


@pytest.fixture(scope="module")
def planted() -> StudyResult:
    """Every text is a word of its own, so that the neuron, which the untrained twin lacks, is all that tells the class."""
    words = words_of(one_neuron())
    return call.circuits(lookup_model(words), task([*words], CLASSES), twin=True)


@pytest.mark.parametrize("control", ["random_twin_circuit", "random_twin_probe"])
def test_an_untrained_twin_does_not_know_what_training_planted(planted: StudyResult, control: str) -> None:
    assert accuracies(planted)["circuit"] > 0.85
    assert accuracies(planted)[control] < 0.68


def test_a_random_basis_spreads_a_single_neuron(planted: StudyResult) -> None:
    row = planted.tables["controls"].set_index("control").loc["rotated_basis"]
    assert row["gap"] > 0.1
    assert row["gap_low"] > 0


def test_random_circuits_lack_the_planted_neuron(planted: StudyResult) -> None:
    assert accuracies(planted)["random_circuit"] < 0.65
    assert accuracies(planted)["layer_matched_circuit"] < 0.65


@pytest.mark.parametrize("cue", ["final token", "bag of words", "words and bigrams"])
def test_words_that_were_never_met_are_no_cue(planted: StudyResult, cue: str) -> None:
    """A cue that had learnt the rows it is judged by would know every word."""
    assert accuracies(planted)[f"surface: {cue}"] < 0.68


def test_a_closing_that_all_texts_share_hides_the_last_word(planted: StudyResult) -> None:
    """The model has no attention: at the last token of a fixed template it knows nothing of the text."""
    assert accuracies(planted)["fixed_template"] < 0.65


def test_the_texts_shown_are_those_that_the_planted_neuron_answers_most(planted: StudyResult) -> None:
    rows, x, words = planted.tables["neuron_texts"].query("rank == 1"), one_neuron()[:, NEURON], [*words_of(one_neuron())]
    assert set(rows["neuron"]) == {NEURON}
    shown = [" ".join(tokens).split()[-1] for tokens in rows["tokens"]]
    assert shown in ([words[i] for i in np.argsort(-x)[:3]], [words[i] for i in np.argsort(x)[:3]])
    np.testing.assert_allclose([values[-1] for values in rows["activations"]], rows["value"], rtol=1e-5)
    assert [planted.tables["neuron_texts"]["class"][i] for i in rows.index] == [
        ("zero", "one")[CLASSES[words.index(word)]] for word in shown
    ]


def test_the_texts_called_wrong_are_wrong(planted: StudyResult) -> None:
    """One neuron decides, so that a text is called wrong where its value has the other class's sign."""
    rows, x, words = planted.tables["misclassified"], one_neuron()[:, NEURON], [*words_of(one_neuron())]
    assert len(rows) == 3
    at = [words.index(text) for text in rows["text"]]
    assert [("zero", "one")[CLASSES[i]] for i in at] == list(rows["class"])
    assert (rows["class"] != rows["predicted"]).all()
    assert max(x[at] * SIGN[at]) < 0.5
    assert rows["probability"].is_monotonic_decreasing
    assert rows["probability"].min() > 0.5


def test_a_result_that_is_to_hold_no_text_holds_none() -> None:
    words = words_of(one_neuron())
    result = call.circuits(lookup_model(words), task([*words], CLASSES), examples=0)
    assert not {"neuron_texts", "misclassified"} & set(result.tables)


@pytest.fixture(scope="module")
def blank() -> StudyResult:
    """Noise in many layers: whatever scores above chance was chosen, or fitted, on the rows that judge it."""
    words = words_of(noise(rows=100, width=64))
    model = lookup_model(words, layers=6)
    scramble(model)
    y = np.random.default_rng(3).permutation(np.arange(100) % 2)
    return call.circuits(model, task([*words], y), k=10, site="resid")


def test_selection_on_all_rows_flatters_and_nested_selection_does_not(blank: StudyResult) -> None:
    found = accuracies(blank)
    assert found["circuit"] < 0.62
    assert found["circuit_global"] > found["circuit"] + 0.08


def test_halves_of_noise_choose_different_neurons(blank: StudyResult) -> None:
    first = blank.tables["stability"].set_index("k").loc[10]
    assert first["split_half_overlap"] < 5


def test_the_probed_layer_is_chosen_by_the_other_folds(blank: StudyResult) -> None:
    assert accuracies(blank)["full_layer_probe"] < 0.6


@pytest.fixture(scope="module")
def grouped() -> StudyResult:
    """Three documents a class, rows of a document all but equal: by chance one labelling of documents in ten is as good."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(6), 12)
    y = groups % 2
    x = rng.normal(size=(6, WIDTH))[groups] + 0.05 * rng.normal(size=(72, WIDTH))
    x[:, NEURON] = 6 * (2 * y - 1) + 0.05 * rng.normal(size=72)
    words = words_of(x)
    options = {"n_folds": 3, "n_label_permutations": 99, "n_permutations": 199}
    return call.circuits(lookup_model(words), *(task([*words], y, groups, n) for n in ("one", "two")), **options)


def test_labels_are_permuted_by_group(grouped: StudyResult) -> None:
    assert accuracies(grouped, "one")["circuit"] == 1
    assert grouped.tables["controls"].query("control == 'permuted_labels'")["p"].min() > 0.03


def test_permuted_labels_are_not_the_true_ones(grouped: StudyResult) -> None:
    assert accuracies(grouped, "one")["permuted_labels"] < 0.7


def test_the_ranking_is_permuted_by_group(grouped: StudyResult) -> None:
    best = grouped.tables["neurons"].query("task == 'one'").iloc[0]
    assert best["neuron"] == NEURON
    assert best["p_family"] > 0.03


def test_the_first_component_is_permuted_by_group(grouped: StudyResult) -> None:
    assert grouped.tables["pc1"]["p"].min() > 0.03


def test_two_tasks_directions_are_compared_by_group(grouped: StudyResult) -> None:
    assert grouped.tables["task_map"].query("measure == 'probe'")["p"].min() > 0.03


@pytest.fixture(scope="module")
def remembered() -> StudyResult:
    """Twelve last words in many texts, and labels that no word knows: a probe can memorise words, and nothing else."""
    last = words_of(3 * noise(2, rows=12))
    before = words_of(noise(3, rows=ROWS), "v")
    texts = [f"v{i} w{i % 12}" for i in range(ROWS)]
    y = np.random.default_rng(4).permutation(CLASSES)
    return call.circuits(lookup_model(last | before), task(texts, y), k=10)


def test_a_control_task_is_a_label_of_the_last_word(remembered: StudyResult) -> None:
    assert accuracies(remembered)["circuit"] < 0.65
    assert accuracies(remembered)["control_task"] > 0.85


def test_without_massive_activations_their_class_is_gone() -> None:
    x = noise()
    x[:, NEURON] += 100 + 5 * SIGN
    words = words_of(x)
    found = accuracies(call.circuits(lookup_model(words), task([*words], CLASSES)))
    assert found["circuit"] > 0.95
    assert found["without_massive"] < 0.65


def test_the_matched_subset_is_without_the_cue() -> None:
    """Short texts end with a full stop by class, and the neuron follows it; long ones do not, and it follows nothing."""
    rng = np.random.default_rng(5)
    short = np.arange(180) < 120
    y = np.arange(180) % 2
    x = noise(6, rows=180)
    x[short, NEURON] += 4 * (2 * y[short] - 1)
    x[~short, NEURON] += 4 * rng.choice([-1, 1], 60)
    texts = [f"w{i:03d}" + "." * int(c) if s else f"long-word-{i:03d}" for i, (s, c) in enumerate(zip(short, y, strict=True))]
    found = accuracies(call.circuits(lookup_model(dict(zip(texts, x, strict=True))), task(texts, y)))
    assert found["surface: ends with a full stop"] > 0.8
    assert found["circuit"] > 0.75
    assert found["matched_subset"] < 0.67


@pytest.fixture(scope="module")
def computed() -> StudyResult:
    """Layer 1 writes into all its coordinates a class that the word itself holds as the size, not the sign, of one."""
    x = noise(7)
    x[:, NEURON] = np.where(CLASSES == 1, np.random.default_rng(8).choice([-3.0, 3.0], ROWS), 0.0)
    words = words_of(x)
    model = lookup_model(words, layers=2)
    squares(model, 1, NEURON, np.full(WIDTH, 1.2))
    return call.circuits(model, task([*words], CLASSES))


def test_the_embedding_lacks_what_a_layer_computes(computed: StudyResult) -> None:
    assert accuracies(computed)["circuit"] > 0.85
    assert accuracies(computed)["embedding_layer"] < 0.65


def test_the_whole_layers_probe_reads_the_layer_that_computes(computed: StudyResult) -> None:
    assert accuracies(computed)["full_layer_probe"] > 0.9


def test_layer_matched_neurons_are_of_the_circuits_layer(computed: StudyResult) -> None:
    found = accuracies(computed)
    assert found["layer_matched_circuit"] > found["random_circuit"] + 0.1


@pytest.fixture(scope="module")
def two_tasks() -> dict[str, float]:
    """From A to B its neuron turns its sign and weakens; another carries B better, and the widest carries neither."""
    a, b = noise(9), noise(10)
    for x in (a, b):
        x[:, 3] *= 6
    a[:, NEURON] += 3 * SIGN
    b[:, NEURON] -= 0.9 * SIGN
    b[:, NEURON + 1] += 3 * SIGN
    words = [words_of(x, prefix) for x, prefix in ((a, "a"), (b, "b"))]
    tasks = [task([*w], CLASSES, name=name) for w, name in zip(words, "AB", strict=True)]
    cross = call.circuits(lookup_model(words[0] | words[1]), *tasks).tables["cross_task"]
    return cross.query("source == 'A' and target == 'B'").set_index("method")["value"].to_dict()


def test_transfer_takes_the_sources_classifier_as_it_is(two_tasks: dict[str, float]) -> None:
    assert two_tasks["transfer_accuracy"] < 0.4
    assert two_tasks["transfer_auroc"] > 0.65


def test_refit_trains_anew_with_the_sources_neurons(two_tasks: dict[str, float]) -> None:
    assert 0.7 < two_tasks["refit"] < 0.92


@pytest.mark.parametrize("method", ["refit_random", "refit_layer_matched", "refit_top_variance"])
def test_refit_with_others_is_chance(two_tasks: dict[str, float], method: str) -> None:
    assert two_tasks[method] < 0.65


@pytest.fixture(scope="module")
def ablated() -> StudyResult:
    """The class lies in a neuron of size twenty, as half of all are; the texts that judge hold it in another as well.

    Plain text is unknown words, which the head expects one after another, by another neuron that they hold at one value.
    """
    x = noise(11, width=64)
    x[:, 32:] *= 20
    x[:, 45] = 0.5 * x[:, 45] + 20 * SIGN
    made = task([f"w{i}" for i in range(ROWS)], CLASSES)
    judge = ~call.ablation_selection(made)
    x[judge, 2] = 4 * SIGN[judge] + 0.3 * x[judge, 2]
    unknown = np.zeros(64)
    unknown[[0, 45]] = 1.0, 10.0
    model = lookup_model(words_of(x) | {UNKNOWN: unknown})
    expects(model, UNKNOWN, 2 * np.eye(64)[45])
    return call.circuits(model, made, ablate=199)


def test_the_ablated_circuit_is_chosen_without_the_rows_that_judge(ablated: StudyResult) -> None:
    """There another neuron looks better, which the probe, learnt on the other half, does not use."""
    row = ablated.tables["ablation"].query("mode == 'mean'").set_index("target").loc["probe_accuracy"]
    assert row["baseline"] > 0.8
    assert row["effect"] < -0.2


def test_the_ablated_circuit_stands_beside_other_neurons(ablated: StudyResult) -> None:
    row = ablated.tables["ablation"].query("mode == 'mean'").set_index("target").loc["probe_accuracy"]
    assert row["random_mean"] > row["effect"] + 0.2
    assert row["gap_low"] > 0.1
    assert row["p"] == 2 / 200


def test_those_neurons_are_of_its_norm(ablated: StudyResult) -> None:
    assert 0.5 < ablated.tables["ablation"]["norm_ratio"].iloc[0] < 2


def test_the_loss_on_other_text_is_of_other_text(ablated: StudyResult) -> None:
    """The model knows plain text by heart, and none of the task's words."""
    row = ablated.tables["ablation"].set_index("target").loc["wikitext_loss"]
    assert row["baseline"] < 0.5
    # the neuron has one value on that text, to which its mean ablation sets it
    assert abs(row["effect"]) < 1e-3


def test_erasing_other_labels_does_not_erase_the_class(ablated: StudyResult) -> None:
    row = ablated.tables["erasure"].set_index("target").loc["probe_accuracy"]
    assert row["effect"] < -0.2
    assert row["random_mean"] > row["effect"] + 0.15


def test_noise_is_judged_on_rows_that_the_probe_has_not_seen() -> None:
    words = words_of(noise(13))
    y = np.random.default_rng(14).permutation(CLASSES)
    found = call.circuits(lookup_model(words), task([*words], y), ablate=199).tables
    for table in ("ablation", "erasure"):
        assert found[table].query("target == 'probe_accuracy'")["baseline"].max() < 0.7
