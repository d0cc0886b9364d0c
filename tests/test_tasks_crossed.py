"""Texts with two labels: crossed, alike in both tasks, and refused by name where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.tasks import group_folds, surface_cues
from moescope.tasks.crossed import load_crossed


def written(folder: Path, rows: list[tuple[str, object, object]]) -> str:
    file = folder / "two.jsonl"
    file.write_text("".join(json.dumps({"text": t, "a": a, "b": b, "three": i % 3}) + "\n" for i, (t, a, b) in enumerate(rows)))
    return str(file)


def test_what_is_made_here_is_crossed_and_balanced() -> None:
    found = load_crossed("tone-certainty")
    first, second = found.properties
    assert (first.name, first.classes, second.name, second.classes) == (
        "tone",
        ("bad", "good"),
        "certainty",
        ("sure", "unsure"),
    )
    assert [e.text for e in first.examples] == [e.text for e in second.examples] == [e.text for e in found.cells.examples]
    assert len({e.text for e in first.examples}) == len(first.examples) == 320
    assert np.bincount(2 * found.labels[0] + found.labels[1]).tolist() == [80] * 4
    assert found.cells.classes[1] == "bad, unsure"


def test_words_that_carry_a_label_are_in_one_group_alone() -> None:
    """So that no bag of words, learnt on other groups, tells them."""
    for task in load_crossed("tone-certainty").properties:
        y = np.array([e.label for e in task.examples])
        folds = group_folds(y, [e.group for e in task.examples], n_folds=5, seed=0)
        right = np.zeros(len(y))
        for fold in range(5):
            train, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            right[held] = surface_cues(task)["bag of words"](train, held, y) == y[held]
        assert right.mean() < 0.75, task.name


def test_a_limit_takes_the_four_combinations_alike() -> None:
    found = load_crossed("tone-certainty", limit=96)
    assert len(found.cells.examples) == 96
    assert np.bincount(2 * found.labels[0] + found.labels[1]).tolist() == [24] * 4


def test_a_file_with_two_columns_of_labels(tmp_path: Path) -> None:
    file = written(tmp_path, [(f"t{i}", i % 2, "uv"[i // 2 % 2]) for i in range(12)])
    found = load_crossed(f"{file}?labels=a,b")
    assert found.labels.tolist() == [[i % 2 for i in range(12)], [i // 2 % 2 for i in range(12)]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "name the two columns of labels"),
        ("?labels=a", "name the two columns of labels"),
        ("?labels=a,a", "name the two columns of labels"),
        ("?labels=a,c", "no column 'c'"),
        ("?labels=a,b&label=a", "label= is one column"),
        ("?labels=a,three", "has 3 classes; it needs two"),
    ],
)
def test_what_is_not_crossed_is_refused(tmp_path: Path, options: str, said: str) -> None:
    file = written(tmp_path, [(f"t{i}", i % 2, i // 2 % 2) for i in range(12)])
    with pytest.raises(InputError, match=said):
        load_crossed(file + options)


def test_a_combination_without_a_text_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, [(f"t{i}", i % 2, i % 2) for i in range(12)])
    with pytest.raises(InputError, match="no text is '0, 1'"):
        load_crossed(f"{file}?labels=a,b")
    with pytest.raises(InputError, match="did you mean 'tone-certainty'"):
        load_crossed("tone-certanty")
    with pytest.raises(InputError, match="takes no option but limit"):
        load_crossed("tone-certainty?labels=a,b")
