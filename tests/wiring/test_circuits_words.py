"""Labels for words, on models in which what tells a label is the word, what was learnt of it, or what it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moescope.capture import activations, encode
from moescope.capture.places import word_places
from moescope.errors import InputError
from moescope.models import load
from moescope.studies.circuits.control_task import control_labels
from moescope.studies.circuits.features import capture_features, columns_of
from moescope.studies.circuits.settings import SearchSettings
from moescope.study.result import StudyResult
from moescope.tasks import load_task
from moescope.tasks.surface import surface_cues
from moescope.types import Task
from tests.wiring import call
from tests.wiring.planted import lookup_model, words_of

WIDTH, WORDS, NEURON, TEXTS = 32, 60, 7, 40
LABEL = np.random.default_rng(4).permutation(np.arange(WORDS) % 3)


def sentences(rng: np.random.Generator, *, own: bool = False) -> Task:
    """Three words a text, each with its label; ``own``: each word occurs once, else six times or so."""
    picked = rng.permutation(WORDS).reshape(-1, 3) if own else rng.integers(WORDS, size=(TEXTS, 3))
    rows = [{"tokens": [f"w{i}" for i in row], "labels": [f"c{LABEL[i]}" for i in row]} for row in picked.tolist()]
    return load_task(rows, kind="tokens", name="made")


def by_word(told: float) -> dict[str, np.ndarray]:
    """Every word is a vector of its own; ``told`` how much its neurons say of its label."""
    x = np.random.default_rng(0).normal(size=(WORDS, WIDTH))
    for c in (1, 2):
        x[:, NEURON + c] += told * (c == LABEL)
    return words_of(x)


def controls(result: StudyResult) -> pd.DataFrame:
    return result.tables["controls"].set_index("control")


@pytest.fixture(scope="module")
def learnt() -> StudyResult:
    """A circuit of half of all coordinates, which can learn the words by heart, and tells nothing of a word's label."""
    return call.circuits(lookup_model(by_word(0.0)), sentences(np.random.default_rng(1)), k=16)


@pytest.fixture(scope="module")
def known() -> StudyResult:
    return call.circuits(lookup_model(by_word(5.0)), sentences(np.random.default_rng(1)), k=2, twin=True)


def test_a_word_is_its_label_and_what_was_learnt_of_it_is_nothing_of_words_not_met(learnt: StudyResult) -> None:
    rows = controls(learnt)
    assert rows.loc["surface: the word itself", "balanced"] > 0.8
    assert rows.loc["unseen_words", "balanced"] < 0.55
    (case,) = (c for c in learnt.claims if c.statement.endswith("tell words apart that were not learnt"))
    assert case.outcome not in ("holds", "reproduced")


def test_what_a_word_is_told_of_words_not_met(known: StudyResult) -> None:
    assert {n.index for n in known.circuits["made"].neurons} == {NEURON + 1, NEURON + 2}
    rows = controls(known)
    assert rows.loc["unseen_words", "balanced"] > 0.85
    assert rows.loc["circuit", "balanced"] > 0.9
    assert rows.loc["random_twin_circuit", "balanced"] < 0.75
    (case,) = (c for c in known.claims if c.statement.endswith("tell words apart that were not learnt"))
    assert case.p is not None
    assert case.p < 0.05


def test_labels_of_the_control_task_are_the_words_own(known: StudyResult) -> None:
    """Hewitt and Liang: one random label a word, wherever it stands; the circuit of the label does not learn it."""
    task = sentences(np.random.default_rng(1))
    model = lookup_model(by_word(5.0))
    features = capture_features(model, task, columns_of(model, "resid"), SearchSettings(k=2))
    drawn, kinds = control_labels(features, model.tokenizer, "final", np.random.default_rng(0))
    words = np.array([e.text[slice(*e.span)] for e in task.examples if e.span])
    assert kinds == len(np.unique(words))
    assert all(len(np.unique(drawn[words == word])) == 1 for word in np.unique(words))
    assert (drawn != features.y).mean() > 0.4
    assert controls(known).loc["control_task", "gap"] > 0.2


def test_no_text_is_on_both_sides_and_each_is_read_once(known: StudyResult) -> None:
    task = sentences(np.random.default_rng(1))
    texts = {e.text for e in task.examples}
    assert {e.group for e in task.examples} == texts
    assert known.meta["forward_tokens"]["bare"] == 3 * len(texts)
    assert known.meta["forward_tokens"]["main"] == 3 * len(texts)
    assert "fixed_template" not in controls(known).index


def test_each_word_is_read_at_its_last_token() -> None:
    model = load("dense-tiny")
    text = "Unbelievable results, said the hyperparameter committee."
    spans = [(0, 12), (13, 20), (20, 21), (31, 45)]
    task = load_task(
        [{"text": text, "spans": [[a, b, f"c{i % 2}"] for i, (a, b) in enumerate(spans)]}], kind="tokens", name="t"
    )
    encoded = encode(model, [text])
    places = word_places(model, [text], encoded, [0] * len(spans), spans)
    own = np.flatnonzero(~encoded.special_of(0))
    for token, (_, end) in zip(places.token, spans, strict=True):
        said = model.tokenizer.decode(encoded[0][own[0] : token + 1].tolist())
        assert said.strip() == text[:end]
    folds = np.array([0, 0, 1, 1])
    features = capture_features(model, task, columns_of(model, "resid"), SearchSettings(), folds=folds)
    for row, token in enumerate(places.token):
        alone = activations(model, [text], "resid", position=int(token))[0].ravel()
        assert features.x[row] == pytest.approx(alone, abs=1e-5)


def test_the_word_before_may_be_a_mark() -> None:
    rows = [{"text": f"a.b{i}(c)", "spans": [[0, 1, "name"], [2, 2 + len(f"b{i}"), "attribute"]]} for i in range(8)]
    task = load_task(rows, kind="tokens", name="code")
    y = np.array([e.label for e in task.examples])
    train, held = np.arange(8), np.arange(8, 16)
    assert (surface_cues(task)["the word before it"](train, held, y) == y[held]).all()


def test_a_word_that_was_cut_off_is_named() -> None:
    model = lookup_model(by_word(1.0))
    task = sentences(np.random.default_rng(1))
    with pytest.raises(InputError, match=r"text 0: the word at \(0, \d+\) was cut off; raise max_tokens"):
        call.circuits(model, task, max_tokens=2)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"tokens": ["a", "b"], "labels": ["x"]}], r"row 0: 2 tokens and 1 labels; give each word its label"),
        ([{"tokens": "a b", "labels": ["x"]}], r"row 0: column 'tokens' holds a str, not a list"),
        ([{"text": "a b", "spans": [[0, 9, "x"]]}], r"row 0: column 'spans': 0 to 9 is no word of a text of 3 characters"),
        ([{"text": "a b", "spans": [["x", 0, 1]]}], r"row 0: column 'spans': \['x', 0, 1\] is not \[start, end, label\]"),
        ([{"text": "a b"}], r"no column 'spans' of spans=; columns: text"),
    ],
)
def test_bad_rows_are_named(rows: list[dict[str, object]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_task(rows, kind="tokens", name="t")


def test_what_a_study_does_not_take_is_refused_in_one_line() -> None:
    task = sentences(np.random.default_rng(1), own=True)
    model = lookup_model(by_word(1.0))
    with pytest.raises(InputError, match="'made' has labels for words; exit takes classes of texts alone"):
        call.exit(model, task)
    with pytest.raises(InputError, match="'made' has labels for words, each read at its last token"):
        call.circuits(model, task, position="mean")
