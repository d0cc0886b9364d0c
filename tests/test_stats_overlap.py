"""Overlap beside what chance gives."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.stats import disjoint_probability, expected_overlap, kuncheva, nogueira, overlap_p


def test_two_random_tens_of_131072_are_disjoint() -> None:
    assert disjoint_probability(10, 131072) == pytest.approx(0.9992, abs=5e-5)
    assert expected_overlap(10, 131072) == pytest.approx(100 / 131072)


def test_hypergeometric_tail_is_the_count_of_all_sets() -> None:
    n, k = 8, 3
    own = {0, 1, 2}
    shared = np.array([len(own & set(other)) for other in combinations(range(n), k)])
    for overlap in range(k + 1):
        assert overlap_p(overlap, k, n) == pytest.approx((shared >= overlap).mean())
    assert disjoint_probability(k, n) == pytest.approx((shared == 0).mean())
    assert expected_overlap(k, n) == pytest.approx(shared.mean())


def masks(rng: np.random.Generator, runs: int, k: int, n: int) -> np.ndarray:
    out = np.zeros((runs, n), dtype=bool)
    for row in out:
        row[rng.choice(n, k, replace=False)] = True
    return out


def test_chance_corrected_indices_are_zero_at_chance_and_one_for_equal_sets() -> None:
    rng = np.random.default_rng(0)
    pairs = [masks(rng, 2, 20, 100) for _ in range(600)]
    values = [kuncheva(np.flatnonzero(a), np.flatnonzero(b), 100) for a, b in pairs]
    assert np.mean(values) == pytest.approx(0, abs=0.02)
    assert nogueira(masks(rng, 60, 20, 100)) == pytest.approx(0, abs=0.02)
    assert kuncheva([1, 2], [2, 1], 50) == pytest.approx(1)
    assert nogueira(np.tile(masks(rng, 1, 7, 30), (4, 1))) == pytest.approx(1)


def test_nogueira_of_two_sets_is_kuncheva() -> None:
    for a, b in (masks(np.random.default_rng(s), 2, 9, 40) for s in range(20)):
        assert nogueira(np.stack([a, b])) == pytest.approx(kuncheva(np.flatnonzero(a), np.flatnonzero(b), 40))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: overlap_p(4, 3, 10), "overlap of 4"),
        (lambda: expected_overlap(11, 10), "k=11"),
        (lambda: kuncheva([1], [1, 2], 10), "1 and 2"),
        (lambda: kuncheva([0, 1], [0, 1], 2), "undefined"),
        (lambda: nogueira(np.ones((3, 4))), "undefined"),
        (lambda: nogueira(np.ones((1, 4))), "at least two"),
    ],
)
def test_bad_input_is_named(call, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=said):
        call()
