"""A further task from few labels, where it is known whether it lives in the other tasks' neurons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.study.result import StudyResult
from moescope.types import Claim
from tests.wiring import call
from tests.wiring.planted import lookup_model, task, words_of

WIDTH, NEURONS, ROWS = 64, {7: 1.0, 9: 1.0}, 160
CLASSES = np.random.default_rng(99).permutation(np.arange(ROWS) % 2)


def study(folder: Path, gaps: dict[int, float], known: int = 0, **options: object) -> StudyResult:
    """Task A lives in NEURONS; a further one, in a file, in ``gaps``; it has ``known`` of A's texts."""
    words, texts = {}, {}
    for i, (name, planted) in enumerate((("a", NEURONS), ("b", gaps))):
        x = np.random.default_rng(30 + i).normal(size=(ROWS, WIDTH))
        x[:, 40:50] *= 3.2  # wider than a planted coordinate, and of no class
        for column, gap in planted.items():
            x[:, column] += gap * (2 * CLASSES - 1)
        words |= words_of(x, name)
        texts[name] = [*words_of(x, name)]
    rows = [*texts["a"][:known], *texts["b"][known:]]
    file = folder / "further.jsonl"
    file.write_text("".join(json.dumps({"text": t, "label": int(c)}) + "\n" for t, c in zip(rows, CLASSES, strict=True)))
    return call.circuits(lookup_model(words), task(texts["a"], CLASSES, name="A"), k=2, few_shot=f"new={file}", **options)


def said(result: StudyResult, about: str) -> Claim:
    (claim,) = [c for c in result.claims if about in c.statement]
    return claim


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return study(tmp_path_factory.mktemp("same"), NEURONS)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return study(tmp_path_factory.mktemp("elsewhere"), {20: 1.0, 21: 1.0})


def test_a_task_of_the_same_neurons_is_learnt_from_few_labels(same: StudyResult) -> None:
    claim = said(same, "better than random neurons")
    assert (claim.outcome, claim.explanation) == ("holds", "none found")
    assert claim.id == "H18"
    claim = said(same, "better than a regularised probe")
    assert claim.outcome == "holds"
    assert "more than 64" not in claim.words.split("random neurons")[0]
    areas = same.tables["few_shot_area"].set_index("method")
    assert areas.loc["circuits", "needed"] < 32
    assert areas.loc["full_probe", "columns"] == WIDTH
    assert areas.loc[["circuits", "random", "top_variance"], "columns"].tolist() == [2, 2, 2]
    assert areas.loc["random", "value"] == pytest.approx(0.5, abs=0.05)


def test_a_task_of_other_neurons_is_not(elsewhere: StudyResult) -> None:
    for about in ("better than random neurons", "better than a regularised probe"):
        assert said(elsewhere, about).outcome in ("contradicted", "inconclusive")
    areas = elsewhere.tables["few_shot_area"].set_index("method")
    assert areas.loc["circuits", "value"] == pytest.approx(0.5, abs=0.06)
    assert areas.loc["full_probe", "value"] > 0.6
    assert np.isnan(areas.loc["circuits", "needed"])


def test_labels_come_from_the_half_that_does_not_judge(elsewhere: StudyResult) -> None:
    """Noise would be told right by who has seen it: all neurons on 64 labels of 80 rows."""
    (rows,) = [row for row in elsewhere.meta["rows"] if "few labels" in row["name"]]
    assert rows["folds"] == 2
    curve = elsewhere.tables["few_shot"].query("method == 'full_probe'").set_index("labels")["value"]
    assert curve.index.tolist() == [8, 16, 32, 64]
    assert curve.loc[64] < 0.85  # the two neurons tell 92 %, what has been seen nearly 100


def test_what_is_read_is_counted(same: StudyResult) -> None:
    assert same.meta["forward_tokens"]["few shot"] == ROWS


def test_texts_that_chose_the_neurons_are_refused(tmp_path: Path) -> None:
    said = ""
    try:
        study(tmp_path, NEURONS, known=3)
    except InputError as error:
        said = str(error)
    assert "3 of new's texts are A's too" in said


def test_a_second_task_of_one_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "A.jsonl").write_text('{"text": "x", "label": 0}\n{"text": "y", "label": 1}\n')
    with pytest.raises(InputError, match="a task is called 'A' already"):
        call.circuits(lookup_model({"x": np.ones(8)}), task(["x"] * 2, [0, 1], name="A"), few_shot=str(tmp_path / "A.jsonl"))
