"""Rankings settle ties, control sets are what they are called, massive activations are flagged."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.select.ranking import (
    fold_class_sums,
    layer_matched_sets,
    massive_dimensions,
    random_sets,
    rank,
    top_k,
    top_variance,
)

LAYER = np.repeat([0, 1, 2], 10)


def test_ties_go_to_the_lowest_index() -> None:
    score = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 2.0])
    assert top_k(score, 4).tolist() == [1, 3, 2, 4]
    assert rank(score).tolist() == [1, 3, 2, 4, 5, 0]
    allowed = np.array([True, False, True, True, True, False])
    assert top_k(score, 2, allowed).tolist() == [3, 2]
    assert rank(score, allowed).tolist() == [3, 2, 4, 0]
    many = np.random.default_rng(0).integers(4, size=500).astype(float)
    for k in (1, 7, 250, 500):
        assert top_k(many, k).tolist() == rank(many)[:k].tolist()


def test_random_sets_are_distinct_and_uniform() -> None:
    sets = random_sets(np.random.default_rng(0), 30, 3, 3000)
    assert all(len(set(row)) == 3 for row in sets.tolist())
    counts = np.bincount(sets.ravel(), minlength=30)
    assert counts.min() > 230  # 300 expected, standard deviation 16
    assert counts.max() < 370


def test_layer_matched_sets_keep_layers_and_leave_the_circuit_out() -> None:
    circuit = np.array([3, 21, 4, 28, 29])
    sets = layer_matched_sets(np.random.default_rng(0), circuit, LAYER, 5, 200)
    assert (LAYER[sets] == LAYER[circuit]).all()
    assert not np.isin(sets, circuit).any()
    assert all(len(set(row)) == 5 for row in sets.tolist())
    assert len(np.unique(sets)) == 15  # all 8 + 7 others of the two layers occur


def test_massive_dimensions_are_judged_within_their_layer() -> None:
    x = np.random.default_rng(0).normal(size=(200, 30))
    x[:, 10:20] *= 100  # a loud layer is not massive
    x[:, 3] += 50  # a large mean is
    x[:, 25] *= 60  # and a large spread
    assert np.flatnonzero(massive_dimensions(x, layer_of=LAYER)).tolist() == [3, 25]
    assert 15 in np.flatnonzero(massive_dimensions(x))  # without layers, the loud layer drowns the rest
    halves = fold_class_sums(x, np.arange(200) % 2, np.zeros(200, dtype=int))
    np.testing.assert_array_equal(massive_dimensions(halves, layer_of=LAYER), massive_dimensions(x, layer_of=LAYER))


def test_top_variance_is_of_all_rows_together() -> None:
    x = np.random.default_rng(0).normal(size=(100, 12))
    y = np.arange(100) % 2
    x[:, 5] += 10 * y  # small within classes, large over all rows
    moments = fold_class_sums(x, y, y).total()
    assert top_variance(moments, 3).tolist() == np.argsort(-x.var(0))[:3].tolist()
    assert top_variance(moments, 1).tolist() == [5]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: top_k(np.ones(3), 4), "k=4 features out of 3"),
        (lambda: top_k(np.array([1.0, np.nan]), 1), "feature 1 is NaN"),
        (lambda: top_k(np.ones(3), 1, np.ones(2, dtype=bool)), "mask"),
        (lambda: random_sets(np.random.default_rng(0), 3, 4, 1), "k=4"),
        (lambda: layer_matched_sets(np.random.default_rng(0), np.arange(8), LAYER, 8, 1), "layer 0 has 2"),
        (lambda: massive_dimensions(np.ones((3, 2)), factor=0), "factor=0"),
    ],
)
def test_bad_input_is_named(call, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=said):
        call()
