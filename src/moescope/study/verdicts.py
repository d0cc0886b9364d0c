"""Verdicts are made here, from evidence: one level of significance for every claim."""

from __future__ import annotations

import math

from moescope.types import Verdict

ALPHA = 0.05
"""A p-value at or below this carries a verdict."""


def significant(p: float | None) -> bool:
    """Whether ``p`` is known and at most :data:`ALPHA`."""
    return p is not None and not math.isnan(p) and p <= ALPHA


def beyond_chance(p: float | None, word: Verdict = "measured") -> Verdict:
    """``word`` where chance does not explain what was seen, else ``"explained by chance"``."""
    return word if significant(p) else "explained by chance"
