"""What holds on any data is shown to hold on noise; what would be evidence is shown to be absent there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from moescope.studies.circuits.features import Columns, Features
from moescope.studies.circuits.geometry import functional_columns, principal_component, rotated, rotations
from moescope.types import Example, Site, Task


def features(x: np.ndarray, y: np.ndarray, layers: int = 1, groups: np.ndarray | None = None) -> Features:
    n_classes = int(y.max()) + 1
    names = np.arange(len(y)).astype(str) if groups is None else groups.astype(str)
    examples = tuple(Example(f"text {i}", int(c), names[i]) for i, c in enumerate(y))
    task = Task("made", examples, tuple("abcdef"[:n_classes]), source="made here")
    columns = Columns(tuple(Site("resid", i) for i in range(layers)), (x.shape[1] // layers,) * layers)
    return Features(task, columns, x.astype(np.float32), x[:, :2].astype(np.float32), y, names, np.arange(len(y)) // 2 % 5)


WHOLE = slice(None)


def test_opposite_class_means_on_pc1_are_an_identity_of_balanced_data() -> None:
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=(60, 12)) + 50
        summary, _ = principal_component(features(x, np.arange(60) % 2), WHOLE, n_permutations=99, n_shuffles=5)
        first, second = summary["means"]
        assert first == pytest.approx(-second, abs=1e-9)
        assert summary["distance"] == pytest.approx(2 * abs(first))


def test_on_noise_neither_the_component_nor_the_classes_are_evidence() -> None:
    found = []
    for seed in range(200):
        x = np.random.default_rng(seed).normal(size=(40, 6))
        summary, _ = principal_component(
            features(x, np.arange(40) % 2), WHOLE, n_permutations=59, n_shuffles=19 if seed < 60 else 1, seed=seed
        )
        found.append((summary["p"], summary["p_standardised"], summary["explained_p"]))
    p = np.array(found)
    assert kstest(p[:, 0], "uniform").pvalue > 0.01
    assert kstest(p[:, 1], "uniform").pvalue > 0.01
    assert (p[:60, 2] <= 0.05).mean() <= 0.15


def test_a_common_factor_and_a_class_along_it_are_found() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    factor = rng.normal(size=80) + 2 * y
    x = np.outer(factor, np.ones(20)) + rng.normal(size=(80, 20))
    summary, projection = principal_component(features(x, y), WHOLE, n_permutations=199)
    centred = x - x.mean(0)
    variance = np.linalg.eigvalsh(centred.T @ centred)
    assert summary["explained"] == pytest.approx(variance[-1] / variance.sum(), rel=1e-5)
    assert summary["explained_p"] == 1 / 40
    assert summary["explained_null"] < 0.15 < summary["explained"]
    assert summary["p"] == summary["p_standardised"] == 1 / 200
    between = sum((y == c).sum() * projection[y == c, 0].mean() ** 2 for c in (0, 1))
    assert summary["class_share"] == pytest.approx(between / (projection[:, 0] ** 2).sum())
    assert abs(float(projection[:, 0] @ projection[:, 1])) < 1e-6 * float((projection**2).sum())


def test_a_massive_coordinate_hides_the_classes_until_columns_are_standardised() -> None:
    rng = np.random.default_rng(1)
    y = np.arange(100) % 2
    x = np.outer(rng.normal(size=100) + 3 * y, np.ones(10)) + rng.normal(size=(100, 10))
    x[:, 3] = 1000 * rng.normal(size=100)
    summary, _ = principal_component(features(x, y), WHOLE, n_permutations=199)
    assert summary["explained"] > 0.99
    assert summary["p"] > 0.05
    assert summary["p_standardised"] == 1 / 200
    assert summary["class_share_standardised"] > 0.4


def test_three_classes_and_repeatability() -> None:
    x = np.random.default_rng(2).normal(size=(90, 8))
    given = features(x, np.arange(90) % 3)
    first, second = (principal_component(given, WHOLE, n_permutations=20, seed=4) for _ in range(2))
    assert len(first[0]["means"]) == len(first[0]["sds"]) == 3
    assert sum(first[0]["means"]) == pytest.approx(0, abs=1e-9)
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])


def test_a_column_of_the_residual_stream_is_one_coordinate() -> None:
    rng = np.random.default_rng(0)
    carried = rng.normal(size=(50, 1))
    x = rng.normal(size=(50, 30))  # three layers of ten
    x[:, [4, 14, 24]] = carried + 0.01 * rng.normal(size=(50, 3))
    given = features(x, np.arange(50) % 2, layers=3)
    found = functional_columns(given.x, np.array([4, 14, 24, 7, 18]), given.columns)
    assert found == {"columns": [(4, [0, 1, 2])], "distinct_coordinates": 3, "clusters": 3}
    alone = functional_columns(given.x, np.array([9]), given.columns)
    assert alone == {"columns": [], "distinct_coordinates": 1, "clusters": 1}


def test_a_rotation_keeps_geometry_and_turns_all_layers_alike() -> None:
    x = np.random.default_rng(0).normal(size=(20, 12))
    x[:, 6:] = x[:, :6]
    given = features(x, np.arange(20) % 2, layers=2)
    turned = rotated(given.x, given.columns, rotations(given.columns, seed=1))
    np.testing.assert_allclose(turned[:, :6] @ turned[:, :6].T, given.x[:, :6] @ given.x[:, :6].T, atol=1e-4)
    np.testing.assert_allclose(turned[:, 6:], turned[:, :6], atol=1e-6)  # what the skip path carries stays carried
    assert np.abs(turned - given.x).max() > 0.5
    assert np.abs(turned - rotated(given.x, given.columns, rotations(given.columns, seed=2))).max() > 0.5
