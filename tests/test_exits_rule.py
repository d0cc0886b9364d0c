"""Heads and the rule by which a row leaves: the promised risk holds on populations whose risk is known."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.runtime.choices import KINDS
from moescope.runtime.exit.features import ExitFeatures
from moescope.runtime.exit.heads import fit_heads
from moescope.runtime.exit.rule import exit_layers, losses, thresholds
from moescope.studies.exit.calibration import calibrate
from moescope.studies.exit.settings import ExitSettings
from moescope.study.rows import calibrated
from moescope.tasks import group_folds
from moescope.types import Example, Task

CHECKS = (0, 1, 2, 3)


def population(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What four heads say (n, 4, 2) of rows in pairs; deeper heads know more, all are overconfident, pairs fail together."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    groups = np.repeat(np.arange(n // 2), 2)
    hard = rng.standard_normal(n // 2)[groups]
    odds = np.stack([(1 - 2 * (y == 0)) * s + hard + 0.7 * rng.standard_normal(n) for s in (0.6, 1.0, 1.8, 3.0)], axis=1)
    p = 1 / (1 + np.exp(-3 * odds))
    return np.stack([1 - p, p], axis=2), y, groups


@pytest.mark.parametrize("loss", ["accuracy", "disagreement"])
@pytest.mark.parametrize("method", ["ltt", "crc"])
def test_the_bound_holds_over_resplits(loss: str, method: str) -> None:
    """200 calibration sets of 150 groups; the risk is measured on 20,000 other rows of the same population."""
    said, y, _ = population(20_000, 1)
    pool, pool_y, pool_groups = population(200 * 300, 2)
    settings = ExitSettings(risk=0.05, loss=loss, method=method)  # type: ignore[arg-type]
    true = {t: losses(said, y, exit_layers(said, t, CHECKS), settings.loss).mean() for t in thresholds(2)}
    found, naive = [], []
    for start in range(0, len(pool), 300):
        part = slice(start, start + 300)
        found.append(true[calibrate(pool[part], pool_y[part], pool_groups[part], CHECKS, settings).threshold])
        tuned = [losses(pool[part], pool_y[part], exit_layers(pool[part], t, CHECKS), settings.loss).mean() for t in true]
        naive.append(true[[t for t, cost in zip(true, tuned, strict=True) if cost <= 0.05][-1]])
    if method == "ltt":
        assert np.mean(np.array(found) <= 0.05) >= 0.9
        assert np.mean(np.array(naive) <= 0.05) < 0.8  # a threshold tuned on the data is no guarantee
    else:
        assert np.mean(found) <= 0.05 + 3 * np.std(found) / np.sqrt(len(found))
    assert np.median(found) > 0.005  # rows do leave


def test_where_a_row_leaves() -> None:
    said = np.array([[[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], [[0.5, 0.5], [0.3, 0.7], [0.4, 0.6]]])
    assert exit_layers(said, 0.7, (0, 1, 2)).tolist() == [0, 1]
    assert exit_layers(said, 0.7, (1,)).tolist() == [2, 1]  # no check after layer 0
    assert exit_layers(said, np.inf, (0, 1, 2)).tolist() == [2, 2]
    y = np.array([1, 1])
    assert losses(said, y, np.array([0, 1]), "accuracy").tolist() == [1, 0]
    assert losses(said, np.array([0, 1]), np.array([0, 1]), "accuracy").tolist() == [0, 0]  # wrong at full depth: not lost
    assert losses(said, np.array([0, 1]), np.array([0, 1]), "disagreement").tolist() == [1, 0]
    grid = thresholds(3)
    assert grid[0] == np.inf
    assert (np.diff(grid) < 0).all()
    assert grid[-1] == pytest.approx(1 / 3)


def made_features(n: int = 240, seed: int = 0) -> tuple[ExitFeatures, np.ndarray, np.ndarray]:
    """Three layers of 30; coordinate 7 of layer 1 carries the class at the final token, coordinate 3 of all means does."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    final, mean = (rng.standard_normal((n, 3, 30)).astype(np.float32) for _ in range(2))
    final[:, 1, 7] += 4 * y
    final[:, :, 11] *= 1000  # a massive coordinate that says nothing
    mean[:, :, 3] += 4 * y[:, None]
    return ExitFeatures(final, mean), y, np.array([str(i // 2) for i in range(n)])


def thirds(y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return group_folds(y, groups, n_folds=3)


def test_heads_find_what_is_planted_where_it_is() -> None:
    features, y, groups = made_features()
    fitted = {kind: fit_heads(kind, features, y, thirds(y, groups), k=3) for kind in KINDS}
    assert fitted["circuit"].heads.columns is not None
    per_layer = [set(c.tolist()) for c in fitted["circuit"].heads.columns]
    assert 37 not in per_layer[0]
    assert all(c < 30 for c in per_layer[0])  # nothing from layers not yet run
    assert 37 in per_layer[1]
    assert 37 in per_layer[2]  # a circuit may look back
    shallow, middle, deep = fitted["circuit"].accuracy
    assert shallow < 0.65
    assert middle > 0.93
    assert deep > 0.93
    assert fitted["linear"].accuracy[1] > 0.93
    assert fitted["linear"].accuracy[2] < 0.65  # its own layer only
    assert (fitted["pooled"].accuracy > 0.9).all()


def test_accuracy_in_training_is_not_of_the_rows_fitted_on() -> None:
    rng = np.random.default_rng(3)
    noise = ExitFeatures(*(rng.standard_normal((120, 2, 400)).astype(np.float32) for _ in range(2)))
    y = np.arange(120) % 2
    fitted = fit_heads("circuit", noise, y, thirds(y, np.arange(120).astype(str)), k=10)
    assert fitted.accuracy.max() < 0.65
    inside = fitted.heads.probabilities(noise).argmax(-1) == y[:, None]
    assert inside.mean() > 0.75  # which is what selecting on all rows would report


def test_temperature_makes_confidence_honest() -> None:
    features, y, groups = made_features(600, seed=4)
    train, fresh = np.arange(300), np.arange(300, 600)
    heads = fit_heads("linear", features.rows(train), y[train], thirds(y[train], groups[train])).heads
    said = heads.probabilities(features.rows(fresh))
    for layer in range(3):
        assert said[:, layer].max(-1).mean() == pytest.approx((said[:, layer].argmax(-1) == y[fresh]).mean(), abs=0.06)


def test_splits_keep_groups_whole() -> None:
    task = Task("t", tuple(Example(str(i), i % 2, str(i // 2)) for i in range(200)), ("a", "b"), "made here")
    split = calibrated("t", task, 0)
    parts = [{task.examples[i].group for i in rows} for rows in (split.fit, split.calibrate, split.judge)]
    assert len(set.union(*parts)) == sum(len(p) for p in parts)
    assert [len(p) for p in parts] == [40, 40, 20]


def test_too_little_calibration_is_refused() -> None:
    said, y, groups = population(40, 0)
    with pytest.raises(InputError, match="at least 114 calibration groups, there are 20"):
        calibrate(said, y, groups, CHECKS, ExitSettings(risk=0.02))
    with pytest.raises(InputError, match="at least 49 calibration groups, there are 20"):
        calibrate(said, y, groups, CHECKS, ExitSettings(risk=0.02, method="crc"))


def test_k_above_the_width_is_refused() -> None:
    features, y, groups = made_features()
    with pytest.raises(InputError, match="K = 31"):
        fit_heads("circuit", features, y, thirds(y, groups), k=31)


@pytest.mark.parametrize(
    "wrong", [{"risk": 0.0}, {"delta": 1.0}, {"loss": "regret"}, {"method": "vote"}, {"head": "tree"}, {"k": 0}]
)
def test_bad_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}: "):
        ExitSettings(**wrong)  # type: ignore[arg-type]
