"""Group-aware splits."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.tasks import group_folds, load_task, split_half


@pytest.mark.parametrize("spec", ["halueval?turn=both", "truthfulqa", "uci-sentiment"])
@pytest.mark.parametrize("n_folds", [2, 5])
def test_groups_never_straddle_and_classes_stay_balanced(spec: str, n_folds: int) -> None:
    task = load_task(spec)
    y = np.array([e.label for e in task.examples])
    groups = np.array([e.group for e in task.examples])
    folds = group_folds(y, groups, n_folds, seed=1)
    assert folds.dtype == np.int64
    assert set(folds) == set(range(n_folds))
    assert all(len(set(folds[groups == g])) == 1 for g in np.unique(groups)[:300])
    pairs = {(g, f) for g, f in zip(groups, folds, strict=True)}
    assert len(pairs) == len(np.unique(groups))
    shares = [y[folds == f].mean() for f in range(n_folds)]
    assert np.ptp(shares) < 0.02
    sizes = np.bincount(folds)
    assert np.ptp(sizes) <= 0.02 * len(y)


def test_seed_decides() -> None:
    y, groups = np.tile([0, 1], 50), np.repeat(np.arange(50), 2)
    assert (group_folds(y, groups, seed=4) == group_folds(y, groups, seed=4)).all()
    assert (group_folds(y, groups, seed=4) != group_folds(y, groups, seed=5)).any()
    assert (split_half(y, groups, 4) == split_half(y, groups, 4)).all()
    assert (split_half(y, groups, 4) != split_half(y, groups, 5)).any()
    # Groups are names: their type and order of codes do not matter, only who shares one.
    assert (group_folds(y, [f"g{g}" for g in groups], seed=4) == group_folds(y, groups, seed=4)).all()


def test_single_row_groups_are_stratified() -> None:
    y = np.repeat([0, 1, 2], [20, 30, 50])
    folds = group_folds(y, np.arange(100), 5)
    assert all(np.bincount(y[folds == f]).tolist() == [4, 6, 10] for f in range(5))


def test_split_half_is_whole_and_even() -> None:
    task = load_task("halueval", limit=200)
    y = np.array([e.label for e in task.examples])
    groups = np.array([e.group for e in task.examples])
    half = split_half(y, groups, seed=2)
    assert half.dtype == bool
    assert half.sum() == 100
    assert y[half].mean() == y[~half].mean() == 0.5
    assert set(groups[half]).isdisjoint(groups[~half])


def test_rare_class_need_not_reach_every_fold() -> None:
    y = np.array([1, 1] + [0] * 30)
    folds = group_folds(y, np.arange(32), 5)
    assert all(set(y[folds != f]) == {0, 1} for f in range(5))


@pytest.mark.parametrize(
    ("labels", "groups", "n_folds", "message"),
    [
        ([0, 1, 0, 1], ["a"] * 4, 2, "one group cannot form 2 folds"),
        ([0, 1, 0, 1], ["a", "a", "b", "c"], 5, "3 groups cannot form 5 folds"),
        ([0, 0, 0], [1, 2, 3], 2, "one class only"),
        ([0, 1, 1, 0, 0, 0], [1, 1, 1, 2, 3, 4], 2, "class 1 has all its rows in one group"),
        ([0, 1], [1, 2, 3], 2, "differ in length"),
        ([0, 1, 0, 1], [1, 2, 3, 4], 1, "at least 2 folds"),
        ([0, 1, 0, 1, 0], [1, 2, 3, 4, 5], 3.5, "whole number"),
    ],
)
def test_impossible_splits(labels: list[int], groups: list, n_folds: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        group_folds(labels, groups, n_folds)
    assert "\n" not in str(caught.value)


def test_a_class_in_two_groups_is_never_lost_from_training() -> None:
    y = np.array([1, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    groups = np.array([0, 0, 1, 1, 2, 3, 4, 5, 6, 7])
    for seed in range(20):
        folds = group_folds(y, groups, 3, seed=seed)
        assert all(set(y[folds != f]) == {0, 1} for f in range(3))
