"""The parts of a causal study that need no model: matched sets, p-values, erasure in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moescope.errors import InputError
from moescope.intervene.leace import Whitening
from moescope.intervene.matched import matched_sets, norm_ratio
from moescope.stats import class_weights
from moescope.studies.circuits.causal import ablation_row
from moescope.studies.circuits.causal_run import interference_row
from moescope.studies.circuits.causal_targets import Probe
from moescope.studies.circuits.causal_values import Split, change_sizes
from moescope.types import Neuron, Site


def test_matched_sets_match() -> None:
    rng = np.random.default_rng(0)
    sites = [Site("resid", 0), Site("resid", 4)]
    norms = {site: np.exp(rng.normal(size=128)) for site in sites}
    circuit = [Neuron(sites[i % 2], 7 * i) for i in range(10)]
    sets = matched_sets(circuit, norms, n_sets=200, seed=3)
    assert len(sets) == 200
    for members in sets:
        assert [n.site for n in members] == [n.site for n in circuit]
        assert len(set(members)) == 10
        assert not {n.index for n in members} & {n.index for n in circuit}  # nor their copies in the other layer
    for own, drawn in zip(circuit, zip(*sets, strict=True), strict=True):
        size = np.log(norms[own.site])
        gap = np.abs(size[[n.index for n in drawn]] - size[own.index])
        outside = np.setdiff1d(np.arange(128), [n.index for n in circuit])
        assert gap.max() <= np.sort(np.abs(size[outside] - size[own.index]))[19] + 1e-12
        assert len({n.index for n in drawn}) >= 15  # it draws, and does not repeat the nearest one
    assert 0.8 < norm_ratio(circuit, sets, norms) < 1.25
    assert sets == matched_sets(circuit, norms, n_sets=200, seed=3)
    column = [Neuron(sites[0], 5), Neuron(sites[1], 5), Neuron(Site("mlp_act", 1), 5)]
    for first, second, unit in matched_sets(column, {**norms, Site("mlp_act", 1): norms[sites[0]]}, n_sets=50):
        assert first.index == second.index != 5  # a coordinate at two layers has one counterpart at both
        assert unit.site == Site("mlp_act", 1)
    with pytest.raises(InputError, match="smaller K"):
        matched_sets([Neuron(sites[0], i) for i in range(60)], norms)


def test_an_effect_is_ranked_among_those_of_random_sets() -> None:
    """Two-sided; a loss that rises is harm, an accuracy that rises is not."""
    groups = np.arange(40)
    clean = np.ones(40)
    worse, better = clean.copy(), clean.copy()
    worse[:20], better[:1] = 0, 0
    row = ablation_row("t", 4, "mean", "probe_accuracy", np.stack([clean, worse, *[better] * 99]), groups)
    assert row["effect"] == -0.5
    assert row["p"] == 2 / 100
    assert row["gap"] == pytest.approx(0.475)
    assert 0.2 < row["gap_low"] < row["gap"] < row["gap_high"]
    same = ablation_row("t", 4, "mean", "probe_accuracy", np.stack([clean, better, *[better] * 99]), groups)
    assert same["p"] == 1
    assert same["gap"] == 0
    loss = ablation_row("t", 4, "mean", "wikitext_loss", np.stack([worse, clean, *[worse] * 19]), groups)
    assert loss["off_task"]
    assert loss["gap"] == 0.5
    alone = ablation_row("t", 4, "mean", "probe_accuracy", np.stack([clean, worse, better]), np.zeros(40))
    assert np.isnan(alone["gap_low"])


def test_random_sets_match_in_what_is_changed_and_not_in_size() -> None:
    """A coordinate that is large and never varies is not changed by its mean, and so matches none that varies."""
    rng = np.random.default_rng(0)
    site = Site("resid", 0)
    x = rng.normal(size=(50, 6)).astype(np.float32)
    x[:, 3] = 100.0
    split = Split(np.arange(50), np.arange(2), np.arange(50) % 2, np.arange(2), 2)
    sizes = {mode: change_sizes(mode, {site: x}, split)[site] for mode in ("mean", "zero", "resample", "patch")}  # type: ignore[arg-type]
    assert sizes["mean"][3] < 1e-3 < 90 < sizes["zero"][3]
    np.testing.assert_allclose(sizes["resample"], np.sqrt(2) * sizes["mean"])
    assert sizes["patch"][3] < 1e-3
    np.testing.assert_allclose(sizes["mean"], x.std(0), atol=1e-4)


def blobs(rows: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes that differ along a few directions of a stretched Gaussian cloud."""
    rng = np.random.default_rng(7)
    mixing, centres = rng.normal(size=(width, width)) / np.sqrt(width), rng.normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    return rng.normal(size=(rows, width)) @ mixing + centres[labels] + 3.0, labels


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shrinkage", [0.0, "auto"])
def test_a_probe_works_before_erasure_and_fails_after(classes: int, shrinkage: float | str) -> None:
    x, y = blobs(2000, 24, classes, seed=1)
    other, other_y = blobs(2000, 24, classes, seed=2)
    eraser = Whitening(x, shrinkage=shrinkage).eraser(y)  # type: ignore[arg-type]

    def accuracy(train: np.ndarray, test: np.ndarray) -> float:
        return float((Probe.fit(train, y).predict(torch.from_numpy(test)).numpy() == other_y).mean())

    assert eraser.left.shape == (24, classes - 1)
    assert accuracy(x, other) > 0.9
    assert accuracy(eraser(x), eraser(other)) < 1 / classes + 0.06
    erased = eraser(x)
    one_hot = np.eye(classes)[y] - np.eye(classes)[y].mean(0)
    assert np.abs((erased - erased.mean(0)).T @ one_hot / len(y)).max() < 1e-10
    assert np.allclose(eraser(erased), erased)
    assert np.allclose(erased.mean(0), x.mean(0))


def test_erasure_changes_least() -> None:
    x, y = blobs(3000, 16, 2, seed=3)
    gap = x[y == 1].mean(0) - x[y == 0].mean(0)
    unit = gap / np.linalg.norm(gap)
    centred = x - x.mean(0)

    def change(erased: np.ndarray) -> float:
        return float(np.square(erased - x).sum(1).mean())

    orthogonal = x - np.outer(centred @ unit, unit)
    best = change(Whitening(x, shrinkage=0.0).eraser(y)(x))
    assert best < 0.95 * change(orthogonal)
    # any other oblique projection along the gap, x - gap (v.x) / (v.gap), erases as well and changes more
    rng = np.random.default_rng(0)
    for _ in range(50):
        v = rng.normal(size=16)
        assert best <= change(x - np.outer(centred @ v / (v @ gap), gap)) + 1e-9
    # where x is white the best projection is the orthogonal one
    values, vectors = np.linalg.eigh(centred.T @ centred / len(x))
    white = centred @ (vectors / np.sqrt(values)) @ vectors.T
    gap = white[y == 1].mean(0) - white[y == 0].mean(0)
    unit = gap / np.linalg.norm(gap)
    assert np.allclose(Whitening(white, shrinkage=0.0).eraser(y)(white), white - np.outer(white @ unit, unit), atol=1e-8)


def test_a_probe_that_is_always_right_is_a_share() -> None:
    """Weighed hits in float32 add up to a little more than 1, and a resample to much more."""
    labels = np.arange(24) % 3 == 0
    hits = class_weights(labels).astype(np.float32)
    row = interference_row("one", "other", hits, 0.5 * hits, np.arange(24), 0.5)
    assert row["baseline"] == pytest.approx(1)
    assert max(row["baseline"], row["baseline_high"]) <= 1
    assert row["effect"] == pytest.approx(-0.5)
