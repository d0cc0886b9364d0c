"""How far a difference may be from what was measured: over texts, over random draws, or both."""

from __future__ import annotations

import numpy as np

from moescope.stats import Difference
from moescope.studies.circuits.scorer import Scorer
from moescope.study.paired import interval_p, joined
from moescope.study.verdicts import Effect
from moescope.types import Explanation

_NAN = float("nan")


def between(first: np.ndarray, second: np.ndarray, groups: np.ndarray, *, spread: float = 0.0) -> Difference:
    """mean(first) - mean(second) over the same texts (N,), by groups; NaN bounds where there is but one group.

    Args:
        spread: standard deviation that comes on top, such as that over random draws.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(np.unique(groups)) < 2:
        return Difference(float((first - second).mean()), _NAN, _NAN, _NAN)
    return Scorer(np.zeros(len(first), dtype=np.int64), groups).difference(first, second, spread=spread)


def apart(a: tuple[float, float, float], b: tuple[float, float, float]) -> Difference:
    """a - b of two independent measurements, each (value, low, high)."""
    value = a[0] - b[0]
    low, high = joined(value, (a[1] - b[0], a[2] - b[0]), (a[0] - b[2], a[0] - b[1]))
    return Difference(value, low, high, interval_p(value, low, high))


def effect_of(
    found: Difference, against: str, margin: float, *, kind: Explanation = "chance", no_worse: bool = False, share: bool = True
) -> Effect:
    """A difference as what decides a claim; where it must not be a loss, p follows from interval and margin."""
    p = None if no_worse or np.isnan(found.p) else found.p
    return Effect(found.value, found.low, found.high, against, margin, p, kind=kind, no_worse=no_worse, share=share)
