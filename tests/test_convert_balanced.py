"""Clusters of equal size: near the exact assignment, and the planted groups are found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from moescope.studies.convert.balanced import FREE, balanced_assignment, balanced_kmeans


def nearest_with_room(similarity: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """The naive way: each row in turn takes the best cluster that has room."""
    room = capacity.copy()
    chosen = np.empty(len(similarity), np.int64)
    for row, values in enumerate(similarity):
        chosen[row] = max(np.flatnonzero(room), key=lambda c: values[c])
        room[chosen[row]] -= 1
    return chosen


@pytest.mark.parametrize("seed", range(3))
def test_nearly_as_good_as_the_exact_assignment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity = rng.normal(size=(96, 8)).astype(np.float32)
    capacity = np.full(8, 12)
    found = balanced_assignment(similarity, capacity)
    assert (np.bincount(found, minlength=8) == 12).all()
    rows, columns = linear_sum_assignment(-np.repeat(similarity, 12, axis=1))
    exact = similarity[rows, columns // 12].sum()
    total = similarity[np.arange(96), found].sum()
    naive = similarity[np.arange(96), nearest_with_room(similarity, capacity)].sum()
    assert total >= 0.98 * exact
    assert naive < 0.98 * exact


def test_uneven_room_is_kept_to() -> None:
    rng = np.random.default_rng(0)
    capacity = np.array([0, 5, 1, 20])
    found = balanced_assignment(rng.normal(size=(20, 4)), capacity)
    assert (np.bincount(found, minlength=4) <= capacity).all()


def test_planted_groups_are_found_whatever_their_order() -> None:
    rng = np.random.default_rng(1)
    truth = np.repeat(np.arange(6), 10)
    centres = rng.normal(size=(6, 30))
    order = rng.permutation(60)
    features = (centres[truth] + 0.3 * rng.normal(size=(60, 30)))[order]
    labels = balanced_kmeans(features, 6, 10)
    for cluster in range(6):
        assert len(set(truth[order][labels == cluster])) == 1


def test_fixed_rows_stay_and_draw_their_kind() -> None:
    """Two rows of each of two groups are seated in clusters of the caller's choice; the rest joins them there."""
    rng = np.random.default_rng(2)
    truth = np.repeat([0, 1, 2], 8)
    features = rng.normal(size=(3, 20))[truth] + 0.2 * rng.normal(size=(24, 20))
    fixed = np.full(24, FREE)
    fixed[[0, 1]], fixed[[8, 9]] = 2, 0
    labels = balanced_kmeans(features, 3, 8, fixed=fixed)
    assert (labels[truth == 0] == 2).all()
    assert (labels[truth == 1] == 0).all()


def test_rows_of_zeros_and_equal_rows_are_seated_too() -> None:
    assert (np.bincount(balanced_kmeans(np.zeros((12, 4)), 3, 4)) == 4).all()
    assert (np.bincount(balanced_kmeans(np.ones((12, 4)), 3, 4)) == 4).all()
