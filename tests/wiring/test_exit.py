"""Which rows fit, calibrate and judge an early exit, and on which its surface cue is chosen."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from moescope.models import LoadedModel
from moescope.runtime.exit.classifier import ExitClassifier
from moescope.study.result import StudyResult
from moescope.types import Claim, Task
from tests.wiring import call
from tests.wiring.planted import lookup_model, squares, task

ROWS, WIDTH, EARLY, SOURCE, LATE = 200, 32, 5, 9, 13
CLASSES = np.random.default_rng(0).permutation(np.arange(ROWS) % 2)


def model_of(early: np.ndarray, texts: list[str]) -> LoadedModel:
    """Layer 0 holds ``early`` (N,), what a row seems to be; layer 1 adds, larger than all else, what it is."""
    rng = np.random.default_rng(1)
    x = 0.3 * rng.normal(size=(ROWS, WIDTH))
    x[:, 0] = 20.0  # so that all rows are of one size
    x[:, EARLY] += 3 * x[:, EARLY] + early
    x[:, SOURCE] = np.where(CLASSES == 1, rng.choice([-3.0, 3.0], ROWS), 0.0)
    model = lookup_model(dict(zip(texts, x, strict=True)), layers=2)
    squares(model, 1, SOURCE, 60 * np.eye(WIDTH)[LATE])
    return model


def made(groups: np.ndarray) -> Task:
    return task([f"w{i}" for i in range(ROWS)], CLASSES, groups)


@cache
def turned() -> tuple[StudyResult, ExitClassifier]:
    """In the rows that calibrate, layer 0 is wrong of every class; in those that fit and those that judge it is right."""
    rows = made(np.arange(ROWS) // 2)
    _, calibration, _ = call.exit_split(rows)
    early = 3.0 * (2 * CLASSES - 1)
    early[calibration] *= -1
    return call.exit(model_of(early, [e.text for e in rows.examples]), rows, risk=0.2, head="circuit", k=1)


def test_the_first_head_is_fitted_and_judged_where_it_is_right() -> None:
    heads = turned()[0].tables["heads"].query("kind == 'circuit'").set_index("layer")
    assert heads.loc[0, "left_out"] > 0.9
    assert heads.loc[0, "test"] > 0.9
    assert heads.loc[1, "test"] > 0.9


def test_the_exit_is_calibrated_where_leaving_early_is_wrong() -> None:
    depth = turned()[0].tables["depth"].set_index("layers")["rows"]
    assert depth[1] == 0
    assert depth[2] > 0


def test_the_promise_counts_groups() -> None:
    """Rows come in pairs."""
    groups = np.arange(ROWS) // 2
    rows = made(groups)
    _, calibration, _ = call.exit_split(rows)
    guarantee = turned()[1].guarantee
    assert guarantee is not None
    assert guarantee.groups == len(np.unique(groups[calibration]))


@cache
def cued() -> StudyResult:
    """A full stop tells four rows in five; every row has words of its own, which only who has learnt them knows.

    The length tells fewer. Where rows judge, the full stop tells nothing and the length tells all.
    """
    rows = task([f"w{i}" for i in range(ROWS)], CLASSES)
    test = call.exit_split(rows)[2]
    stop = CLASSES ^ (np.random.default_rng(2).random(ROWS) < 0.2)
    stop[test] = np.random.default_rng(3).permutation(stop[test])
    texts = [f"w{i:03d}{'z.'[int(s)]}" for i, s in enumerate(stop)]
    long = CLASSES ^ (np.random.default_rng(5).random(ROWS) < 0.33)
    long[test] = CLASSES[test]
    texts = ["x" * (20 * int(far)) + text for text, far in zip(texts, long, strict=True)]
    rows = task(texts, CLASSES)
    return call.exit(model_of(3.0 * (2 * CLASSES - 1), texts), rows, risk=0.2, head="linear", k=3)[0]


def test_the_surface_cue_is_chosen_among_rows_that_it_has_not_learnt() -> None:
    assert cued().tables["surface"]["cue"].iloc[0] in ("ends with a full stop", "ends with punctuation", "final character")


def test_the_surface_cue_is_not_chosen_by_the_rows_that_judge() -> None:
    assert cued().tables["surface"]["accuracy"].iloc[0] < 0.8


@cache
def half_sure() -> StudyResult:
    """Layer 0 knows half of the rows well and nothing of the others, layer 1 knows all: a row leaves when layer 0 knows it."""
    rows = task([f"w{i}" for i in range(ROWS)], CLASSES)
    sure = np.random.default_rng(6).random(ROWS) < 0.5
    early = np.where(sure, 4.0 * (2 * CLASSES - 1), 0.0)
    return call.exit(model_of(early, [e.text for e in rows.examples]), rows, risk=0.05, head="circuit", k=1)[0]


def by_confidence() -> Claim:
    return next(c for c in half_sure().claims if "exit by confidence" in c.statement)


def test_exits_at_random_are_none_by_confidence() -> None:
    claim = by_confidence()
    assert claim.control is not None
    assert claim.control.value < claim.measured - 0.05
    assert claim.p is not None
    assert claim.p < 0.01


def test_exits_at_random_are_as_deep() -> None:
    """They do worse than every row at full depth, for some leave where layer 0 knows nothing of them."""
    heads = half_sure().tables["heads"].query("kind == 'circuit'").set_index("layer")
    claim = by_confidence()
    assert claim.control is not None
    assert claim.control.value < heads.loc[1, "test"] - 0.05


@pytest.mark.parametrize("layer", [0, 1])
def test_noise_is_noise_at_every_depth(layer: int) -> None:
    rng = np.random.default_rng(4)
    rows = task([f"w{i}" for i in range(ROWS)], rng.permutation(CLASSES))
    result, _ = call.exit(model_of(3.0 * (2 * CLASSES - 1), [e.text for e in rows.examples]), rows, risk=0.3, k=3)
    assert result.tables["heads"].query("layer == @layer")["test"].max() < 0.68
