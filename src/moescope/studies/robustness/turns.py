"""Who fits, calibrates and judges a monitor: every group judges once, and none is in two roles of a turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from moescope.errors import InputError
from moescope.stats.conformal import ltt_size
from moescope.studies.robustness.settings import RobustnessSettings
from moescope.study.rows import FOLDS, Rows
from moescope.tasks import Prompt, group_folds


def watched_rows(
    prompts: Sequence[Prompt], y: np.ndarray, categories: list[str], settings: RobustnessSettings, seed: int
) -> list[Rows] | None:
    """Who fits, calibrates and judges a monitor of one category; None where none is asked for."""
    if settings.monitor is None:
        return None
    if settings.monitor not in categories:
        raise InputError(f"{settings.monitor!r} is none of the prompts' categories: {', '.join(categories)}", "monitor")
    groups = np.array([p.group or p.id for p in prompts])
    return check_cascade(y == categories.index(settings.monitor), groups, settings, seed)


def turns(y: np.ndarray, groups: np.ndarray, seed: int) -> Iterator[Rows]:
    """Two fifths of the groups fit, two calibrate, one judges; each group judges once."""
    folds = group_folds(y.astype(int), groups, n_folds=FOLDS, seed=seed)
    for turn in range(FOLDS):
        part = (folds - turn) % FOLDS
        fit, calibrate, judge = (np.flatnonzero(np.isin(part, of)) for of in ((1, 2), (3, 4), (0,)))
        yield Rows(f"monitor, turn {turn}", groups, fit=fit, select=fit, calibrate=calibrate, judge=judge)


def check_cascade(y: np.ndarray, groups: np.ndarray, settings: RobustnessSettings, seed: int) -> list[Rows]:
    """The turns, if every one has enough calibration prompts for the promise.

    Raises:
        InputError: one has too few.
    """
    found = list(turns(y, groups, seed))
    need = ltt_size(settings.risk, settings.delta)
    have = min(len(one_each(rows.calibrate[y[rows.calibrate]], groups)) for rows in found)
    if have < need:
        raise InputError(
            f"{settings.risk:g} at delta {settings.delta:g} needs at least {need} calibration prompts of {settings.monitor!r} "
            f"in groups of their own, there are {have}; ask for more risk, or give more prompts",
            "risk",
        )
    return found


def one_each(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """One row of each group, drawn at random: exchangeable units."""
    order = np.random.default_rng(0).permutation(rows)
    return np.asarray(order[np.unique(groups[order], return_index=True)[1]])
