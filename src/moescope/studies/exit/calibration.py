"""Which confidence is asked for: calibrated so that a promise holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from moescope.runtime.exit.rule import Guarantee, exit_layers, losses, promise, thresholds
from moescope.stats.conformal import group_means
from moescope.studies.exit.settings import ExitSettings


def calibrate(
    probabilities: np.ndarray, y: np.ndarray, groups: np.ndarray, checks: tuple[int, ...], settings: ExitSettings
) -> Guarantee:
    """The lowest confidence that the calibration rows allow.

    Args:
        probabilities: (N, L, C) of calibration rows, which neither heads nor candidates have seen.
        groups: (N,): rows of one group count as one unit, with the mean of their losses; where every group is one row, which
            loses 0 or 1, the test is exact.

    Raises:
        InputError: too few groups for the risk and delta asked for.
    """
    candidates = thresholds(probabilities.shape[2])
    rows = [losses(probabilities, y, exit_layers(probabilities, t, checks), settings.loss) for t in candidates]
    table = group_means(np.stack(rows, axis=1), groups)
    asked: Any = {"risk": settings.risk, "delta": settings.delta, "loss": settings.loss, "method": settings.method}
    return promise(table, candidates, binary=len(table) == len(y), **asked)
