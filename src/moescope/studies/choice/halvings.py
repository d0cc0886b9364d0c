"""Figures over several halvings of the texts: their spread stands for that over samples (half-samples, McCarthy 1969)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from moescope.study.verdicts import Effect, beyond_draws

HALVINGS = 6
"""of which the first has all draws of a null, and the others its mean"""
FEW = 3  # draws that this mean is of, where no closed form gives it


@dataclass(frozen=True)
class Beside:
    """A figure beside a null.

    Attributes:
        measured, expected: (H,) on every halving, and what the null gives there.
        draws: (P,) of the null on the first.
    """

    measured: np.ndarray
    expected: np.ndarray
    draws: np.ndarray

    def effect(self, against: str, margin: float, **options: Any) -> Effect:
        """Beyond the null: mean and interval (Student's t) over halvings, p from the draws."""
        gaps = self.measured - self.expected
        half = float(student.ppf(0.975, len(gaps) - 1)) * float(gaps.std(ddof=1))
        value = float(gaps.mean())
        p = beyond_draws(float(self.measured[0]), self.draws, against, margin).p
        return Effect(value, value - half, value + half, against, margin, p, **options)

    @property
    def value(self) -> float:
        return float(self.measured.mean())

    @property
    def null(self) -> float:
        return float(self.expected.mean())
