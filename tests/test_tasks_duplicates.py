"""Texts that are nearly the same never stand on both sides of a split, and are named."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from moescope.tasks import load_task, near_duplicates, regroup
from moescope.types import Example, Task


def _task(*texts: str, groups: list[str] | None = None, labels: list[int] | None = None) -> Task:
    labels = labels or [i % 2 for i in range(len(texts))]
    examples = (Example(t, y, groups[i] if groups else str(i)) for i, (t, y) in enumerate(zip(texts, labels, strict=True)))
    return Task("mine", tuple(examples), ("no", "yes"), "a test")


WORDS = ["amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "iris", "jade", "kelp", "lake", "moss", "nook"]


def _texts(n: int, words: int = 9, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"{w}{rng.integers(30)}" for w in rng.choice(WORDS, words, replace=False)) for _ in range(n)]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("The match was won in the last minute of play", "the match was won in the last minute of play!", True),
        ("The match was won in the last minute of play", "The match was lost in the last minute of play", True),
        ("The match was won in the last minute of play", "A concert was held in the old town hall", False),
        ("good film", "good movie", False),
        ("good film", "Good film.", True),
        ("…", "…", True),
        ("…", "!", False),
    ],
)
def test_pairs(first: str, second: str, same: bool) -> None:
    found = near_duplicates([first, *_texts(20), second])
    assert ([0, 21] in found.tolist()) == same


def test_the_filter_misses_no_pair() -> None:
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, 12))) for _ in range(300)]
    sets = [set(re.findall(r"\w+", t)) for t in texts]
    expected = [
        [i, j]
        for i, j in itertools.combinations(range(len(texts)), 2)
        if len(sets[i] & sets[j]) >= (1 if min(len(sets[i]), len(sets[j])) < 4 else 0.75) * len(sets[i] | sets[j]) - 1e-9
    ]
    assert sorted(near_duplicates(texts).tolist()) == expected


def test_words_of_a_template_do_not_make_texts_alike() -> None:
    texts = [f"Is the following sentence about the weather of today true or false? {t}" for t in _texts(40, words=4)]
    assert len(near_duplicates(texts)) == 0


def test_near_duplicates_share_a_group_and_are_named() -> None:
    texts = _texts(20)
    copies = [t.replace(t.split()[3], "other") for t in texts[:6]]
    found = regroup(_task(*texts, *copies))
    groups = [e.group for e in found.task.examples]
    assert groups[:20] == [str(i) for i in range(20)]
    assert groups[20:] == groups[:6]
    assert found.merged == 12
    assert "mine: leakage: 12 texts are nearly those of another group" in found.note
    assert "kept on one side" in found.note
    assert found.task.sha256 not in ("", _task(*texts).sha256)


def test_groups_that_are_given_stay_and_chain() -> None:
    a, b, c = _texts(3)
    near = a.replace(a.split()[0], "other")
    found = regroup(_task(a, b, near, c, *_texts(12, seed=5), groups=["p", "p", "q", "q", *map(str, range(12))]))
    assert len({e.group for e in found.task.examples[:4]}) == 1
    assert regroup(_task(a, near, *_texts(9, seed=3), groups=["p", "p", *map(str, range(9))])).note == ""


def test_where_too_many_texts_are_alike_the_groups_stay_and_it_is_said() -> None:
    texts = _texts(2)
    task = _task(*[f"{texts[i % 2]} {i}" for i in range(30)])
    found = regroup(task, 5)
    assert found.refused
    assert found.task is task
    assert "too many are alike" in found.note


def test_the_shipped_tasks_hold_few() -> None:
    assert regroup(load_task("halueval")).note == ""
    assert regroup(load_task("uci-sentiment")).merged == 6
