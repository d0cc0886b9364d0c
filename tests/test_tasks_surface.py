"""What trivial cues score, on shipped text and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.tasks import fixed_wrap, group_folds, load_task, matched_subset, slots, subset, surface_baselines
from moescope.tasks.predictors import threshold_rule
from moescope.tasks.surface import surface_features
from moescope.types import Example, Task


class ByteTokenizer:
    """Words and single marks as tokens; an id is a hash of the piece that is the same in every run."""

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        import re
        import zlib

        return {"input_ids": [[zlib.crc32(t.encode()) for t in re.findall(r"\w+|[^\w\s]", text)] for text in texts]}


def labels(task: Task) -> np.ndarray:
    return np.array([e.label for e in task.examples])


def folds_of(task: Task) -> np.ndarray:
    return group_folds(labels(task), [e.group for e in task.examples])


def made(texts: list[str], y: list[int], classes: tuple[str, ...] = ("a", "b")) -> Task:
    return Task("made", tuple(Example(t, c, str(i)) for i, (t, c) in enumerate(zip(texts, y, strict=True))), classes, "made")


# On HaluEval QA the hallucinated answers are whole sentences. STATISTICS: a full stop alone 93.8 / 98.0 %; a length
# threshold about 89-90 / 95 % (by the best whole-data threshold in characters 89.9 / 95.7, held out 89.7 / 95.4).
@pytest.mark.parametrize(
    ("turn", "full_stop", "best_length", "cv_length"),
    [("one-turn", 0.938, 0.899, 0.897), ("multi-turn", 0.980, 0.957, 0.954)],
)
@pytest.mark.parametrize("template", ["answer", "judged"])
def test_halueval_is_solved_by_a_full_stop(
    turn: str, full_stop: float, best_length: float, cv_length: float, template: str
) -> None:
    task = load_task(f"halueval?turn={turn}&template={template}")
    y = labels(task)
    features = surface_features(task)
    assert (features["ends_full_stop"].to_numpy() == y).mean() == pytest.approx(full_stop)
    threshold, side, accuracy = threshold_rule(features["chars"].to_numpy(), y)
    assert (threshold, side) == (24.5, 1)
    assert accuracy == pytest.approx(best_length)
    assert ((features["chars"].to_numpy() > threshold) == y).mean() == pytest.approx(accuracy)
    table = surface_baselines(task, folds_of(task)).set_index("control")
    assert table.loc["ends with a full stop", "accuracy"] == pytest.approx(full_stop)
    assert table.loc["length in characters", "accuracy"] == pytest.approx(cv_length, abs=0.006)
    assert table.loc["all surface cues", "accuracy"] > 0.92
    assert table.loc["majority class", "accuracy"] == pytest.approx(0.5)
    assert (table["low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["high"]).all()
    assert (table["n"] == 1000).all()
    assert list(table.columns) == ["accuracy", "low", "high", "n"]


def test_matched_subset_removes_the_cues() -> None:
    task = load_task("halueval")
    rows = matched_subset(task, seed=0)
    assert (rows == matched_subset(task, seed=0)).all()
    assert (rows == np.unique(rows)).all()
    assert len(rows) > 80
    matched = subset(task, rows)
    y = labels(matched)
    features = surface_features(matched)
    assert y.mean() == 0.5
    assert features["ends_full_stop"][y == 0].sum() == features["ends_full_stop"][y == 1].sum()
    table = surface_baselines(matched, folds_of(matched)).set_index("control")
    for control in ("ends with a full stop", "length in characters", "length in words"):
        assert table.loc[control, "low"] < 0.5
        assert table.loc[control, "accuracy"] < 0.6


def test_matched_subset_of_separated_classes_is_empty() -> None:
    task = made([f"text {i}" + "." * (i % 2) for i in range(20)], [i % 2 for i in range(20)])
    rows = matched_subset(task)
    assert rows.shape == (0,)
    assert rows.dtype == np.int64


def test_fixed_wrap_gives_every_row_the_same_end() -> None:
    task = load_task("halueval?template=judged", limit=100)
    wrapped = fixed_wrap(task)
    tokens = ByteTokenizer()([e.text for e in wrapped.examples])["input_ids"]
    assert len({tuple(ids[-6:]) for ids in tokens}) == 1
    assert [(e.label, e.group) for e in wrapped.examples] == [(e.label, e.group) for e in task.examples]
    assert wrapped.answers == ()
    assert wrapped.sha256 != task.sha256
    assert slots(wrapped) == slots(task)
    table = surface_baselines(wrapped, folds_of(wrapped), ByteTokenizer()).set_index("control")
    assert table.loc["final token", "accuracy"] == 0.5
    assert table.loc["final character", "accuracy"] > 0.8  # the slot's own end, which the model can still attend to


def test_final_token_of_the_shipped_text() -> None:
    task = load_task("halueval")
    table = surface_baselines(task, folds_of(task), ByteTokenizer(), n_boot=200).set_index("control")
    assert table.loc["final token", "accuracy"] > 0.9
    assert {"length in tokens", "final token"} <= set(table.index)
    assert "final token" not in surface_baselines(task, folds_of(task), n_boot=200)["control"].tolist()


def test_words_carry_sentiment_and_endings_do_not() -> None:
    task = load_task("uci-sentiment", limit=1200)
    table = surface_baselines(task, folds_of(task), n_boot=200).set_index("control")
    assert table.loc["bag of words", "accuracy"] > 0.72
    assert abs(table.loc["ends with a full stop", "accuracy"] - 0.5) < 0.07


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], (2.5, 1, 1.0)),
        ([1, 2, 3, 4], [1, 1, 0, 0], (2.5, 0, 1.0)),
        ([5, 5, 5], [1, 1, 0], (4, 1, 2 / 3)),
        ([1, 1, 2, 2], [0, 1, 1, 1], (0, 1, 0.75)),
    ],
)
def test_threshold_rule(x: list[int], y: list[int], expected: tuple[float, int, float]) -> None:
    assert threshold_rule(np.array(x), np.array(y)) == pytest.approx(expected)


def test_threshold_rule_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = rng.integers(0, 8, 30), rng.integers(0, 2, 30)
        threshold, side, accuracy = threshold_rule(x, y)
        assert (np.where(x > threshold, side, 1 - side) == y).mean() == pytest.approx(accuracy)
        cuts = [t + 0.5 for t in range(-1, 9)]
        assert accuracy == pytest.approx(max(max(((x > t) == y).mean(), ((x <= t) == y).mean()) for t in cuts))


def test_baselines_learn_nothing_from_noise() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), 12)) + rng.choice(["", ".", "!"]) for _ in range(600)]
    task = made(texts, rng.integers(0, 2, 600).tolist())
    table = surface_baselines(task, folds_of(task), ByteTokenizer())
    assert table["accuracy"].between(0.42, 0.58).all()


def test_three_classes() -> None:
    texts = ["x" * (1 + 10 * (i % 3) + i % 4) + ".!?"[i % 3] for i in range(90)]
    task = made(texts, [i % 3 for i in range(90)], ("a", "b", "c"))
    table = surface_baselines(task, folds_of(task)).set_index("control")
    assert table.loc["length in characters", "accuracy"] == 1
    assert table.loc["final character", "accuracy"] == 1
    assert table.loc["ends with a full stop", "accuracy"] == pytest.approx(2 / 3)
    assert table.loc["length in words", "accuracy"] == pytest.approx(1 / 3)
    assert table.loc["majority class", "high"] < 0.45  # Wilson: every group is one row


def test_texts_without_words_and_endings_in_quotes() -> None:
    task = made(["!!!", "???", "...", "--", "!!", "??"] * 5, [0, 1, 0, 1, 0, 1] * 5)
    table = surface_baselines(task, folds_of(task)).set_index("control")
    assert table.loc["final character", "accuracy"] > 0.7
    assert table["accuracy"].notna().all()
    features = surface_features(made(['He said "yes."', "No.", "Yes", "Gut。", "Why?)"], [0, 1, 0, 1, 0]))
    assert features["ends_full_stop"].tolist() == [False, True, False, True, False]
    assert features["ends_punctuation"].tolist() == [True, True, False, True, True]


def test_folds_of_another_length_are_refused() -> None:
    task = load_task("halueval", limit=20)
    with pytest.raises(InputError, match="5 fold ids for 20 rows"):
        surface_baselines(task, np.zeros(5, dtype=int))
