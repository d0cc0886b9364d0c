"""A task of several classes as one, on activations in which each class has its neuron, shares one, or has none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moescope.study.result import StudyResult
from tests.wiring import call
from tests.wiring.planted import lookup_model, several, words_of

CLASSES, WIDTH, ROWS = 4, 32, 160
NEURONS = (3, 9, 17, 26)
Y = np.random.default_rng(5).permutation(np.arange(ROWS) % CLASSES)


def noise(rows: int = ROWS, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, width))


def study(x: np.ndarray, y: np.ndarray = Y, **options: object) -> StudyResult:
    """Every text is a word of its own, so that no trivial cue tells a class."""
    words = words_of(x)
    return call.circuits(lookup_model(words), several([*words], y), **({"k": 4} | options))  # type: ignore[arg-type]


def each(result: StudyResult) -> pd.DataFrame:
    return result.tables["each_class"].set_index("class")


def verdict(result: StudyResult, beginning: str) -> str:
    return next(c.verdict for c in result.claims if c.statement.startswith(f"made: {beginning}"))


@pytest.fixture(scope="module")
def planted() -> StudyResult:
    x = noise()
    for c, neuron in enumerate(NEURONS):
        x[:, neuron] += 3.0 * (c == Y)
    return study(x)


def test_each_class_has_the_neuron_that_was_planted_for_it(planted: StudyResult) -> None:
    rows = each(planted)
    assert [int(name.rpartition("/")[2]) for name in rows["top1"]] == list(NEURONS)
    assert (rows["own"] > 0.8).all()
    assert (rows["recall"] > 0.8).all()
    assert verdict(planted, "4 neurons name every class").startswith("holds here")
    for name in ("c0", "c1", "c2", "c3"):
        (claim,) = (c for c in planted.claims if c.statement == f"made: 4 neurons of its own tell {name} from the rest")
        assert claim.p_adjusted is not None
        assert claim.p_adjusted < 0.01  # what the made model's embedding says as well, which is all that it has


def test_the_circuit_is_the_four_planted_neurons_by_every_criterion(planted: StudyResult) -> None:
    assert {n.index for n in planted.circuits["made"].neurons} == set(NEURONS)
    rows = planted.tables["criteria"].set_index("criterion")
    assert list(rows.index) == ["pairs", "separation", "each class"]
    assert (rows["shared"] == 4).all()
    assert (rows["balanced"] > 0.8).all()
    row = planted.tables["accuracy"].query("k == 4 and classifier == 'lda' and selection == 'nested'").iloc[0]
    assert row["auroc"] > 0.95, "the mean over classes, each against the rest"


def test_what_holds_of_two_classes_alone_is_not_said_of_four(planted: StudyResult) -> None:
    assert not [c for c in planted.claims if c.id == "H11"]
    (case,) = (c for c in planted.claims if c.statement == "made: 4 neurons tell the classes apart")
    assert "chance (25.0% balanced)" in case.words


@pytest.fixture(scope="module")
def nothing() -> StudyResult:
    """Noise in many coordinates, of which the best look good to whoever has seen the rows that judge."""
    return study(noise(width=256))


def test_noise_tells_no_class(nothing: StudyResult) -> None:
    assert (each(nothing)["own"] < 0.62).all()
    assert each(nothing)["own"].mean() == pytest.approx(0.5, abs=0.06)
    assert not [c for c in nothing.claims if c.outcome in ("holds", "reproduced") and "of its own" in c.statement]
    assert verdict(nothing, "4 neurons name every class") != "holds here"
    assert (nothing.tables["criteria"]["balanced"] < 0.36).all()


def test_a_rare_class_is_named_as_readily_as_a_common_one() -> None:
    y = np.concatenate([np.zeros(120, int), np.ones(20, int), np.full(20, 2)])
    x = noise(rows=160)
    for c, neuron in ((1, 9), (2, 17)):
        x[:, neuron] += 2.0 * (y == c)
    rows = each(study(x, y))
    assert rows.loc[["c1", "c2"], "recall"].min() > 0.7


@pytest.fixture(scope="module")
def named() -> StudyResult:
    """The first word of class 0's texts is theirs alone; class 1 has a neuron, and classes 2 and 3 share what they are."""
    x = noise()
    for c, neuron in ((0, 3), (1, 9)):
        x[:, neuron] += 4.0 * (c == Y)
    words = words_of(x)
    texts = [f"{'ah' if c == 0 else 'oh'} {word}" for c, word in zip(Y, words, strict=True)]
    vectors = {"ah": np.zeros(WIDTH), "oh": np.zeros(WIDTH), **words}
    return call.circuits(lookup_model(vectors), several(texts, Y), k=4)


def test_a_word_that_names_one_class_is_a_rival_of_that_class_alone(named: StudyResult) -> None:
    rows = each(named)
    assert rows.loc["c0", "cue_own"] == 1
    assert "embedding_layer" not in rows.loc["c0", "cue"]
    assert rows.loc["c0", "rival_high"] < 0.05
    assert rows.loc["c1", "cue"] == "embedding_layer", "what enters the model is all that the made model has"


def test_classes_that_share_what_they_are_are_taken_for_each_other(named: StudyResult) -> None:
    rows = named.tables["confusion"].set_index(["class", "predicted"])["share"]
    assert rows["c1", "c1"] > 0.9
    assert rows["c2", "c3"] > 0.25
    assert rows["c3", "c2"] > 0.25
    assert rows["c2", "c1"] < 0.1
    assert np.allclose(rows.groupby("class").sum(), 1)


def test_every_class_is_judged_by_the_one_that_is_named_least(named: StudyResult) -> None:
    (case,) = (c for c in named.claims if c.statement == "made: 4 neurons name every class")
    assert case.measured == each(named)["recall"].min() < 0.8
    assert case.p is not None
    assert case.p >= each(named)["recall_p"].max()
